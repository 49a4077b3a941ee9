"""Rows that lie in a file one after the other, uncompressed: .npy, fbin, fvecs, safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import read_dtype
from fct_infer.connectors.parted import PartedSource
from fct_infer.errors import GalleryError
from fct_infer.gallery.source import Schema
from fct_infer.storage import ReadFile

_PIECE_BYTES = 4 << 20
_PREFIX = 4  # bytes of the width before every row of fvecs and its kind


@dataclass(frozen=True)
class RawRows:
    """Where rows lie.

    Attributes:
        path, offset: file, and the byte its first row begins at.
        rows, dim, dtype: what lies there.
        prefixed: every row begins with its width as int32.
        bfloat16: the upper halves of float32; ``dtype`` is uint16.
    """

    path: Path
    offset: int
    rows: int
    dim: int
    dtype: np.dtype[Any]
    prefixed: bool = False
    bfloat16: bool = False

    @property
    def stride(self) -> int:
        """Bytes from a row to the next."""
        return self.dim * self.dtype.itemsize + _PREFIX * self.prefixed

    def dtype_read(self, allow_cast: bool) -> np.dtype[Any]:
        """Return the dtype that the rows are read as; see :func:`~fct_infer.connectors.options.read_dtype`."""
        return np.dtype(np.float32) if self.bfloat16 else read_dtype(self.dtype, str(self.path), allow_cast)


class RawFile:
    """One open file of rows, read anywhere."""

    def __init__(self, where: RawRows) -> None:
        self.rows, self._file = where, ReadFile(where.path)

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with rows ``start`` to ``stop``; a value that its dtype cannot hold becomes infinite."""
        rows = self.rows
        if out.dtype == rows.dtype and not rows.prefixed:
            self._file.read_into(out.view(np.uint8).data, rows.offset + start * rows.stride)
            return
        step = max(1, _PIECE_BYTES // rows.stride)
        with np.errstate(over="ignore"):
            for first in range(start, stop, step):
                end = min(stop, first + step)
                out[first - start : end - start] = self._values(first, end)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the first value of rows ``start`` to ``stop`` as stored: (n,) ids."""
        return self._values(start, stop)[:, 0]

    def _values(self, start: int, stop: int) -> NDArray[Any]:
        rows = self.rows
        raw = np.empty((stop - start, rows.stride), np.uint8)
        self._file.read_into(raw, rows.offset + start * rows.stride)
        if rows.prefixed:
            widths = raw[:, :_PREFIX].copy().view("<i4")[:, 0]
            if (wrong := widths != rows.dim).any():
                row = int(np.argmax(wrong))
                raise GalleryError(f"{rows.path}, row {start + row}: is {widths[row]} wide, row 0 is {rows.dim}")
            raw = np.ascontiguousarray(raw[:, _PREFIX:])
        values: NDArray[Any] = raw.view(rows.dtype)
        return (values.astype(np.uint32) << 16).view(np.float32) if rows.bfloat16 else values

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RawSource(PartedSource):
    """One file, or arrays of one file that have the same rows."""

    def __init__(
        self,
        old: RawRows,
        side: RawRows | None = None,
        ids: RawRows | None = None,
        *,
        allow_cast: bool = False,
        columns: dict[str, str] | None = None,
        other: tuple[str, ...] = (),
    ) -> None:
        self._rows = {"embedding": old, "side": side, "id": ids}
        id_dtype = None
        if ids is not None:
            id_dtype = ids.dtype if ids.dtype.kind in "SU" else np.dtype(np.int64)
        schema = Schema(
            old.rows,
            old.dim,
            old.dtype_read(allow_cast),
            None if side is None else side.dim,
            None if side is None else side.dtype_read(allow_cast),
            id_dtype,
            columns or {},
            other,
        )
        super().__init__(old.path, schema)

    def open_column(self, role: str) -> RawFile:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        rows = self._rows[role]
        assert rows is not None
        return RawFile(rows)
