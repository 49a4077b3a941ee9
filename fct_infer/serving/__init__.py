"""Galleries in use: published ones, and such of which part is still transformed and part is new."""

from fct_infer.serving.calibration import Calibration, calibrate
from fct_infer.serving.mixed_gallery import Found, MixedGallery, MixedProgress
from fct_infer.serving.published import PublishedGallery, open_gallery
from fct_infer.serving.search import ExactSearch
from fct_infer.serving.spaces import CalibratedSpace, NewSpace, Space, StoredRows

__all__ = [
    "CalibratedSpace",
    "Calibration",
    "ExactSearch",
    "Found",
    "MixedGallery",
    "MixedProgress",
    "NewSpace",
    "PublishedGallery",
    "Space",
    "StoredRows",
    "calibrate",
    "open_gallery",
]
