"""Images as the backbones take them, and what every set of them can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import ArrayError
from fct_infer.training.data.batches import Batches, TensorBatches


class ImageData(Protocol):
    """A labelled set of images, in memory or decoded as it is used.

    Images come in batches, as uint8 (n, height, width, 3) or float32 (n, 3, height, width):
    :func:`to_batch` takes either.
    """

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) index into ``class_names``."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class."""
        ...

    def select(self, rows: NDArray[np.int64], labels: NDArray[np.int64], class_names: tuple[str, ...]) -> ImageData:
        """Return the set of some rows, under new labels."""
        ...

    def batches(self, batch_size: int, seed: int, views: int = 1) -> Batches:
        """Return shuffled batches of (images, ..., labels), with ``views`` tensors of the same images."""
        ...

    def in_order(self, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, row numbers) without shuffling; broken images may be left out.

        Without a seed these are the views without chance, as production sees the images; with one, random views as in
        :meth:`batches`.
        """
        ...


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory with their labels.

    Attributes:
        images: (n, height, width, 3) uint8, RGB.
        labels: (n,) int64, index into ``class_names``.
        class_names: one per class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    @classmethod
    def unlabelled(cls, images: NDArray[Any]) -> LabelledImages:
        """Give all images one label, for what does not look at it."""
        return cls(images, np.zeros(len(images), np.int64), ("",))

    def select(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64], class_names: tuple[str, ...]
    ) -> LabelledImages:
        """See :class:`ImageData`."""
        return LabelledImages(self.images[rows], labels, class_names)

    def batches(self, batch_size: int, seed: int, views: int = 1) -> TensorBatches:
        """See :class:`ImageData`; every view is the whole image."""
        images, labels = as_images(self.images), torch.from_numpy(self.labels)
        return TensorBatches(*[images] * views, labels, batch_size=batch_size, seed=seed)

    def in_order(self, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`ImageData`; every view is the whole image."""
        images = as_images(self.images)
        for rows in torch.split(torch.arange(len(images)), batch_size):
            yield images[rows], rows


def as_images(images: NDArray[Any]) -> Tensor:
    """Return (n, height, width, 3) uint8 as a tensor on the same memory.

    Raises:
        ArrayError: another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ArrayError(f"images: got {images.dtype} {images.shape}, wanted uint8 (n, height, width, 3)")
    return torch.from_numpy(images)


def to_batch(images: Tensor) -> Tensor:
    """Return images as (n, 3, height, width) float32 on the scale 0 to 1, channels last in memory.

    Takes uint8 (n, height, width, 3), or what is float32 (n, 3, height, width) on that scale already.
    """
    if images.is_floating_point():
        return images.contiguous(memory_format=torch.channels_last)
    return images.permute(0, 3, 1, 2).float().div_(255)


def image_shape(data: ImageData) -> tuple[int, int, int]:
    """Return (3, height, width) of the images of a set, by loading a few of them."""
    rows = np.arange(min(len(data.labels), 8))
    images, _ = next(iter(data.select(rows, data.labels[rows], data.class_names).in_order(len(rows))))
    _, height, width = to_batch(images).shape[1:]
    return 3, height, width
