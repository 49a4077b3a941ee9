"""Galleries in use: published ones, and such of which part is still transformed and part is new."""

from fct_infer.serving.backfill import Backfiller, BackfillReport, Settings
from fct_infer.serving.calibration import Calibration, calibrate
from fct_infer.serving.forecast import BackfillForecast, forecast_backfill
from fct_infer.serving.mixed_gallery import Found, MixedGallery, MixedProgress
from fct_infer.serving.parts import count_parts, read_backfilled
from fct_infer.serving.published import PublishedGallery, open_gallery
from fct_infer.serving.search import ExactSearch
from fct_infer.serving.spaces import CalibratedSpace, NewSpace, Space, StoredRows

__all__ = [
    "BackfillForecast",
    "BackfillReport",
    "Backfiller",
    "CalibratedSpace",
    "Calibration",
    "ExactSearch",
    "Found",
    "MixedGallery",
    "MixedProgress",
    "NewSpace",
    "PublishedGallery",
    "Settings",
    "Space",
    "StoredRows",
    "calibrate",
    "count_parts",
    "forecast_backfill",
    "open_gallery",
    "read_backfilled",
]
