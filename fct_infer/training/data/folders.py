"""Image folders as ImageNet, Places-365 and VGGFace2 unpack: a folder per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fct_infer.artifacts.manifest import DEFAULT_INTERPOLATION, Interpolation
from fct_infer.errors import InputError, UsageError
from fct_infer.images import IMAGE_SUFFIXES, central_view, find_images, pillow, read_image, resampling, shorter_side
from fct_infer.training.data.datasets import LoadedImages, OnError

if TYPE_CHECKING:
    from PIL.Image import Image

CENTRE = 224 / 256  # share of the shorter side that the view without chance shows, as usual with ImageNet
_SUFFIXES = frozenset(IMAGE_SUFFIXES)
_LOG_RATIO = math.log(4 / 3)  # largest aspect ratio of a random view, either way


@dataclass(frozen=True)
class FolderLoader:
    """Decodes an image and cuts a square view; the one without chance as embedding in production does.

    Attributes:
        paths: of all images.
        image_size: pixels of a view's side.
        min_area: smallest share of the image's area that a random view shows (Inception's crop); 1 gives the centre.
        interpolation: of all views.
        crop_fraction: share of the shorter side that the view without chance shows.
    """

    paths: Sequence[str]
    image_size: int
    min_area: float
    interpolation: Interpolation = DEFAULT_INTERPOLATION
    crop_fraction: float = CENTRE

    def load(self, row: int, is_random: bool) -> Tensor:
        """See :class:`~fct_infer.training.data.datasets.ImageLoader`."""
        image, size = decode_rgb(self.paths[row]), (self.image_size, self.image_size)
        box = _random_box(image.size, self.min_area) if is_random and self.min_area < 1 else None
        if box is not None:
            view = image.resize(size, resampling(self.interpolation), box)
        else:
            try:
                view = central_view(image, size, shorter_side(size, self.crop_fraction), self.interpolation)
            except ValueError as error:
                raise InputError(f"{self.paths[row]}: {error}") from error
        return torch.from_numpy(np.array(view))


def read_folder(
    path: str | Path,
    image_size: int,
    *,
    min_area: float = 0.08,
    interpolation: Interpolation = DEFAULT_INTERPOLATION,
    crop_fraction: float = CENTRE,
    workers: int = 0,
    on_error: OnError = "fail",
) -> LoadedImages:
    """Find the images below a folder, hidden ones left out.

    The class of an image is the path of its folder: ``n01440764`` of ImageNet, ``n000002`` of VGGFace2, and
    ``a/apartment_building/outdoor`` of Places-365. Classes and images are in alphabetical order.

    Raises:
        UsageError: the folder does not exist, or holds images of no class.
        InputError: a folder below it cannot be read, or links back to one it lies in.
        MissingExtraError: Pillow is not installed.
    """
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    pillow()
    found = sorted((Path(file).parent.relative_to(root).as_posix(), file) for file in find_images(root)[0])
    names = tuple(sorted({name for name, _ in found}))
    if not names or "." in names:
        what = "images outside any class" if "." in names else f"no images ({', '.join(sorted(_SUFFIXES))})"
        raise UsageError(f"{root}: holds {what}, wanted a folder of images per class")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[name] for name, _ in found], np.int64)
    loader = FolderLoader([file for _, file in found], image_size, min_area, interpolation, crop_fraction)
    return LoadedImages(loader, np.arange(len(found)), labels, names, workers, on_error)


def decode_rgb(path: str | Path) -> Image:
    """Return the image in a file as RGB, exactly as embedding in production decodes it.

    Raises:
        InputError: not an image, damaged or unreadable; names the file.
        MissingExtraError: Pillow is not installed.
    """
    return read_image(path)


def _random_box(size: tuple[int, int], min_area: float) -> tuple[float, float, float, float] | None:
    """Return left, top, right, bottom of a part of random area, aspect ratio and place (arXiv 1409.4842).

    None if the image is so long and thin that no draw fits into it.
    """
    width, height = size
    for _ in range(10):  # draws that do not fit inside the image are drawn again
        area, ratio, x, y = torch.rand(4).tolist()
        pixels = width * height * (min_area + (1 - min_area) * area)
        aspect = math.exp(_LOG_RATIO * (2 * ratio - 1))
        w, h = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
        if w <= width and h <= height:
            return x * (width - w), y * (height - h), x * (width - w) + w, y * (height - h) + h
    return None
