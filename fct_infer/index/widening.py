"""The same queries searched with more and more lists, each list once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError
from fct_infer.index.builder import Ids, IndexBuilder
from fct_infer.index.faiss_module import faiss, faiss_errors, faiss_threads, inner_indexes, transforms_of
from fct_infer.transformation import Float32Array

_LISTS_AHEAD = 4  # nearest lists are looked up for as many times the nprobe asked for
_OVER_QUERIES = 3  # FAISS's parallel_mode that shares queries out to threads here, too, where its default uses one
_ROUNDING = 1e-4  # share of a distance by which two ways of computing it may differ


@dataclass(frozen=True)
class Wanted:
    """Rows that searches should find.

    Attributes:
        queries: (p,) the query that each should be found for, sorted.
        ids: (p,) under which the index holds them.
        rows: (p, dim) float32, as they were added.
    """

    queries: NDArray[np.int64]
    ids: Ids
    rows: Float32Array


class Widening:
    """Searches of one index, of which each goes on where the one with fewer lists ended, and finds what it would.

    Lists are independent of each other in an inverted file whose coarse quantizer is exact, under pre-transforms. Of
    anything else each search begins anew.

    Args:
        builder: the index.
        queries: (m, dim) float32.
        k: neighbours of each.
        wanted: rows that :meth:`best_search` is asked about.
    """

    def __init__(self, builder: IndexBuilder, queries: Float32Array, k: int, wanted: Wanted | None = None) -> None:
        self._builder, self._queries, self._k = builder, queries, k
        self._wanted = wanted if wanted is not None and len(wanted.ids) else None
        self._codes: tuple[NDArray[np.int64], Float32Array] | None = None  # of what is wanted
        self._lists = 0  # searched so far, the nearest ones
        self._found: tuple[Float32Array, Ids] | None = None
        self._nearest: tuple[Float32Array, Ids] | None = None  # lists of each query, as many as are known

    def search(self) -> Ids:
        """Return the ids (m, k), -1 for none, found in as many lists as the index visits now: no fewer than before."""
        nprobe, found = self._builder.nprobe, self._found
        if found is None or nprobe is None or (ivf := _separable(self._builder.index)) is None:
            found = self._builder.search(self._queries, self._k)
        elif nprobe > self._lists:
            found = _nearest(found, self._in_more_lists(ivf, nprobe), self._k, _larger_is_nearer(ivf))
        self._found, self._lists = found, nprobe or 0
        return found[1]

    def best_search(self, nprobe: int) -> Ids | None:
        """Return what :meth:`search` would find in so many lists if wanted rows alone lay in those it visits anew.

        No search finds more of them: other rows only take their places. None where that is not known beforehand.
        """
        if self._found is None or self._wanted is None or (ivf := _separable(self._builder.index)) is None:
            return None
        with self._faiss():
            if self._codes is None:
                self._codes = self._encode(ivf, self._wanted)
            lists = self._nearest_lists(ivf, nprobe)[1]
        of_query, (own, distances) = self._wanted.queries, self._codes
        new = np.flatnonzero((lists[of_query, self._lists : nprobe] == own).any(axis=1))
        place = np.arange(len(new)) - np.searchsorted(of_query[new], of_query[new])  # among those of its query
        shape = len(self._queries), place.max(initial=-1) + 1
        best = np.full(shape, -np.inf if _larger_is_nearer(ivf) else np.inf, np.float32), np.full(shape, -1, np.int64)
        best[0][of_query[new], place], best[1][of_query[new], place] = distances[new], self._wanted.ids[new]
        return _nearest(self._found, best, self._k, _larger_is_nearer(ivf))[1]

    def _encode(self, ivf: Any, wanted: Wanted) -> tuple[NDArray[np.int64], Float32Array]:
        """Return the list (p, 1) of each wanted row, and the least distance (p,) from the query to its code."""
        rows, queries = (self._transformed(each) for each in (wanted.rows, self._queries))
        codes = ivf.sa_encode(rows)
        bytes_of_list = codes[:, : ivf.coarse_code_size()].astype(np.int64)  # the lowest first
        lists = (bytes_of_list << (8 * np.arange(bytes_of_list.shape[1]))).sum(axis=1, keepdims=True)
        queries, decoded = queries[wanted.queries], ivf.sa_decode(codes)
        if _larger_is_nearer(ivf):
            distances = np.einsum("ij,ij->i", queries, decoded)
            nearest = distances + _ROUNDING * np.abs(distances)
        else:
            apart = queries - decoded
            nearest = (1 - _ROUNDING) * np.einsum("ij,ij->i", apart, apart)
        return lists, nearest

    def _in_more_lists(self, ivf: Any, nprobe: int) -> tuple[Float32Array, Ids]:
        new = slice(self._lists, nprobe)
        with self._faiss():
            distances, lists = (np.ascontiguousarray(each[:, new]) for each in self._nearest_lists(ivf, nprobe))
            before = ivf.parallel_mode
            ivf.nprobe = nprobe - self._lists  # FAISS compares it with the shape of the lists
            ivf.parallel_mode = _OVER_QUERIES
            try:
                queries = self._transformed(self._queries)
                found: tuple[Float32Array, Ids] = ivf.search_preassigned(queries, self._k, lists, distances)
            finally:
                ivf.nprobe, ivf.parallel_mode = nprobe, before
        return found

    def _nearest_lists(self, ivf: Any, nprobe: int) -> tuple[Float32Array, Ids]:
        """Return the distances (m, n) and numbers (m, n) of at least so many lists, the nearest first."""
        known = self._nearest
        if known is None or known[1].shape[1] < nprobe:
            ahead = min(_LISTS_AHEAD * nprobe, ivf.nlist)
            known = self._nearest = ivf.quantizer.search(self._transformed(self._queries), ahead)
        return known

    def _transformed(self, rows: Float32Array) -> Float32Array:
        for outer in inner_indexes(self._builder.index):
            for transform in transforms_of(outer):
                rows = transform.apply(rows)
        return rows

    @contextmanager
    def _faiss(self) -> Iterator[None]:
        what = f"index {self._builder.factory!r} cannot be searched"
        with faiss_threads(self._builder.threads), faiss_errors(what, UsageError):
            yield


def _separable(index: Any) -> Any | None:
    """Return the inverted file of an index whose lists can be searched one after the other; None if they cannot."""
    module = faiss()
    *outer, inner = inner_indexes(index)
    known = (module.IndexIVFFlat, module.IndexIVFScalarQuantizer, module.IndexIVFPQ)
    if type(inner) not in known or not all(isinstance(each, module.IndexPreTransform) for each in outer):
        return None
    is_exact = isinstance(module.downcast_index(inner.quantizer), module.IndexFlat)
    return inner if is_exact and not inner.max_codes else None


def _larger_is_nearer(ivf: Any) -> bool:
    return bool(ivf.metric_type == faiss().METRIC_INNER_PRODUCT)


def _nearest(
    left: tuple[Float32Array, Ids], right: tuple[Float32Array, Ids], k: int, larger_is_nearer: bool
) -> tuple[Float32Array, Ids]:
    """Return the nearest of both, the nearest first; where there are fewer, FAISS's distances of none come last."""
    distances = np.concatenate([left[0], right[0]], axis=1)
    ids = np.concatenate([left[1], right[1]], axis=1)
    order = np.argsort(-distances if larger_is_nearer else distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1)
