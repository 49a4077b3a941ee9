"""Image files as every model sees them, in training and in production: found, decoded to RGB, scaled and cut."""

from fct_infer.images.decoding import IMAGE_SUFFIXES, SUFFIXES, decode, pillow, read_image
from fct_infer.images.files import find_images, walk
from fct_infer.images.views import central_view, resampling, shorter_side

__all__ = [
    "IMAGE_SUFFIXES",
    "SUFFIXES",
    "central_view",
    "decode",
    "find_images",
    "pillow",
    "read_image",
    "resampling",
    "shorter_side",
    "walk",
]
