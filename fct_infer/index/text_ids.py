"""The text ids of a published gallery: an index knows row numbers, and this turns them into the gallery's own ids."""

from __future__ import annotations

from bisect import bisect_right
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError
from fct_infer.storage import ReadFile, read_npy_header, sha256_of_file

_PAGE = 256  # ids read at once


class TextIds:
    """Ids by row number over all shards; a shard is opened, and its digest checked, when an id of it is first needed.

    Args:
        digests: path of each shard's ids, in the order of the rows, with its SHA-256.

    Raises:
        ArtifactError: a file is damaged.
        GalleryError: a file is missing or malformed.
    """

    def __init__(self, digests: dict[Path, str]) -> None:
        self._digests = list(digests.items())
        self._unchecked = set(range(len(self._digests)))
        self._headers, self._first_rows, self.rows = [], list[int](), 0
        for path in digests:
            with ReadFile(path) as file:
                header = read_npy_header(file)
            self._headers.append(header)
            self._first_rows.append(self.rows)
            self.rows += header.shape[0]
        self.dtype = max((header.dtype for header in self._headers), key=lambda dtype: dtype.itemsize)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the ids of some rows, in the shape given; empty for row -1."""
        wanted, inverse = np.unique(rows, return_inverse=True)
        found = np.zeros(wanted.shape, self.dtype)
        first = int(np.searchsorted(wanted, 0))
        places = [(bisect_right(self._first_rows, row) - 1, row) for row in wanted[first:].tolist()]
        position = first
        for shard, group in groupby(places, key=lambda place: place[0]):
            numbers = np.array([row - self._first_rows[shard] for _, row in group])
            found[position : position + len(numbers)] = self._read(shard, numbers)
            position += len(numbers)
        return found[inverse].reshape(rows.shape)

    def _read(self, shard: int, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Return the ids of sorted row numbers within a shard."""
        path, sha256 = self._digests[shard]
        if shard in self._unchecked:
            if sha256_of_file(path) != sha256:
                raise ArtifactError(f"{path}: is damaged: its SHA-256 is not the one in manifest.json")
            self._unchecked.discard(shard)
        header = self._headers[shard]
        found = np.empty(len(numbers), header.dtype)
        pages, starts = np.unique(numbers // _PAGE, return_index=True)
        with ReadFile(path) as file:
            for page, begin, end in zip(pages.tolist(), starts, [*starts[1:], len(numbers)], strict=True):
                count = min(_PAGE, header.shape[0] - page * _PAGE)
                offset = header.data_offset + page * _PAGE * header.row_bytes
                ids = np.frombuffer(file.read(count * header.row_bytes, offset), header.dtype)
                found[begin:end] = ids[numbers[begin:end] - page * _PAGE]
        return found
