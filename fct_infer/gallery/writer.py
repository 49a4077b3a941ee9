"""Writing galleries: one shard of known length, or a whole gallery from batches of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, OutputError
from fct_infer.gallery.npy import npy_header_bytes
from fct_infer.storage import DigestedFile, DurableWriter

Array = NDArray[Any]


class NpyShardWriter:
    """Write a (rows, dim) ``.npy`` file block by block; it has its name only once it is whole and durable."""

    def __init__(self, path: str | Path, rows: int, dim: int, dtype: np.dtype[Any]) -> None:
        self.rows, self._written, self._dim, self._dtype = rows, 0, dim, dtype
        self._file = DurableWriter(path)
        self._file.write(npy_header_bytes((rows, dim), dtype))

    def write_rows(self, block: Array) -> None:
        """Append rows (n, dim) of the shard's dtype, C-contiguous."""
        if block.dtype != self._dtype or block.shape[1:] != (self._dim,) or not block.flags.c_contiguous:
            raise ArrayError(
                f"block is {block.dtype} {block.shape}, wanted C-contiguous {self._dtype} (n, {self._dim})"
            )
        self._file.write(block)
        self._written += len(block)

    def commit(self) -> DigestedFile:
        """Give the file its name.

        Raises:
            ArrayError: fewer or more rows were written than announced.
        """
        if self._written != self.rows:
            raise ArrayError(f"{self._file.path}: {self._written} rows were written, {self.rows} announced")
        return self._file.commit()

    def abort(self) -> None:
        """Drop what was written."""
        self._file.abort()


def write_npy(path: str | Path, array: Array) -> DigestedFile:
    """Write an array as a whole, durable ``.npy`` file in C order."""
    contiguous = np.ascontiguousarray(array)
    with DurableWriter(path) as file:
        file.write(npy_header_bytes(contiguous.shape, contiguous.dtype))
        if contiguous.size:
            file.write(contiguous.view(np.uint8) if contiguous.dtype.kind in "SU" else contiguous)
        return file.commit()


class GalleryWriter:
    """Write a gallery from batches of any size, as shards ``000000.npy`` ... of ``rows_per_shard`` rows.

    Use as a context manager; the last, shorter shard is written when the block ends without an exception.

    Raises:
        OutputError: the folder exists and is not empty.
        ArrayError: a batch does not fit the first one.
    """

    def __init__(self, path: str | Path, rows_per_shard: int = 1_000_000) -> None:
        self.path, self._rows_per_shard = Path(path), rows_per_shard
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputError(f"{self.path}: exists already")
        self._pending: dict[str, list[Array]] = {}
        self._pending_rows, self._shards = 0, 0

    def append(self, embeddings: Array, side_information: Array | None = None, ids: Array | None = None) -> None:
        """Add rows: embeddings (n, d_old), side_information (n, d_side), float32 or float16; ids (n,)."""
        batch = {"embeddings": embeddings, "side_information": side_information, "ids": ids}
        given = {name: array for name, array in batch.items() if array is not None}
        self._check(given)
        for name, array in given.items():
            self._pending.setdefault(name, []).append(array)
        self._pending_rows += len(embeddings)
        while self._pending_rows >= self._rows_per_shard:
            self._write_shard(self._rows_per_shard)

    def _check(self, given: dict[str, Array]) -> None:
        if self._pending and given.keys() != self._pending.keys():
            raise ArrayError(f"this batch has {', '.join(given)}, earlier ones {', '.join(self._pending)}")
        for name, array in given.items():
            if len(array) != len(given["embeddings"]):
                raise ArrayError(f"{name} has {len(array)} rows, embeddings has {len(given['embeddings'])}")
            wanted = (
                array.ndim == 1 if name == "ids" else array.ndim == 2 and array.dtype.name in ("float32", "float16")
            )
            first = self._pending[name][0] if self._pending.get(name) else array
            if not wanted or array.shape[1:] != first.shape[1:] or array.dtype.kind != first.dtype.kind:
                raise ArrayError(f"{name} is {array.dtype} {array.shape}; wanted float (n, dim) like earlier, ids (n,)")

    def _write_shard(self, rows: int) -> None:
        for folder, arrays in self._pending.items():
            joined = np.concatenate(arrays)
            write_npy(self.path / folder / f"{self._shards:06d}.npy", joined[:rows])
            self._pending[folder] = [joined[rows:]]
        self._pending_rows -= rows
        self._shards += 1

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._pending_rows:
            self._write_shard(self._pending_rows)
