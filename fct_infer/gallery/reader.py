"""Rows of a gallery, read into the caller's buffers; never mapped, so a shrinking file is an error, not a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, GalleryError
from fct_infer.gallery.layout import Shard
from fct_infer.gallery.source import Part
from fct_infer.storage import NpyHeader, ReadFile, read_npy_header
from fct_infer.storage.closing import closed_if_refused


class RowFile:
    """One open .npy file whose entries along the first axis are read by number. A context manager.

    Raises:
        GalleryError: it cannot be read, or holds not so many rows.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self._file = ReadFile(path)
        with closed_if_refused(self._file):
            self.header: NpyHeader = read_npy_header(self._file)
            if self.header.shape[:1] != (rows,):
                raise GalleryError(f"{path}: has changed: it had {rows} rows, now its shape is {self.header.shape}")

    def read_into(self, start: int, stop: int, out: NDArray[Any], name: str) -> None:
        """Fill ``out``, which ``name`` stands for in messages, with entries ``start`` to ``stop``."""
        wanted = (stop - start, *self.header.shape[1:])
        if out.shape != wanted or out.dtype != self.header.dtype or not out.flags.c_contiguous:
            layout = "C-contiguous" if out.flags.c_contiguous else "not C-contiguous"
            raise ArrayError(
                f"{name} is {out.dtype} {out.shape}, {layout}; wanted {self.header.dtype} {wanted}, C-contiguous"
            )
        if not 0 <= start < stop <= self.header.shape[0]:
            raise ArrayError(f"rows {start} to {stop} asked for; {self._file.path} has {self.header.shape[0]}")
        # A view of bytes: the buffer protocol knows neither float16 of every kind nor fixed-width str.
        self._file.read_into(out.view(np.uint8).data, self.header.data_offset + start * self.header.row_bytes)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return entries ``start`` to ``stop`` in a new array."""
        out = np.empty((stop - start, *self.header.shape[1:]), self.header.dtype)
        self.read_into(start, stop, out, "out")
        return out

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ShardReader:
    """The open files of one shard. Use as a context manager, from any thread.

    Raises:
        GalleryError: a file cannot be read, or has changed since the gallery was opened.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        # Once: a shard makes a path whenever it is asked for one, which takes as long as reading a row.
        self._embeddings, self._side, self._ids = shard.embeddings, shard.side_information, shard.ids
        self._files: dict[Path, RowFile] = {}

    def read_into(self, start: int, stop: int, old: NDArray[Any], side: NDArray[Any] | None) -> None:
        """Fill ``old`` (stop - start, old_dim) and ``side`` (stop - start, side_dim) with rows ``start`` to ``stop``.

        Both must be C-contiguous and of the stored dtype; ``side`` is None if the side-information is not wanted.
        The GIL is released while reading.

        Raises:
            ArrayError: a buffer does not fit, or ``side`` is given and the gallery has none.
        """
        self._open(self._embeddings).read_into(start, stop, old, "old")
        if side is not None:
            if self._side is None:
                raise ArrayError(f"side is given, but {self._embeddings} has no side-information")
            self._open(self._side).read_into(start, stop, side, "side")

    def read_ids(self, start: int, stop: int) -> NDArray[Any]:
        """Return the ids of rows ``start`` to ``stop`` as stored; row numbers over all shards if there are none."""
        if self._ids is None:
            return np.arange(self.shard.first_row + start, self.shard.first_row + stop, dtype=np.int64)
        return self._open(self._ids).read(start, stop)

    def read_embeddings(self, start: int, stop: int) -> NDArray[Any]:
        """Return the embeddings of rows ``start`` to ``stop`` in a new array of the stored dtype."""
        return self._open(self._embeddings).read(start, stop)

    def read_side_information(self, start: int, stop: int) -> NDArray[Any] | None:
        """Return the side-information of rows ``start`` to ``stop`` in a new array; None if there is none."""
        return None if self._side is None else self._open(self._side).read(start, stop)

    def move_to(self, part: Part) -> bool:
        """See :class:`~fct_infer.gallery.source.PartReader`: another shard is other files."""
        return part == self.shard

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        while self._files:
            self._files.popitem()[1].close()

    def _open(self, path: Path) -> RowFile:
        if path not in self._files:
            self._files[path] = RowFile(path, self.shard.rows)
        return self._files[path]

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_npy(path: Path) -> NDArray[Any]:
    """Return one whole ``.npy`` file of numbers or fixed-width strings.

    Raises:
        GalleryError: missing, malformed or truncated; names the file.
    """
    with ReadFile(path) as file:
        header = read_npy_header(file)
        array = np.empty(header.shape, header.dtype)
        if array.size:
            file.read_into(array.reshape(-1).view(np.uint8), header.data_offset)
    return array
