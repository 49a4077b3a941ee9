"""How many true neighbours an index finds, against exact search over every row, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from fct_infer.errors import ArtifactError, NonFiniteError
from fct_infer.index.builder import Ids, IndexBuilder
from fct_infer.index.faiss_module import faiss_threads
from fct_infer.index.widening import Wanted, Widening
from fct_infer.transformation import Float32Array, Linear, Program, Transformation

ENOUGH_RECALL = 0.95
WORTH_DOUBLING = 0.01  # recall that twice the lists must add
MAX_TIES = 10_000
_ROWS_AT_ONCE = 4096  # whose distances stay in cache
# Rows whose distances differ by less than this share of the query's squared norm are equally near: float32 cannot
# tell them apart, and a gallery may hold one row many times.
_TIE = 2e-6


@dataclass(frozen=True)
class ExactNeighbours:
    """The ``k`` nearest of all rows for each query.

    Attributes:
        k: neighbours asked for.
        ids: by query, the ids of all rows that are as near as its k-th neighbour or nearer, the nearest first: k of
            them, more if some are equally near, fewer if there are fewer rows. None for a query with more than
            :data:`MAX_TIES` of them.
    """

    k: int
    ids: tuple[Ids | None, ...]


def exact_neighbours(
    queries: Float32Array, blocks: Iterable[tuple[Float32Array, Ids]], k: int, metric: str, threads: int
) -> ExactNeighbours:
    """Search all rows exactly; ``blocks`` are what :meth:`ExactSearch.offer` takes, one is held at a time.

    Other arguments as of :class:`ExactSearch`.
    """
    search = ExactSearch(queries, k, metric, threads)
    for rows, ids in blocks:
        search.offer(rows, ids)
    return search.found()


class ExactSearch:
    """Exact search over rows that come block by block, in any order; none of them is kept.

    What is found depends on the rows alone, not on the blocks they come in or on the threads.

    Args:
        queries: (m, dim) float32.
        k: neighbours wanted.
        metric: ``l2``, ``ip``, or ``cosine`` (of rows that are normalised already).
        threads: of the matrix products.
    """

    def __init__(self, queries: Float32Array, k: int, metric: str, threads: int) -> None:
        self._k, self._leaves_zero = k, metric == "cosine"
        self._distances_of = _Distances(queries, metric, threads)
        self._kept = [_Near(k, float(scale)) for scale in np.einsum("ij,ij->i", queries, queries)]
        self._few: list[tuple[Float32Array, Ids]] = []  # small blocks: each by itself would cost more than its rows
        self._few_rows = 0

    def offer(self, rows: Float32Array, ids: Ids) -> None:
        """Compare rows (n, dim) float32 under their ids (n,) int64 with all queries."""
        if len(rows) >= _ROWS_AT_ONCE:
            self._take(rows, ids)
            return
        self._few.append((rows.copy(), ids.copy()))
        self._few_rows += len(rows)
        if self._few_rows >= _ROWS_AT_ONCE:
            self._take_few()

    def found(self) -> ExactNeighbours:
        """Return the neighbours among all rows offered so far."""
        self._take_few()
        return ExactNeighbours(self._k, tuple(near.nearest_first() for near in self._kept))

    def _take_few(self) -> None:
        if self._few:
            self._take(*map(np.concatenate, zip(*self._few, strict=True)))
            self._few, self._few_rows = [], 0

    def _take(self, rows: Float32Array, ids: Ids) -> None:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            piece = slice(start, start + _ROWS_AT_ONCE)
            self._take_piece(rows[piece], ids[piece])

    def _take_piece(self, rows: Float32Array, ids: Ids) -> None:
        if self._leaves_zero:  # as an index for cosine does: they have no direction
            directed = rows.any(axis=1)
            rows, ids = rows[directed], ids[directed]
        distances, kept = self._distances_of(rows), self._kept
        limits = np.array([near.limit for near in kept], np.float32)
        hits = np.flatnonzero(distances <= limits)  # soon there are few
        hit_rows, hit_queries = np.divmod(hits, len(kept))
        by_query = np.argsort(hit_queries, kind="stable")
        ends = np.searchsorted(hit_queries[by_query], np.arange(len(kept) + 1))
        for query in np.flatnonzero(np.diff(ends)):
            found = hit_rows[by_query[ends[query] : ends[query + 1]]]
            kept[query].add(distances[found, query], ids[found])


class _Near:
    """The rows seen so far that are as near to one query as its ``k``-th neighbour; the limit only ever falls."""

    def __init__(self, k: int, scale: float) -> None:
        self.limit, self._k, self._scale = np.float32(np.inf), k, np.float32(scale)
        self._distances, self._ids = np.empty(0, np.float32), np.empty(0, np.int64)

    def add(self, distances: Float32Array, ids: Ids) -> None:
        """Take some rows that are within the limit, and leave those that no longer are."""
        merged = np.concatenate([self._distances, distances])
        if len(merged) >= self._k:
            furthest = np.partition(merged, self._k - 1)[self._k - 1]
            self.limit = np.float32(furthest + _TIE * max(self._scale, abs(furthest)))
        within = np.flatnonzero(merged <= self.limit)
        if len(within) > MAX_TIES:  # one more is enough to know that there are too many; keep the nearest
            within = within[np.argsort(merged[within], kind="stable")[: MAX_TIES + 1]]
        self._distances, self._ids = merged[within], np.concatenate([self._ids, ids])[within]

    def nearest_first(self) -> Ids | None:
        """Return their ids; None if they are too many."""
        return None if len(self._ids) > MAX_TIES else self._ids[np.argsort(self._distances, kind="stable")]


def measure_recall(builder: IndexBuilder, queries: Float32Array, own_ids: Ids, exact: ExactNeighbours) -> float:
    """Return the share of exact neighbours the index finds, a query's own row left out on both sides.

    Args:
        builder: the index; it is searched for ``exact.k`` neighbours.
        queries: (m, dim) float32, rows of the gallery.
        own_ids: (m,) their ids.
        exact: their exact neighbours, own row included.

    A query with too many equally near rows is not counted; if that leaves none, the recall is 1.
    """
    return _share_found(builder.search(queries, exact.k)[1], own_ids, exact)


def _share_found(found: Ids, own_ids: Ids, exact: ExactNeighbours) -> float:
    hits = wanted = 0
    for own, near, found_ids in zip(own_ids.tolist(), exact.ids, found.tolist(), strict=True):
        if near is not None:
            others = set(near.tolist()) - {own}
            possible = min(len(others), exact.k - (own in near))
            hits += min(possible, len(others & set(found_ids)))
            wanted += possible
    return hits / wanted if wanted else 1.0


def tune_nprobe(
    builder: IndexBuilder,
    queries: Float32Array,
    own_ids: Ids,
    exact: ExactNeighbours,
    target: float | None,
    tried: dict[int, float] | None = None,
    near: tuple[Ids, Float32Array] | None = None,
) -> float:
    """Double ``nprobe`` until recall reaches ``target``; without one, until it is enough or doubling adds little.

    Args:
        builder, queries, own_ids, exact: as in :func:`measure_recall`.
        target: recall wanted.
        tried: is given the recall of each nprobe.
        near: ids (r,) and rows (r, dim) of the exact neighbours; with them a search is spared that cannot add enough.

    Returns:
        The recall reached.
    """
    tried = {} if tried is None else tried
    wanted = None if near is None or target is not None else _wanted(own_ids, exact, *near)
    widening = Widening(builder, queries, exact.k, wanted)
    recall = _share_found(widening.search(), own_ids, exact)
    if builder.nprobe is not None:
        tried[builder.nprobe] = recall
    while builder.nprobe is not None and builder.nprobe < builder.nlist and recall < (target or ENOUGH_RECALL):
        before, nprobe, doubled = recall, builder.nprobe, min(2 * builder.nprobe, builder.nlist)
        enough = before + WORTH_DOUBLING if target is None else 0
        if (best := widening.best_search(doubled)) is not None and _share_found(best, own_ids, exact) < enough:
            break
        builder.nprobe = doubled
        recall = tried[doubled] = _share_found(widening.search(), own_ids, exact)
        if recall < enough:
            builder.nprobe, recall = nprobe, before
            break
    return recall


def _wanted(own_ids: Ids, exact: ExactNeighbours, near_ids: Ids, near_rows: Float32Array) -> Wanted | None:
    """Return all exact neighbours but the queries themselves; None if rows of some are missing."""
    of_query = np.repeat(np.arange(len(own_ids)), [0 if ids is None else len(ids) for ids in exact.ids])
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids in exact.ids if ids is not None)])
    are_others = ids != own_ids[of_query]
    of_query, ids = of_query[are_others], ids[are_others]
    if not np.isin(ids, near_ids).all():
        return None
    order = np.argsort(near_ids)
    return Wanted(of_query, ids, near_rows[order[np.searchsorted(near_ids, ids, sorter=order)]])


class _Distances:
    """Numbers that order rows by how near they are to each query, nearest first: the squared distance for l2.

    One matrix product by the core, several times as fast as FAISS for as few queries as recall is measured with.
    """

    def __init__(self, queries: Float32Array, metric: str, threads: int) -> None:
        self._queries, self._metric, self._threads = queries, metric, threads
        squares = np.einsum("ij,ij->i", queries, queries)
        layer = Linear("old", "distance", np.float32(-2) * queries, squares)  # |q|^2 - 2 q x
        self._product: Transformation | None = None
        with suppress(ArtifactError):  # a number of it is too large for float32
            self._product = Transformation(Program({"old": queries.shape[1]}, (layer,), "distance"), "fp32", threads)

    def __call__(self, rows: Float32Array) -> Float32Array:
        """Return (n, m) for rows (n, dim) and m queries."""
        squares = np.einsum("ij,ij->i", rows, rows)
        if self._product is not None:
            with suppress(NonFiniteError):  # likewise
                distances = self._product(rows)
                if self._metric == "l2":
                    distances += squares[:, None]
                return distances
        with faiss_threads(self._threads) as module:
            found: Float32Array = np.ascontiguousarray(module.pairwise_distances(self._queries, rows).T)
        if self._metric != "l2":
            found -= squares[:, None]
        return found
