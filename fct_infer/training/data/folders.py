"""Image folders as ImageNet, Places-365 and VGGFace2 unpack: a folder per class."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fct_infer.errors import InputError, MissingExtraError, UsageError
from fct_infer.training.data.datasets import LoadedImages, OnError

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_CENTRE = 224 / 256  # share of the shorter side that the view without chance shows, as usual with ImageNet
_LOG_RATIO = math.log(4 / 3)  # largest aspect ratio of a random view, either way


@dataclass(frozen=True)
class FolderLoader:
    """Decodes an image and cuts a square view.

    Attributes:
        paths: of all images.
        image_size: pixels of a view's side.
        min_area: smallest share of the image's area that a random view shows (Inception's crop); 1 gives the centre.
    """

    paths: Sequence[str]
    image_size: int
    min_area: float

    def load(self, row: int, is_random: bool) -> Tensor:
        """See :class:`~fct_infer.training.data.datasets.ImageLoader`."""
        image = decode_rgb(self.paths[row])
        box = _random_box(image.size, self.min_area) if is_random and self.min_area < 1 else None
        size = (self.image_size, self.image_size)
        view = image.resize(size, _pillow().Resampling.BILINEAR, box or _central_box(image.size))
        return torch.from_numpy(np.array(view))


def read_folder(
    path: str | Path,
    image_size: int,
    *,
    min_area: float = 0.08,
    workers: int = 0,
    on_error: OnError = "fail",
) -> LoadedImages:
    """Find the images below a folder, hidden ones left out.

    The class of an image is the path of its folder: ``n01440764`` of ImageNet, ``n000002`` of VGGFace2, and
    ``a/apartment_building/outdoor`` of Places-365. Classes and images are in alphabetical order.

    Raises:
        UsageError: the folder does not exist, or holds images of no class.
        InputError: a folder below it cannot be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    found = sorted(_walk(root))
    names = tuple(sorted({name for name, _ in found}))
    if not names or "." in names:
        what = "images outside any class" if "." in names else "no images"
        raise UsageError(f"{root}: holds {what}, wanted a folder of images per class")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[name] for name, _ in found], np.int64)
    loader = FolderLoader([file for _, file in found], image_size, min_area)
    return LoadedImages(loader, np.arange(len(found)), labels, names, workers, on_error)


def decode_rgb(path: str | Path) -> Image:
    """Return the image in a file as RGB.

    Raises:
        InputError: not an image, damaged or unreadable; names the file.
        MissingExtraError: Pillow is not installed.
    """
    pillow = _pillow()
    try:
        with pillow.open(path, formats=_FORMATS) as image:
            rgb: Image = image.convert("RGB")
            return rgb
    except MemoryError:
        raise
    except Exception as error:  # a decoder raises whatever it trips over: OSError, SyntaxError, struct.error ...
        reason = "is not an image of a known format" if type(error).__name__ == "UnidentifiedImageError" else error
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or reason}") from error


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (class, path) of every image."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, below, files in os.walk(root, onerror=fail, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        name = Path(folder).relative_to(root).as_posix()
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in _SUFFIXES:
                yield name, f"{folder}/{file}"


def _random_box(size: tuple[int, int], min_area: float) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a part of random area, aspect ratio and place (arXiv 1409.4842)."""
    width, height = size
    for _ in range(10):  # draws that do not fit inside the image are drawn again
        area, ratio, x, y = torch.rand(4).tolist()
        pixels = width * height * (min_area + (1 - min_area) * area)
        aspect = math.exp(_LOG_RATIO * (2 * ratio - 1))
        w, h = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
        if w <= width and h <= height:
            return x * (width - w), y * (height - h), x * (width - w) + w, y * (height - h) + h
    return _central_box(size)


def _central_box(size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    side = min(size) * _CENTRE
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "train") from error
    Image.init()  # all formats, not only the commonest
    return Image
