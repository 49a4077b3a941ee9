"""Serving a gallery while part of it is still transformed and part of it is new, and re-embedding it meanwhile."""

from fct_infer.serving.calibration import Calibration, calibrate
from fct_infer.serving.mixed_gallery import Found, MixedGallery, MixedProgress
from fct_infer.serving.spaces import CalibratedSpace, NewSpace, Space, StoredRows

__all__ = [
    "CalibratedSpace",
    "Calibration",
    "Found",
    "MixedGallery",
    "MixedProgress",
    "NewSpace",
    "Space",
    "StoredRows",
    "calibrate",
]
