"""ResNet-18, 34, 50 and 101 (arXiv 1512.03385), with an embedding of any width."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.errors import UsageError
from fct_infer.training.models.base import Backbone, Standardize

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_WIDTHS = (64, 128, 256, 512)


class _Residual(nn.Module):
    """ReLU of a branch plus a shortcut, which is projected where shapes differ; names as in torchvision's weights."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.branch(x) + shortcut, inplace=True)


class _Basic(_Residual):
    """Two 3x3 convolutions."""

    def __init__(self, channels_in: int, width: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, stride)
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)

    def branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out: Tensor = self.bn2(self.conv2(x))
        return out


class _Bottleneck(_Residual):
    """1x1, 3x3 and 1x1 convolution; the 3x3 one halves the resolution, as usual today ("v1.5")."""

    def __init__(self, channels_in: int, width: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, stride)
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)

    def branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        out: Tensor = self.bn3(self.conv3(x))
        return out


class DeepResNet(Backbone):
    """A ResNet that maps images to embeddings.

    The last block is ``embedding_dim`` wide and the embedding is its post-ReLU output averaged over the image, as in
    the public FCT code (arXiv 2112.02805). All other parameters are named as in torchvision's weights.

    Args:
        depth: 18, 34, 50 or 101.
        embedding_dim: width of the embedding; None is the network's own, 512 or 2048.
        stem: ``"imagenet"`` quarters the resolution before the first block; ``"small"``, for images of about 32
            pixels, keeps it.

    Raises:
        UsageError: another depth or stem.
    """

    def __init__(
        self, depth: int, embedding_dim: int | None = None, stem: Literal["imagenet", "small"] = "imagenet"
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS or stem not in ("imagenet", "small"):
            raise UsageError(
                f"ResNet: got depth {depth!r} and stem {stem!r}, wanted {list(_BLOCKS)}, imagenet or small"
            )
        block, expansion = (_Basic, 1) if depth < 50 else (_Bottleneck, 4)
        self.standardize = Standardize()
        self.embedding_dim = embedding_dim or _WIDTHS[-1] * expansion
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        channels = 64
        for stage, (width, count) in enumerate(zip(_WIDTHS, _BLOCKS[depth], strict=True)):
            blocks: list[nn.Module] = []
            for index in range(count):
                is_last = stage == len(_WIDTHS) - 1 and index == count - 1
                out = self.embedding_dim if is_last else width * expansion
                blocks.append(block(channels, width, out, stride=2 if stage > 0 and index == 0 else 1))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's overloads

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) float32 on the scale 0 to 1 -> (n, embedding_dim) float32."""
        x: Tensor = self.pool(F.relu(self.bn1(self.conv1(self.standardize(images))), inplace=True))
        for stage in range(len(_WIDTHS)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean(dim=(2, 3))
