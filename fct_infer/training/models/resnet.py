"""Residual networks for small images, whose embedding is the globally pooled last feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.errors import UsageError
from fct_infer.training.models.base import Backbone, check_layers


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut, ReLU after the sum."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(Backbone):
    """A residual network that maps images to embeddings.

    The last block is ``embedding_dim`` wide, so the embedding is its post-ReLU output averaged over the image: never
    negative, as in the public FCT code (arXiv 2112.02805).

    Args:
        embedding_dim: width of the embedding.
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: residual blocks of each stage.
        stem_stride: 2 halves the resolution at the first convolution, at a quarter of the arithmetic.

    Raises:
        UsageError: ``widths`` and ``blocks`` do not go together.
    """

    def __init__(
        self,
        embedding_dim: int,
        widths: Sequence[int] = (16, 32, 64),
        blocks: Sequence[int] = (1, 1, 1),
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths or min(blocks) < 1:
            raise UsageError(f"ResNet: widths {widths} and blocks {blocks} must be of one length, blocks at least 1")
        check_layers(sum(blocks))
        self.embedding_dim = embedding_dim
        channels = widths[0]
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 3, stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                is_last = stage == len(widths) - 1 and block == count - 1
                out = embedding_dim if is_last else width
                layers.append(BasicBlock(channels, out, stride=2 if stage > 0 and block == 0 else 1))
                channels = out
        self.features = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's overloads

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) float32 on the scale 0 to 1 -> (n, embedding_dim) float32."""
        features: Tensor = self.features(4 * images - 2)  # about zero mean and unit variance
        return features.mean(dim=(2, 3))
