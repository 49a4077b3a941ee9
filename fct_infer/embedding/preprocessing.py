"""From the bytes of an image file to the float32 array a model takes, as its bundle's ``Preprocessing`` says.

The result equals torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize`` on the same RGB image, bit by
bit, so that a model sees in production what it saw when it was evaluated.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.errors import InputError, MissingExtraError
from fct_infer.transformation import Float32Array

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats and the suffixes their files have. Pillow knows more, but some of those start other programs (EPS).
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
_EXIF_ORIENTATION = 0x0112
_TRANSPOSITIONS = {  # EXIF orientation -> what turns the image upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def pillow() -> Any:
    """Return Pillow's module ``PIL.Image`` with the formats of ``SUFFIXES`` ready, for use from many threads.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "embed") from error
    Image.init()
    return Image


def decode(data: bytes, name: str) -> Image:
    """Return the image in a file's bytes: upright by its EXIF orientation, RGB; of an animation the first frame.

    Transparency is dropped, 16-bit grey loses its low byte as 16-bit colour does, a colour profile is not applied.

    Args:
        data: the whole file.
        name: the file's, for messages.

    Raises:
        InputError: not an image of a known format, truncated, damaged, or of more pixels than Pillow's
            ``MAX_IMAGE_PIXELS``.
    """
    pil = pillow()
    try:
        with pil.open(BytesIO(data), formats=[known for known in SUFFIXES if known in pil.OPEN]) as image:
            _check_pixels(*image.size)
            image.load()
            # Not ImageOps.exif_transpose: it writes the EXIF data anew, which fails on what many cameras store.
            transposition = _TRANSPOSITIONS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
            rgb = _to_rgb(image)
        return rgb if transposition is None else rgb.transpose(pil.Transpose[transposition])
    except MemoryError:
        raise
    except Exception as error:  # a decoder raises whatever it trips over: OSError, SyntaxError, struct.error ...
        raise InputError(f"{name}: {_reason(error, data)}") from error


def preprocess(image: Image, preprocessing: Preprocessing, name: str) -> Float32Array:
    """Return an RGB image as (3, height, width) float32: scaled, cut, and normalised per channel.

    Raises:
        InputError: the image is so long and thin that it would have too many pixels once its shorter side is scaled.
    """
    try:
        pixels = np.asarray(_resize_and_crop(image, preprocessing))
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    result = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
    result /= 255
    result -= np.array(preprocessing.mean, np.float32)[:, None, None]
    result /= np.array(preprocessing.std, np.float32)[:, None, None]
    return result


def _resize_and_crop(image: Image, preprocessing: Preprocessing) -> Image:
    height, width = preprocessing.size
    if preprocessing.resize is None:
        return _resize(image, width, height)
    shorter = min(image.size)
    new_width, new_height = (int(preprocessing.resize * side / shorter) for side in image.size)
    _check_pixels(new_width, new_height)
    left, top = round((new_width - width) / 2), round((new_height - height) / 2)  # halves to even, as torchvision's
    return _resize(image, new_width, new_height).crop((left, top, left + width, top + height))


def _resize(image: Image, width: int, height: int) -> Image:
    """Bilinear over all source pixels a target pixel covers (antialiased)."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), pillow().Resampling.BILINEAR)


def _to_rgb(image: Image) -> Image:
    # Portable grey maps of 16 bits come as 32-bit integers. Pillow's own conversion to 8 bits clips instead of scaling.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"holds 32-bit numbers (mode {image.mode}) of unknown scale, wanted 8 or 16 bits a channel")
    return image.convert("RGB")


def _check_pixels(width: int, height: int) -> None:
    """Pillow only warns up to twice its own limit."""
    limit = pillow().MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels, at most {limit:,} are accepted (PIL.Image.MAX_IMAGE_PIXELS)")


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        return f"is not an image of a known format ({', '.join(SUFFIXES)})"
    return str(error) or type(error).__name__
