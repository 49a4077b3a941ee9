"""From an image to the float32 array a model takes, as its bundle's ``Preprocessing`` says.

The result equals torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize`` on the same RGB image, bit by
bit, so that a model sees in production what it saw when it was evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.errors import InputError
from fct_infer.images import SUFFIXES, central_view, decode
from fct_infer.transformation import Float32Array

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "decode", "preprocess"]


def preprocess(image: Image, preprocessing: Preprocessing, name: str) -> Float32Array:
    """Return an RGB image as (3, height, width) float32: scaled, cut, and normalised per channel.

    Raises:
        InputError: the image is so long and thin that it would have too many pixels once its shorter side is scaled.
    """
    try:
        view = central_view(image, preprocessing.size, preprocessing.resize, preprocessing.interpolation)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    result = np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1), np.float32)
    result /= 255
    result -= np.array(preprocessing.mean, np.float32)[:, None, None]
    result /= np.array(preprocessing.std, np.float32)[:, None, None]
    return result
