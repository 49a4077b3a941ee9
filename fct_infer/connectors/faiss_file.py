"""A FAISS index as the gallery: the vectors it holds exactly, in the order of their ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import SourceOptions, check_shape, optional
from fct_infer.connectors.parted import PartedSource
from fct_infer.errors import FctError, GalleryError, UsageError
from fct_infer.gallery.source import Schema
from fct_infer.storage import ReadFile, RemotePath, read_error

_BUFFER_BYTES = 1 << 20
_LOOPS = 1 << 24  # more repetitions than this are asked for by damaged files only


class FaissSource(PartedSource):
    """An index file, loaded whole (a FAISS index is one).

    Raises:
        UsageError: it holds its vectors approximately and ``lossy`` is not set.
        GalleryError: it cannot be read, or its vectors cannot be had by id.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        index = _read(path)
        self._rows, ids, dtype = _by_id(path, index, options.lossy)
        rows, dim = int(index.ntotal), int(index.d)
        check_shape(rows, dim, str(path))
        self.ids = None if ids is None or np.array_equal(ids, np.arange(rows)) else ids
        schema = Schema(rows, dim, dtype, id_dtype=None if self.ids is None else np.dtype(np.int64))
        super().__init__(path, schema)

    def open_column(self, role: str) -> _Column:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        return _Column(self.path, self._rows if role == "embedding" else self._ids_of)

    def _ids_of(self, start: int, stop: int) -> NDArray[Any]:
        assert self.ids is not None
        return self.ids[start:stop].copy()


@dataclass(frozen=True)
class _Column:
    """Vectors or ids, had from the index that is held."""

    path: Path
    rows: Callable[[int, int], NDArray[Any]]

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        out[:] = self.read(start, stop)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            return self.rows(start, stop)
        except RuntimeError as error:
            raise GalleryError(f"{self.path}, rows {start} to {stop}: cannot be had: {error}") from error

    def close(self) -> None:
        pass


def _read(path: Path) -> Any:
    """Load an index; what it may ask for is bounded by its file, as it comes from outside."""
    faiss = optional("faiss", "cpu")
    if not isinstance(path, RemotePath):
        with ReadFile(path) as file:
            size = file.size
        return _loaded(path, size, str(path))  # FAISS reads it itself, with less work than through Python
    with ReadFile(path) as file:
        stream = _Stream(file)
        try:
            return _loaded(path, file.size, faiss.PyCallbackIOReader(stream.read, _BUFFER_BYTES))
        except (FctError, RuntimeError) as error:
            raise stream.error or error from None


class _Stream:
    """An object read from front to back, as FAISS asks for it; what fails is kept, for FAISS has no words for it."""

    def __init__(self, file: ReadFile) -> None:
        self._file, self._at = file, 0
        self.error: FctError | None = None

    def read(self, count: int) -> bytes:
        try:
            data = self._file.read(count, self._at)
        except FctError as error:
            self.error = error
            raise
        self._at += count
        return data


def _loaded(path: Path, size: int, source: Any) -> Any:
    """Load an index from what FAISS can read."""
    faiss = optional("faiss", "cpu")
    limits = (
        ("vector_byte", max(size, 1 << 20)),
        ("loop", _LOOPS),
    )
    before = {}
    for name, value in limits:
        if hasattr(faiss, setter := f"set_deserialization_{name}_limit"):  # FAISS 1.14 and newer
            before[setter] = getattr(faiss, f"get_deserialization_{name}_limit")()
            getattr(faiss, setter)(value)
    try:
        return faiss.read_index(source, faiss.IO_FLAG_READ_ONLY)
    except (RuntimeError, MemoryError) as error:
        words = str(error).partition(" at /")[2].partition(": ")[2] or str(error)
        raise read_error(f"{path}: cannot be read as a FAISS index: {words.strip()}", error) from error
    finally:
        for setter, value in before.items():
            getattr(faiss, setter)(value)


def _by_id(
    path: Path, index: Any, lossy: bool
) -> tuple[Callable[[int, int], NDArray[Any]], NDArray[np.int64] | None, np.dtype[Any]]:
    """Return a function from rows to vectors, the rows' ids (None: their numbers), and the dtype that is exact."""
    faiss = optional("faiss", "cpu")
    ids, owner = None, index
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        ids = faiss.vector_to_array(index.id_map).copy()
        if len(ids) != index.ntotal:
            raise GalleryError(f"{path}: has {len(ids)} ids for {index.ntotal} vectors")
        index = faiss.downcast_index(index.index)
    exact = _exact_dtype(index)
    if exact is None and not lossy:
        name = type(index).__name__
        raise UsageError(
            f"{path}: {name} holds its vectors approximately; --lossy takes them as they are, better is the original"
        )
    if isinstance(index, faiss.IndexIVF):
        stored = _ivf_ids(path, index)
        index.make_direct_map(True) if _is_sequence(stored) else index.set_direct_map_type(faiss.DirectMap.Hashtable)
        order = np.sort(stored)
        if ids is not None and len(order) and not 0 <= order[0] <= order[-1] < len(ids):
            raise GalleryError(f"{path}: its lists name vector {order[-1]} of {len(ids)}")
        rows = _batch(index, order, owner)
        ids = order if ids is None else ids[order]
        return rows, ids, exact or np.dtype(np.float32)
    return _run(index, owner), ids, exact or np.dtype(np.float32)


def _exact_dtype(index: Any) -> np.dtype[Any] | None:
    """Return the dtype in which an index holds its vectors bit for bit; None if it does not."""
    faiss = optional("faiss", "cpu")
    if isinstance(index, faiss.IndexHNSW):  # a graph over what holds them
        return _exact_dtype(faiss.downcast_index(index.storage))
    if isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat):
        return np.dtype(np.float32)
    is_scalar = isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer)
    if is_scalar and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16 and not getattr(index, "by_residual", False):
        return np.dtype(np.float16)
    return None


def _ivf_ids(path: Path, index: Any) -> NDArray[np.int64]:
    faiss = optional("faiss", "cpu")
    lists = faiss.downcast_InvertedLists(index.invlists)
    if not isinstance(lists, faiss.ArrayInvertedLists):
        raise GalleryError(f"{path}: {type(lists).__name__} lie in other files, which are not followed")
    found = [
        faiss.rev_swig_ptr(lists.get_ids(each), lists.list_size(each)).copy()
        for each in range(lists.nlist)
        if lists.list_size(each)
    ]
    ids: NDArray[np.int64] = np.concatenate(found) if found else np.empty(0, np.int64)
    if len(ids) != index.ntotal:
        raise GalleryError(f"{path}: has {len(ids)} vectors in its lists, {index.ntotal} were announced")
    if len(np.unique(ids)) != len(ids):
        raise GalleryError(f"{path}: two vectors have the same id, so they cannot be told apart")
    return ids


def _is_sequence(ids: NDArray[np.int64]) -> bool:
    return bool(len(ids) and ids.min() == 0 and ids.max() == len(ids) - 1)


def _batch(index: Any, order: NDArray[np.int64], owner: Any) -> Callable[[int, int], NDArray[Any]]:
    def rows(start: int, stop: int) -> NDArray[Any]:
        assert owner is not None  # FAISS frees an inner index with the outermost one
        found: NDArray[Any] = index.reconstruct_batch(order[start:stop])
        return found

    return rows


def _run(index: Any, owner: Any) -> Callable[[int, int], NDArray[Any]]:
    def rows(start: int, stop: int) -> NDArray[Any]:
        assert owner is not None  # as above
        found: NDArray[Any] = index.reconstruct_n(start, stop - start)
        return found

    return rows
