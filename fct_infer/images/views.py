"""The part of an image that a model sees, at the size it takes: torchvision's ``Resize`` and ``CenterCrop``.

On the same RGB image the pixels equal theirs bit by bit (both are Pillow's resize, which is antialiased), so that a
model sees in production what it saw when it was evaluated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fct_infer.artifacts.manifest import Interpolation
from fct_infer.images.decoding import check_pixels, pillow

if TYPE_CHECKING:
    from PIL.Image import Image


def central_view(
    image: Image, size: tuple[int, int], resize: int | None = None, interpolation: Interpolation = "bilinear"
) -> Image:
    """Return the image at ``size``.

    Args:
        image: in RGB.
        size: (height, width) of the view.
        resize: scale the shorter side to this many pixels and cut the middle out, at least as large as both of
            ``size``; None scales to ``size`` whatever the aspect.
        interpolation: over all source pixels that a target pixel covers.

    Raises:
        ValueError: the image is so long and thin that it would have too many pixels once its shorter side is scaled.
    """
    height, width = size
    if resize is None:
        return _resized(image, width, height, interpolation)
    shorter = min(image.size)
    new_width, new_height = (int(resize * side / shorter) for side in image.size)
    check_pixels(new_width, new_height)
    left, top = round((new_width - width) / 2), round((new_height - height) / 2)  # halves to even, as torchvision's
    return _resized(image, new_width, new_height, interpolation).crop((left, top, left + width, top + height))


def shorter_side(size: tuple[int, int], crop_fraction: float) -> int:
    """Return what the shorter side is scaled to so that the middle ``size`` (height, width) is that share of it.

    Rounded down, as timm's ``crop_pct`` is: 224 pixels at 0.875 are cut out of 256, at 0.9 out of 248.
    """
    return math.floor(max(size) / crop_fraction)


def resampling(interpolation: Interpolation) -> Any:
    """Return Pillow's filter of this name."""
    return pillow().Resampling[interpolation.upper()]


def _resized(image: Image, width: int, height: int, interpolation: Interpolation) -> Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), resampling(interpolation))
