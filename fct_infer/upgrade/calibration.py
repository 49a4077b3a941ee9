"""Ranges for precisions whose scales come from rows: measured on the gallery that is upgraded, once per upgrade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError
from fct_infer.gallery import Gallery
from fct_infer.reference import largest_values
from fct_infer.transformation import Transformation
from fct_infer.upgrade.journal import first_record, journal_file


def calibrate(h: Transformation, gallery: Gallery, dest: Path, rows: NDArray[np.int64]) -> Transformation:
    """Return ``h`` with the ranges of some rows of the gallery.

    An unfinished upgrade of the same gallery by the same transformation is resumed with its own ranges, read from its
    journal: sums of another number of threads differ in the last bits.

    Args:
        h: not calibrated.
        gallery: whose dims fit it.
        dest: what the upgrade will make.
        rows: (n,) int64 row numbers over all shards, sorted.

    Raises:
        GalleryError: one of the rows holds NaN or infinity; names file and row.
    """
    return h.calibrated(_begun_with(h, gallery, dest) or _measured(h, gallery, rows))


def _begun_with(h: Transformation, gallery: Gallery, dest: Path) -> dict[str, float] | None:
    identity = (first_record(journal_file(dest)) or {}).get("identity", {})
    if identity.get("transformation") != h.digest or identity.get("gallery") != gallery.fingerprint():
        return None
    ranges: dict[str, float] | None = identity.get("ranges")
    return ranges


def _measured(h: Transformation, gallery: Gallery, rows: NDArray[np.int64]) -> dict[str, float]:
    assert h.program is not None
    old, side = gallery.read_rows(rows)
    _check_finite(old, "embeddings", gallery, rows)
    if side is not None and h.side_dim:
        _check_finite(side, "side_information", gallery, rows)
    return largest_values(h.program, old, side)


def _check_finite(array: NDArray[Any], folder: str, gallery: Gallery, rows: NDArray[np.int64]) -> None:
    finite = np.isfinite(array).all(axis=1)
    if finite.all():
        return
    shard, row = gallery.locate(int(rows[np.argmin(finite)]))
    raise GalleryError(f"{gallery.path / folder / shard.embeddings.name}: row {row} holds NaN or infinity")
