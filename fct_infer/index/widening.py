"""The same queries searched with more and more lists, each list once."""

from __future__ import annotations

from typing import Any

import numpy as np

from fct_infer.errors import UsageError
from fct_infer.index.builder import Ids, IndexBuilder
from fct_infer.index.faiss_module import faiss, faiss_errors, faiss_threads, inner_indexes, transforms_of
from fct_infer.transformation import Float32Array


class Widening:
    """Searches of one index, of which each goes on where the one with fewer lists ended, and finds what it would.

    Lists are independent of each other in an inverted file whose coarse quantizer is exact, under pre-transforms. Of
    anything else each search begins anew.

    Args:
        builder: the index.
        queries: (m, dim) float32.
        k: neighbours of each.
    """

    def __init__(self, builder: IndexBuilder, queries: Float32Array, k: int) -> None:
        self._builder, self._queries, self._k = builder, queries, k
        self._lists = 0  # searched so far, the nearest ones
        self._found: tuple[Float32Array, Ids] | None = None

    def search(self) -> Ids:
        """Return the ids (m, k), -1 for none, found in as many lists as the index visits now: no fewer than before."""
        nprobe, found = self._builder.nprobe, self._found
        if found is None or nprobe is None or (ivf := _separable(self._builder.index)) is None:
            found = self._builder.search(self._queries, self._k)
        elif nprobe > self._lists:
            found = _nearest(found, self._in_more_lists(ivf, nprobe), self._k, _larger_is_nearer(ivf))
        self._found, self._lists = found, nprobe or 0
        return found[1]

    def _in_more_lists(self, ivf: Any, nprobe: int) -> tuple[Float32Array, Ids]:
        builder, queries = self._builder, self._queries
        new = slice(self._lists, nprobe)
        with (
            faiss_threads(builder.threads),
            faiss_errors(f"index {builder.factory!r} cannot be searched", UsageError),
        ):
            for outer in inner_indexes(builder.index):
                for transform in transforms_of(outer):
                    queries = transform.apply(queries)
            distances, lists = (np.ascontiguousarray(each[:, new]) for each in ivf.quantizer.search(queries, nprobe))
            ivf.nprobe = nprobe - self._lists  # FAISS compares it with the shape of the lists
            try:
                found: tuple[Float32Array, Ids] = ivf.search_preassigned(queries, self._k, lists, distances)
            finally:
                ivf.nprobe = nprobe
        return found


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
