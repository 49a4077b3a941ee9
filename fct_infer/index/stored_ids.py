"""The ids of a published gallery that FAISS has no place for: its index knows row numbers, and this turns them back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError
from fct_infer.gallery.ids import nothing_found
from fct_infer.gallery.manifest import GalleryManifest
from fct_infer.storage import ReadFile, read_npy_header


class StoredIds:
    """Ids by row number over all shards, held in memory as the index is.

    Args:
        shards: the ids of each, in the order of the rows: integers, bytes or str.
        binary: return ids of bytes whole, with the NULs at their end, as objects.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], binary: bool = False) -> None:
        self._shards, self._binary = list(shards), binary
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.rows = int(self._ends[-1])
        # Of one kind; a text shard may be narrower than another, an integer shard as well.
        self.dtype = np.result_type(*{shard.dtype for shard in shards})
        if self.dtype.kind in "iu" and self.dtype != np.uint64:
            self.dtype = np.dtype(np.int64)

    def exchanged(self, gone: NDArray[np.int64], ids: NDArray[Any]) -> tuple[StoredIds, NDArray[np.int64]]:
        """Return ids of which some rows are others, and the row numbers these have: first those of ``gone``.

        So row numbers do not grow for ever while rows come and go.
        """
        rows = np.concatenate([gone[: len(ids)], np.arange(self.rows, self.rows + max(0, len(ids) - len(gone)))])
        whole = np.full(max(self.rows, int(rows.max(initial=-1)) + 1), nothing_found(self.dtype), self.dtype)
        whole[: self.rows] = self.array
        whole = whole.astype(np.promote_types(whole.dtype, ids.dtype))
        whole[gone] = nothing_found(whole.dtype)
        whole[rows] = ids
        return StoredIds([whole], self._binary), rows

    @property
    def array(self) -> NDArray[Any]:
        """All ids (rows,) in their order."""
        return np.concatenate(self._shards)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the ids of some rows, in the shape given; for row -1 what stands for nothing found."""
        wanted, inverse = np.unique(rows, return_inverse=True)
        found = np.full(wanted.shape, nothing_found(self.dtype), object if self._binary else self.dtype)
        numbers = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(numbers[wanted >= 0]).tolist():
            shard = self._shards[number]
            chosen = (numbers == number) & (wanted >= 0)
            ids = shard[wanted[chosen] - (self._ends[number] - len(shard))]
            if self._binary:
                found[chosen] = [each.ljust(shard.dtype.itemsize, b"\0") for each in ids.tolist()]
            else:
                found[chosen] = ids
        return found[inverse].reshape(rows.shape)


def load_ids(dest: Path, manifest: GalleryManifest) -> StoredIds | None:
    """Read the ids of a published gallery, checking their digests; None if its index holds them itself, or has none.

    Raises:
        ArtifactError: a file is damaged, or there are more or fewer ids than rows.
        GalleryError: a file is missing or malformed.
    """
    names = _names(manifest)
    if not names or manifest.ids in ("rows", "labels"):
        return None
    if manifest.ids is None:  # of the first release: integers were labels, all else text
        with ReadFile(dest / names[0]) as file:
            if read_npy_header(file).dtype.kind == "i":
                return None
    return _load(dest, manifest)


def load_all_ids(dest: Path, manifest: GalleryManifest) -> StoredIds | None:
    """Like :func:`load_ids`, also where the index holds the ids itself, for who searches without it."""
    return _load(dest, manifest) if _names(manifest) else None


def _names(manifest: GalleryManifest) -> list[str]:
    return sorted(name for name in manifest.files if name.startswith("ids/"))


def _load(dest: Path, manifest: GalleryManifest) -> StoredIds:
    shards = [_read(dest / name, manifest.files[name].sha256) for name in _names(manifest)]
    if len({"i" if shard.dtype.kind in "iu" else shard.dtype.kind for shard in shards}) > 1:
        raise ArtifactError(f"{dest / 'ids'}: holds ids of several kinds")
    ids = StoredIds(shards, binary=manifest.ids == "binary")
    if ids.rows != manifest.rows:
        raise ArtifactError(f"{dest / 'ids'}: holds {ids.rows} ids, manifest.json says {manifest.rows} rows")
    return ids


def _read(path: Path, sha256: str) -> NDArray[Any]:
    """Return all ids of a shard; what is returned is what was digested."""
    with ReadFile(path) as file:
        header = read_npy_header(file)
        data = file.read(file.size)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{path}: is damaged: its SHA-256 is not the one in manifest.json")
    if len(header.shape) != 1 or header.dtype.kind not in "iuSU":
        raise ArtifactError(f"{path}: holds {header.dtype} {header.shape}, wanted ids (rows,)")
    return np.frombuffer(data, header.dtype, offset=header.data_offset)
