"""What depends on rows, found on rows of the gallery: the precision, and the ranges that some of them need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.backends.precision import choose_precision
from fct_infer.errors import GalleryError
from fct_infer.gallery import Source
from fct_infer.reference import largest_values
from fct_infer.transformation import Transformation


def calibrate(
    h: Transformation,
    gallery: Source,
    fingerprint: Mapping[str, Any],
    begun_with: dict[str, Any],
    rows: NDArray[np.int64],
    min_cosine: float | None = None,
) -> Transformation:
    """Return ``h`` in a precision that proves itself on some rows of the gallery, and with their ranges.

    An unfinished upgrade of the same gallery by the same transformation is resumed with what its journal says, as long
    as it failed no gate: sums of another number of threads differ in the last bits, and other machines have other
    precisions.

    Args:
        h: of precision ``auto``, or without the ranges its precision needs.
        gallery: whose dims fit it.
        fingerprint: of the gallery's files.
        begun_with: identity of the unfinished upgrade at its destination; empty without one.
        rows: (n,) int64 row numbers over all parts, sorted.
        min_cosine: the gate in force, if it is not the precision's own.

    Raises:
        GalleryError: one of the rows holds NaN or infinity; names file and row.
    """
    is_same = begun_with.get("transformation") == h.digest and begun_with.get("gallery") == fingerprint
    begun = begun_with if is_same else {}
    if h.precision == "auto":
        precision = begun.get("settings", {}).get("precision")
        if precision not in h.native_precisions:
            return choose_precision(h, *_sample(h, gallery, rows), min_cosine=min_cosine)
        h = h.in_precision(precision, "chosen by auto when the upgrade began")
        if h.is_calibrated:
            return h
    assert h.program is not None
    return h.calibrated(begun.get("ranges") or largest_values(h.program, *_sample(h, gallery, rows)))


def _sample(h: Transformation, gallery: Source, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    old, side = gallery.read_rows(rows, with_side=h.side_dim > 0)
    _check_finite(old, "embedding", gallery, rows)
    if not h.side_dim:
        return old, None
    if side is not None:
        _check_finite(side, "side", gallery, rows)
    return old, old if side is None else side


def _check_finite(array: NDArray[Any], role: str, gallery: Source, rows: NDArray[np.int64]) -> None:
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        row = int(rows[np.argmin(finite)])
        raise GalleryError(f"{gallery.where(row, role)} holds NaN or infinity")
