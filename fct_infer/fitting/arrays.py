"""Fitting from arrays in memory: what ``fct-fit`` does with files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.joining import Progress
from fct_infer.errors import ArrayError, NonFiniteError
from fct_infer.fitting.fit import Fit, Settings, fit_pairs
from fct_infer.fitting.pairs import Pairs
from fct_infer.fitting.queries import Queries
from fct_infer.notebook import shows_progress
from fct_infer.transformation import Float32Array


@shows_progress
def fit(
    old: NDArray[Any],
    new: NDArray[Any],
    side: NDArray[Any] | None = None,
    *,
    labels: NDArray[Any] | None = None,
    queries: Queries | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit a transformation from the old model's embeddings to the new one's; row i of all arrays is one item.

    ``fct_infer.Transformation(fit(old, new).program)`` transforms rows;
    ``fct_infer.export.export_transformation(fit(old, new).program, "h.bundle")`` writes them a bundle.

    Where other work needs the cores, set ``GOMP_SPINCOUNT=1000`` before Python starts, as ``fct-fit`` does for itself:
    PyTorch's threads else spin while they wait, and how long is read only while their library is loaded.

    Args:
        old: (n, d_old) floating-point, n at least 50.
        new: (n, d_new) floating-point.
        side: (n, d_side) floating-point: side-information that is stored beside the old rows.
        labels: (n,), to judge candidates by mAP.
        queries: of the user, to judge candidates by their recall; truth holds row numbers.
        settings: see :class:`Settings`.
        progress: told about stages.

    Raises:
        ArrayError: another dtype or shape, rows with NaN or infinity.
        FctError: as :func:`fit_pairs`.
    """
    rows = np.arange(len(old))
    columns = {"old": old, "new": new} | ({} if side is None else {"side": side})
    vectors = {name: _vectors(name, np.asarray(array), len(old)) for name, array in columns.items()}
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and labels.shape != (len(old),):
        raise ArrayError(f"labels: is {labels.shape}, wanted ({len(old)},)")
    pairs = Pairs(vectors["old"], vectors["new"], vectors.get("side"), rows, labels, len(old))
    return fit_pairs(pairs, settings, queries, progress)


def _vectors(name: str, array: NDArray[Any], rows: int) -> Float32Array:
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[0] != rows or not array.size:
        raise ArrayError(f"{name}: is {array.dtype} {array.shape}, wanted floating-point ({rows}, d)")
    with np.errstate(over="ignore"):
        narrowed = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(narrowed).all(axis=1)
    if not finite.all():
        raise NonFiniteError(name, int(np.argmin(finite)))
    return narrowed
