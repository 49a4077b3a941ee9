"""What lies in a source: one pass over its rows, which are counted and not judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.convert import rows_of_block
from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.registry import kind_of, open_source
from fct_infer.gallery.source import Schema, Source, SourceReader
from fct_infer.identity import model_text

MAX_COMPARED = 1 << 26  # rows of which duplicates are counted, at 8 bytes a row
MAX_NORMS = 1 << 22  # norms of which the median is taken: every row's up to so many, evenly spaced rows' above
UNIT_TOLERANCE = 1e-3
_NAMED = 5


@dataclass(frozen=True)
class Inspection:
    """Result of :func:`inspect`.

    Attributes:
        source, format, parts, rows: what was read.
        old_dim, side_dim, dtype, side_dtype: its vectors.
        norm_min, norm_median, norm_max: of the finite embeddings, in float64; None if there are none.
        unit_norm: share of rows whose norm is within 0.001 of 1.
        zero_rows, non_finite_rows: rows of zeros only; rows with NaN or infinity in embedding or side-information.
        first_non_finite: where the first few of those lie.
        duplicate_rows: rows whose embedding an earlier row has (by a 64-bit hash); None above 67 M rows.
        ids: dtype of the ids; None without.
        duplicate_ids: rows whose id an earlier row has; None without ids or above 67 M rows.
        columns: role to name; ``other_columns`` are not read.
        model: whose vectors they are, as far as the source, or the user, says.
    """

    source: str
    format: str
    parts: int
    rows: int
    old_dim: int
    side_dim: int | None
    dtype: str
    side_dtype: str | None
    norm_min: float | None
    norm_median: float | None
    norm_max: float | None
    unit_norm: float
    zero_rows: int
    non_finite_rows: int
    first_non_finite: tuple[str, ...]
    duplicate_rows: int | None
    ids: str | None
    duplicate_ids: int | None
    columns: dict[str, str]
    other_columns: tuple[str, ...]
    model: str = "unknown"

    def as_dict(self) -> dict[str, Any]:
        """Return the inspection as strict JSON."""
        lists = {name: list(getattr(self, name)) for name in ("first_non_finite", "other_columns")}
        return asdict(self) | lists


def inspect(
    source: str | Path, options: SourceOptions | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Inspection:
    """Read every row once and count what is unusual.

    Raises:
        GalleryError: the source is malformed, or a row is no vector of the right width.
        UsageError: columns must be named.
    """
    with open_source(source, options) as opened:
        return _inspected(opened, progress)


def _inspected(opened: Source, progress: Callable[[str, int, int], None] | None) -> Inspection:
    schema = opened.schema
    counts = _Counts(schema)
    done = 0
    block = rows_of_block(schema)
    with SourceReader(opened) as reader:
        for part in opened.parts():
            for start in range(0, part.rows, block):
                stop = min(part.rows, start + block)
                old = np.empty((stop - start, schema.old_dim), schema.embedding_dtype)
                side = None
                if schema.side_dim is not None:
                    side = np.empty((stop - start, schema.side_dim), schema.side_dtype)
                rows = reader.at(part)
                rows.read_into(start, stop, old, side)
                counts.add(old, side, None if schema.id_dtype is None else rows.read_ids(start, stop), done)
                done += stop - start
                if progress:
                    progress("inspect", done, schema.rows)
    norms = np.concatenate(counts.norms) if counts.norms else np.empty(0)
    return Inspection(
        str(opened.path),
        kind_of(opened.path),
        len(opened.parts()),
        schema.rows,
        schema.old_dim,
        schema.side_dim,
        schema.embedding_dtype.name,
        None if schema.side_dtype is None else schema.side_dtype.name,
        float(counts.norm_min) if counts.finite else None,
        float(np.median(norms)) if len(norms) else None,
        float(counts.norm_max) if counts.finite else None,
        counts.unit / schema.rows,
        counts.zero,
        counts.non_finite,
        tuple(map(opened.where, counts.named)),
        _repeated(counts.hashes),
        None if schema.id_dtype is None else {"U": "text", "S": "bytes"}.get(schema.id_dtype.kind, "int64"),
        _repeated(counts.ids) if schema.id_dtype is not None else None,
        schema.columns,
        schema.other_columns,
        model_text(opened.model),
    )


class _Counts:
    """What is known of the rows so far."""

    def __init__(self, schema: Schema) -> None:
        words = -(-schema.old_dim * schema.embedding_dtype.itemsize // 4)
        self._weights = np.random.default_rng(0).integers(1, 1 << 63, words, np.uint64) | np.uint64(1)
        self._compared = schema.rows <= MAX_COMPARED
        self._every = -(-schema.rows // MAX_NORMS)
        self.norms: list[NDArray[Any]] = []
        self.hashes: list[NDArray[np.uint64]] | None = [] if self._compared else None
        self.ids: list[NDArray[Any]] | None = [] if self._compared else None
        self.norm_min, self.norm_max = np.inf, 0.0
        self.unit = self.zero = self.non_finite = self.finite = 0
        self.named: list[int] = []

    def add(self, old: NDArray[Any], side: NDArray[Any] | None, ids: NDArray[Any] | None, first: int) -> None:
        """Count a block whose first row is number ``first``."""
        finite = np.isfinite(old).all(axis=1)
        whole = finite if side is None else finite & np.isfinite(side).all(axis=1)
        self.non_finite += int((~whole).sum())
        self.named += (first + np.flatnonzero(~whole)[: _NAMED - len(self.named)]).tolist()
        wide = old[finite].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        self.finite += len(norms)
        if len(norms):
            self.norm_min, self.norm_max = min(self.norm_min, norms.min()), max(self.norm_max, norms.max())
            self.norms.append(norms[(-first) % self._every :: self._every].astype(np.float32))
            self.unit += int((np.abs(norms - 1) <= UNIT_TOLERANCE).sum())
            self.zero += int((norms == 0).sum())
        if self.hashes is not None:
            self.hashes.append(self._hash(old))
        if self.ids is not None and ids is not None:
            self.ids.append(ids if ids.dtype.kind == "i" else np.array([hash(each) for each in ids.tolist()], np.int64))

    def _hash(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        raw = rows.view(np.uint8)
        if pad := -raw.shape[1] % 4:
            raw = np.pad(raw, ((0, 0), (0, pad)))
        hashes: NDArray[np.uint64] = raw.view(np.uint32).astype(np.uint64) @ self._weights
        return hashes


def _repeated(values: list[NDArray[Any]] | None) -> int | None:
    if values is None:
        return None
    whole = np.sort(np.concatenate(values))
    return int((whole[1:] == whole[:-1]).sum())
