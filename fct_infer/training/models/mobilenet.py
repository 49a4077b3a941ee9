"""MobileNetV2 (arXiv 1801.04381), with an embedding of any width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fct_infer.errors import UsageError
from fct_infer.training.models.base import Backbone, Standardize

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage: table 2 of the paper."""


class MobileNetV2(Backbone):
    """A MobileNetV2 whose last 1x1 convolution, with ReLU6, makes the embedding; averaged over the image.

    Args:
        embedding_dim: width of the embedding; the paper's is 1280.
        width: multiplies the channels of every layer but the last.
        stem: ``"small"`` keeps the resolution in the first convolution and the second stage, for images of about 32
            pixels.

    Raises:
        UsageError: another stem.
    """

    def __init__(
        self, embedding_dim: int = 1280, width: float = 1.0, stem: Literal["imagenet", "small"] = "imagenet"
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise UsageError(f"MobileNetV2: got stem {stem!r}, wanted imagenet or small")
        self.standardize = Standardize()
        self.embedding_dim = embedding_dim
        channels = _scaled(32, width)
        layers: list[nn.Module] = [_convolution(3, channels, 3, 2 if stem == "imagenet" else 1)]
        for stage, (expansion, base, count, stride) in enumerate(_STAGES):
            out = _scaled(base, width)
            for index in range(count):
                halves = stride == 2 and index == 0 and not (stem == "small" and stage == 1)
                layers.append(_InvertedResidual(channels, out, 2 if halves else 1, expansion))
                channels = out
        layers.append(_convolution(channels, embedding_dim, 1))
        self.features = nn.Sequential(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's overloads

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) float32 on the scale 0 to 1 -> (n, embedding_dim) float32."""
        features: Tensor = self.features(self.standardize(images))
        return features.mean(dim=(2, 3))


class _InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project without ReLU; a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        expand = [_convolution(channels_in, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self._has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self._has_shortcut else out


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU6(inplace=True))


def _scaled(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded
