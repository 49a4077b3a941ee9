"""Which row of a gallery is in which inverted list of the index it has now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError
from fct_infer.gallery import read_manifest
from fct_infer.index.builder import INDEX_NAME, load_index_file
from fct_infer.index.faiss_module import faiss, inner_indexes, ivf_of
from fct_infer.index.sharded import SHARDED_NAME, load_sharded
from fct_infer.storage import sha256_of_file


@dataclass(frozen=True)
class OldLists:
    """Which inverted list of an old index each of its rows is in.

    Attributes:
        path, sha256: the index file and its digest.
        count: lists.
        labels: (n,) int64, sorted: the ids under which the old index holds its rows.
        lists: (n,) int32 of the same rows.
    """

    path: Path
    sha256: str
    count: int
    labels: NDArray[np.int64]
    lists: NDArray[np.int32]

    def of(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lists (n,) of some rows, by their labels, or by their numbers where the old index knows these.

        Raises:
            UsageError: the old index does not hold one of them.
        """
        places = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        if not (missing := self.labels[places] != labels).any():
            return self.lists[places].astype(np.int64)
        if np.array_equal(self.labels, np.arange(len(self.labels))):
            return self.lists[rows].astype(np.int64)
        raise UsageError(
            f"{self.path}: does not hold id {labels[missing][0]} of the gallery, so its lists are not known; "
            "wanted the index of the old embeddings, under the gallery's ids or row numbers"
        )


def read_old_lists(path: str | Path, rows: int) -> OldLists:
    """Read which row is in which list of an index: a FAISS file that is trusted, or a published folder.

    Args:
        path: of the index.
        rows: of the gallery, which it has to hold.

    Raises:
        ArtifactError: it cannot be read.
        UsageError: it is no inverted file, holds another number of rows, or several under one id.
    """
    path = Path(path)
    path = path / _index_of(path) if path.is_dir() else path
    sha256 = sha256_of_file(path)
    index = (
        load_sharded(path.parent, read_manifest(path.parent)) if path.name == SHARDED_NAME else load_index_file(path)
    )
    ivf = ivf_of(index)
    if ivf is None:
        raise UsageError(f"{path}: is {type(index).__name__}, which has no inverted lists to begin with; wanted IVF")
    if index.ntotal != rows:
        raise UsageError(f"{path}: holds {index.ntotal:,} rows, the gallery {rows:,}; wanted the index of its rows")
    labels, lists = _members(ivf)
    for outer in reversed(inner_indexes(index)[:-1]):
        if isinstance(outer, faiss().IndexIDMap | faiss().IndexIDMap2):
            labels = faiss().vector_to_array(outer.id_map)[labels]
    order = np.argsort(labels, kind="stable")
    labels, lists = labels[order], lists[order]
    if len(labels) != rows or (labels[1:] == labels[:-1]).any():
        raise UsageError(
            f"{path}: holds {rows:,} rows under {len(np.unique(labels)):,} ids, which do not tell them apart"
        )
    return OldLists(path, sha256, int(ivf.nlist), labels, lists)


def _index_of(folder: Path) -> str:
    return SHARDED_NAME if (folder / SHARDED_NAME).exists() and not (folder / INDEX_NAME).exists() else INDEX_NAME


def _members(ivf: Any) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the ids of an inverted file's rows, list by list, and the lists."""
    module, inverted = faiss(), ivf.invlists
    sizes = np.array([inverted.list_size(number) for number in range(ivf.nlist)], np.int64)
    ids = []
    for number in np.flatnonzero(sizes).tolist():
        there = inverted.get_ids(number)
        ids.append(module.rev_swig_ptr(there, int(sizes[number])).copy())
        inverted.release_ids(number, there)  # of an index in shards it was put together for us
    found = np.concatenate(ids) if ids else np.empty(0, np.int64)
    return found, np.repeat(np.arange(ivf.nlist, dtype=np.int32), sizes)
