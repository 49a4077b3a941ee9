"""From items embedded by both models to the best transformation and an honest forecast; closed forms need no torch."""

from fct_infer.fitting.compress import Compression, Stored
from fct_infer.fitting.fit import Fit, Settings, fit_pairs
from fct_infer.fitting.forecast import Forecast
from fct_infer.fitting.pairs import MAX_PAIRS, Pairs, read_pairs
from fct_infer.fitting.queries import Queries

__all__ = [
    "MAX_PAIRS",
    "Compression",
    "Fit",
    "Forecast",
    "Pairs",
    "Queries",
    "Settings",
    "Stored",
    "fit_pairs",
    "read_pairs",
]
