"""Random views of image batches, whole batches at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.training.data.images import as_images, to_batch


@dataclass(frozen=True)
class Augmentation:
    """How far a view may be from its image.

    Attributes:
        rotation: largest turn either way, in degrees.
        scale: largest relative change of size either way.
        shift: largest move along each axis, as a share of the image.
        brightness: largest change of each channel, on the scale 0 to 1.
        contrast: largest relative change of the distance from grey.
        colour: how far the channels are mixed: 0 not at all, 1 into random, possibly inverted, combinations.
        noise: standard deviation of Gaussian noise, on the scale 0 to 1.
        flip: share of the views that are mirrored, left to right.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    noise: float = 0.0
    flip: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return one random view of each image; (n, 3, h, w) float32 on the scale 0 to 1, in and out, on any device."""
        views = self._affine(images, generator) if self.rotation or self.scale or self.shift else images
        views = self._jitter(views, generator)
        if self.noise:
            views = views + self.noise * torch.randn(views.shape, generator=generator).to(views.device)
        if self.flip:
            is_flipped = torch.rand(len(views), 1, 1, 1, generator=generator) < self.flip
            views = torch.where(is_flipped.to(views.device), views.flip(3), views)
        return views.clamp(0, 1).contiguous(memory_format=torch.channels_last)

    def _affine(self, images: Tensor, generator: torch.Generator) -> Tensor:
        angle, zoom, x, y = _symmetric(generator, 4, len(images), 1, 1).to(images.device)
        angle, zoom = angle * math.radians(self.rotation), torch.exp(zoom * math.log1p(self.scale))
        height, width = images.shape[2:]
        axis_x, axis_y = ((2 * torch.arange(size, device=images.device) + 1) / size - 1 for size in (width, height))
        moved_x, moved_y = axis_x[None, None, :] - 2 * self.shift * x, axis_y[None, :, None] - 2 * self.shift * y
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        grid = torch.stack([cos * moved_x + sin * moved_y, cos * moved_y - sin * moved_x], dim=-1)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _jitter(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count = len(images)
        contrast = 1 + self.contrast * _symmetric(generator, count, 1, 1)
        offset = self.brightness * _symmetric(generator, count, 3, 1, 1)
        directions = F.normalize(torch.randn(count, 3, 3, generator=generator), dim=2)
        mixing = contrast * torch.lerp(torch.eye(3), directions, self.colour)
        mixing, offset = mixing.to(images.device), offset.to(images.device)
        return torch.einsum("nij,njhw->nihw", mixing, images - 0.5) + (0.5 + offset)


def _symmetric(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform draws in [-1, 1)."""
    return 2 * torch.rand(shape, generator=generator) - 1


def augmented(images: NDArray[np.uint8], augmentation: Augmentation, seed: int) -> NDArray[np.uint8]:
    """Return one random view of each image; (n, h, w, 3) uint8, in and out."""
    generator = torch.Generator().manual_seed(seed)
    views = augmentation(to_batch(as_images(images)), generator)
    return views.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
