"""Torch modules as users have them, and how they save them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """1x1 convolution, batch norm, ReLU: names and layout of the public FCT checkpoints."""

    def __init__(self, dim_in: int, dim_out: int, is_last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 1, bias=is_last)
        self.normalizer = nn.Identity() if is_last else nn.BatchNorm2d(dim_out)
        self.activation = nn.Identity() if is_last else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalizer(self.conv(x)))


class PublicTransformation(nn.Module):
    """h as the public FCT code writes it: two (N, C, 1, 1) inputs."""

    def __init__(self, old_dim: int, side_dim: int, new_dim: int, inner: int) -> None:
        super().__init__()
        self.p1 = nn.Sequential(ConvBlock(old_dim, 2 * old_dim), ConvBlock(2 * old_dim, 2 * new_dim))
        self.p2 = nn.Sequential(ConvBlock(side_dim, 2 * side_dim), ConvBlock(2 * side_dim, 2 * new_dim))
        self.mixer = nn.Sequential(
            ConvBlock(4 * new_dim, inner), ConvBlock(inner, inner), ConvBlock(inner, new_dim, True)
        )

    def forward(self, old_feature: Tensor, side_info: Tensor) -> Tensor:
        return self.mixer(torch.cat([self.p1(old_feature), self.p2(side_info)], dim=1))


class TinyBackbone(nn.Module):
    """(N, 3, H, W) -> (N, D, 1, 1): globally pooled last feature map, as in the public code."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(8, dim, 3, 2, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, image: Tensor) -> Tensor:
        return self.pool(self.last(self.stem(image)))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, with batch-norm statistics as after a training run."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.25, 4.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def scripted(model: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(str(path))
    return path


def traced(model: nn.Module, path: Path, *inputs: Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(model, inputs, check_trace=False).save(str(path))
    return path


def exported(model: nn.Module, path: Path, *inputs: Tensor) -> Path:
    """A torch.export archive with a free batch axis."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)), path)
    return path


class GatedTransformation(nn.Module):
    """h with layers no program has: LayerNorm and a sigmoid gate, (N, old), (N, side) -> (N, new)."""

    def __init__(self, old_dim: int, side_dim: int, new_dim: int) -> None:
        super().__init__()
        self.old, self.side = nn.Linear(old_dim, new_dim), nn.Linear(side_dim, new_dim)
        self.norm, self.head = nn.LayerNorm(new_dim), nn.Linear(new_dim, new_dim)

    def forward(self, old: Tensor, side: Tensor) -> Tensor:
        return self.head(self.norm(self.old(old)) * torch.sigmoid(self.side(side)))


def outputs(model: nn.Module, *inputs: np.ndarray) -> np.ndarray:
    """What the module makes of NumPy arrays, as plain rows."""
    with torch.no_grad():
        return model(*map(torch.from_numpy, inputs)).flatten(1).numpy()
