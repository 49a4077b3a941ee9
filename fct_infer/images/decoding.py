"""From the bytes of an image file to upright RGB pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.errors import InputError, import_error
from fct_infer.storage import ReadFile

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
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
MAX_FILE_BYTES = 1 << 30  # more than the pixels of the largest image accepted take uncompressed
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 258, 262, 0
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
        raise import_error("pillow", "embed", error) from error
    Image.init()
    return Image


def read_image(path: str | Path) -> Image:
    """Return the image in a file as :func:`decode` does.

    Raises:
        InputError: as :func:`decode`, or the file cannot be read or is too large; names it.
        MissingExtraError: Pillow is not installed.
    """
    with ReadFile(path) as file:
        if file.size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {file.size:,} bytes, at most {MAX_FILE_BYTES:,} are read as an image")
        data = file.read(file.size)
    return decode(data, str(path))


def decode(data: bytes, name: str) -> Image:
    """Return the image in a file's bytes: upright by its EXIF orientation, RGB; of an animation the first frame.

    Transparency is dropped, grey of 9 to 16 bits keeps its 8 highest bits as 16-bit colour does, a colour profile is
    not applied.

    Args:
        data: the whole file.
        name: the file's, for messages.

    Raises:
        InputError: not an image of a known format, truncated, damaged, of numbers without a scale (32 bits or floating
            point), or of more pixels than Pillow's ``MAX_IMAGE_PIXELS``.
    """
    pil = pillow()
    try:
        with pil.open(BytesIO(data), formats=[known for known in SUFFIXES if known in pil.OPEN]) as image:
            check_pixels(*image.size)
            image.load()
            # Not ImageOps.exif_transpose: it writes the EXIF data anew, which fails on what many cameras store.
            transposition = _TRANSPOSITIONS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
            rgb = _to_rgb(image)
        return rgb if transposition is None else rgb.transpose(pil.Transpose[transposition])
    except MemoryError:
        raise
    except Exception as error:  # a decoder raises whatever it trips over: OSError, SyntaxError, struct.error ...
        raise InputError(f"{name}: {_reason(error, data)}") from error


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError beyond Pillow's limit, up to twice of which Pillow itself only warns."""
    limit = pillow().MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels, at most {limit:,} are accepted (PIL.Image.MAX_IMAGE_PIXELS)")


def _to_rgb(image: Image) -> Image:
    # Portable grey maps of 16 bits come as 32-bit integers. Pillow's own conversion to 8 bits clips instead of scaling.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = pillow().fromarray(_high_bits(image))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"holds 32-bit numbers (mode {image.mode}) of unknown scale, wanted 8 or 16 bits a channel; scale and save "
            "it so"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the colours are the same, but straight to RGB Pillow warns of some palettes
    return image.convert("RGB")


def _high_bits(image: Image) -> Any:
    """Return the 8 highest bits of grey of up to 16: (h, w) uint8."""
    tags = getattr(image, "tag_v2", {})  # of TIFF, whose 12 bits come unscaled and whose white may be zero
    bits = int(tags.get(_TIFF_BITS, (16,))[0])
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO else grey


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        return f"is not an image of a known format ({', '.join(SUFFIXES)})"
    return str(error) or type(error).__name__
