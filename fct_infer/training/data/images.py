"""Images as the backbones take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import ArrayError


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes:
        images: (n, height, width, 3) uint8, RGB.
        labels: (n,) int64, index into ``class_names``.
        class_names: one per class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def as_images(images: NDArray[Any]) -> Tensor:
    """Return (n, height, width, 3) uint8 as a tensor on the same memory.

    Raises:
        ArrayError: another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ArrayError(f"images: got {images.dtype} {images.shape}, wanted uint8 (n, height, width, 3)")
    return torch.from_numpy(images)


def to_batch(images: Tensor) -> Tensor:
    """(n, height, width, 3) uint8 -> (n, 3, height, width) float32 on the scale 0 to 1, channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)
