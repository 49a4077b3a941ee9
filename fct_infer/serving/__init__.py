"""Serving a gallery while part of it is still transformed and part of it is new, and re-embedding it meanwhile."""

from fct_infer.serving.backfill import Backfiller, BackfillReport, Settings
from fct_infer.serving.calibration import Calibration, calibrate
from fct_infer.serving.forecast import BackfillForecast, forecast_backfill
from fct_infer.serving.mixed_gallery import Found, MixedGallery, MixedProgress
from fct_infer.serving.parts import count_parts, read_backfilled
from fct_infer.serving.spaces import CalibratedSpace, NewSpace, Space, StoredRows

__all__ = [
    "BackfillForecast",
    "BackfillReport",
    "Backfiller",
    "CalibratedSpace",
    "Calibration",
    "Found",
    "MixedGallery",
    "MixedProgress",
    "NewSpace",
    "Settings",
    "Space",
    "StoredRows",
    "calibrate",
    "count_parts",
    "forecast_backfill",
    "read_backfilled",
]
