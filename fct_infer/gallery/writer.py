"""Galleries and .npy files, written through ``storage``: each file appears whole, durable and with its digest known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.gallery.layout import EMBEDDING_DTYPES
from fct_infer.gallery.source import Part, Source, SourceReader
from fct_infer.storage import DigestedFile, DurableWriter, copy_file, npy_header_bytes

_ID_ROWS = 1 << 18  # read at once


def write_npy(path: str | Path, array: NDArray[Any]) -> DigestedFile:
    """Write one C-contiguous array of numbers or fixed-width strings as a durable .npy file.

    Raises:
        ArrayError: the array is not C-contiguous or holds objects.
        ResourceError: disk full or another I/O error.
    """
    if array.dtype.hasobject or not array.flags.c_contiguous:
        raise ArrayError(f"array is {array.dtype} {array.shape}; wanted a C-contiguous array without Python objects")
    with DurableWriter(path) as writer:
        writer.write(npy_header_bytes(array.shape, array.dtype))
        writer.write(_bytes_of(array))
        return writer.commit()


def write_ids(path: str | Path, source: Source, reader: SourceReader, part: Part) -> DigestedFile:
    """Write the ids of a part as a durable .npy file: the file they lie in as it is, or what ``reader`` reads.

    Raises:
        GalleryError: they cannot be read; names file and row.
        ResourceError: disk full or another I/O error.
    """
    file = source.ids_file(part)
    if file is not None:
        return copy_file(file, path)
    starts = range(0, part.rows, _ID_ROWS)
    return write_npy(
        path, np.concatenate([reader.at(part).read_ids(start, min(start + _ID_ROWS, part.rows)) for start in starts])
    )


class NpyShardWriter(DurableWriter):
    """One shard of ``rows`` rows, written block by block.

    Raises:
        ArrayError: a block does not fit, or fewer or more rows than promised were written.
        ResourceError: disk full or another I/O error.
    """

    def __init__(self, path: str | Path, rows: int, dim: int, dtype: np.dtype[Any]) -> None:
        super().__init__(path)
        self._shape, self._dtype, self._written = (rows, dim), np.dtype(dtype), 0
        self.write(npy_header_bytes(self._shape, self._dtype))

    def write_rows(self, block: NDArray[Any]) -> None:
        """Append a C-contiguous (n, dim) block; the GIL is released while hashing and writing."""
        rows, dim = self._shape
        if block.ndim != 2 or block.shape[1] != dim or block.dtype != self._dtype or not block.flags.c_contiguous:
            raise ArrayError(f"block is {block.dtype} {block.shape}, wanted C-contiguous {self._dtype} (n, {dim})")
        if self._written + len(block) > rows:
            raise ArrayError(f"{self.path}: row {self._written + len(block)} written, promised {rows}")
        self.write(_bytes_of(block))
        self._written += len(block)

    def commit(self) -> DigestedFile:
        """Make the shard durable under its name; all rows must have been written."""
        if self._written != self._shape[0]:
            raise ArrayError(f"{self.path}: {self._written} rows written, promised {self._shape[0]}")
        return super().commit()


class GalleryWriter:
    """A new gallery, filled by any sizes of batches and cut into shards ``000000.npy``, ``000001.npy`` ...

    Use as a context manager: the last, shorter shard is written at the end of the block, or dropped if it raises.

    Args:
        path: folder to create; must not hold a gallery yet.
        rows_per_shard: rows of every shard but the last.
        dtype: of embeddings and side-information: float32 (default) or float16. Batches must have it.

    Raises:
        ArrayError: a batch does not fit the ones before it, or ``path`` holds a gallery already.
        ResourceError: disk full or another I/O error.
    """

    def __init__(self, path: str | Path, rows_per_shard: int = 1 << 20, dtype: Any = np.float32) -> None:
        self.path, self.rows_per_shard, self.dtype = Path(path), rows_per_shard, np.dtype(dtype)
        if rows_per_shard < 1:
            raise ArrayError(f"rows_per_shard is {rows_per_shard}, wanted at least 1")
        if self.dtype not in EMBEDDING_DTYPES:
            raise ArrayError(f"dtype is {self.dtype}, wanted float32 or float16")
        if any((self.path / folder).exists() for folder in ("embeddings", "side_information", "ids")):
            raise ArrayError(f"{self.path}: holds a gallery already")
        self.rows = 0
        self._shards = 0
        self._pending: dict[str, list[NDArray[Any]]] = {}
        self._pending_rows = 0

    def append(
        self,
        embeddings: NDArray[Any],
        side_information: NDArray[Any] | None = None,
        ids: NDArray[Any] | None = None,
    ) -> None:
        """Add embeddings (n, old_dim), side_information (n, side_dim) and ids (n,) int64, bytes or str."""
        batch = {"embeddings": embeddings, "side_information": side_information, "ids": ids}
        given = {name: array for name, array in batch.items() if array is not None}
        self._check(given)
        for name, array in given.items():
            self._pending.setdefault(name, []).append(
                np.array(array, order="C")
            )  # a copy: the caller may reuse its buffer
        self.rows += len(embeddings)
        self._pending_rows += len(embeddings)
        while self._pending_rows >= self.rows_per_shard:
            self._write_shard(self.rows_per_shard)

    def close(self) -> None:
        """Write what is left as the last shard."""
        if self._pending_rows:
            self._write_shard(self._pending_rows)

    def _check(self, given: dict[str, NDArray[Any]]) -> None:
        if self._pending and set(given) != set(self._pending):
            raise ArrayError(f"this batch has {', '.join(given)}; the ones before had {', '.join(self._pending)}")
        rows = len(given["embeddings"])
        for name, array in given.items():
            before = self._pending[name][0] if name in self._pending else None
            if name == "ids":
                fits = array.ndim == 1 and (array.dtype == np.int64 or array.dtype.kind in "SU")
                fits &= before is None or before.dtype.kind == array.dtype.kind
                wanted = "(n,) int64, bytes or str, as in the batches before"
            else:
                fits = array.ndim == 2 and array.dtype == self.dtype and array.shape[1] > 0
                fits &= before is None or before.shape[1:] == array.shape[1:]
                wanted = f"(n, {'dim' if before is None else before.shape[1]}) {self.dtype}"
            if not fits or len(array) != rows:
                raise ArrayError(f"{name} is {array.dtype} {array.shape}, wanted {wanted} with {rows} rows")

    def _write_shard(self, rows: int) -> None:
        name = f"{self._shards:06d}.npy"
        for folder, batches in self._pending.items():
            whole = batches[0] if len(batches) == 1 else np.concatenate(batches)
            write_npy(self.path / folder / name, whole[:rows])
            self._pending[folder] = [whole[rows:]]
        self._shards += 1
        self._pending_rows -= rows

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array; the buffer protocol does not carry every dtype."""
    return array.reshape(-1).view(np.uint8).data
