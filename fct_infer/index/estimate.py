"""How long an index will take: what the run does is done for a moment with some of its rows, here and now."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any, TypeAlias

import numpy as np

from fct_infer.index.clustering import Clustering, cluster_codebooks, iterations_for
from fct_infer.index.factory import IndexPlan, make_index
from fct_infer.index.faiss_module import faiss, faiss_threads
from fct_infer.index.filling import CODE_BITS, filler_of, graph_is_sooner, metric_names
from fct_infer.index.leading_directions import ROWS_TRIED, LeadingDirections, nearest_lists
from fct_infer.index.training import train_transforms
from fct_infer.index.two_levels import two_levels
from fct_infer.transformation import Float32Array

Draw: TypeAlias = Callable[[int], Float32Array]
"""Returns so many of the rows (n, dim) that an index is made of, or all if there are no more."""

_ROWS, _LISTS, _GRAPH_ROWS, _GRAPH_LISTS = 8192, 1 << 14, 2000, 2048  # timed with
_ROWS_OF_A_LIST, _ITERATIONS = 4, 3
_LEAST_SECONDS = 0.1
_SEED = 17


@dataclass(frozen=True)
class IndexSeconds:
    """About how long training takes, and adding all rows, if nothing else wants the CPUs meanwhile."""

    training: float
    adding: float


def index_seconds(plan: IndexPlan, rows: int, threads: int, draw: Draw) -> IndexSeconds | None:
    """Return what building an index on CPUs will take; None for kinds that are not known well enough to say.

    Known are ``Flat``, ``SQ``, ``PQ``, ``HNSW``, inverted lists of the first three, and all these behind ``OPQ``,
    ``PCA`` and other transforms. How soon the nearest of many lists is found depends on the rows: of each list, up to
    16,384 of them, four are drawn, and 8,192 more. Takes a second or two, some seconds with more than 4,096 lists.
    """
    whole = make_index(plan.factory, plan.dim, plan.metric)  # to be held: FAISS frees what lies inside with it
    module = faiss()
    inner = module.downcast_index(whole)
    if isinstance(inner, module.IndexPreTransform):
        return _behind_transforms(inner, plan, rows, threads, draw)
    if isinstance(inner, module.IndexHNSW):
        return IndexSeconds(0.0, rows * _graph_row(inner, draw(_GRAPH_ROWS), rows, threads))
    if type(inner) in (module.IndexFlat, module.IndexFlatL2, module.IndexFlatIP, module.IndexScalarQuantizer):
        return IndexSeconds(0.0, rows * _copied_row(inner, draw(_ROWS)))
    if type(inner) is module.IndexPQ and inner.pq.nbits == CODE_BITS:
        timing = _Timing(draw(_ROWS), threads)
        return IndexSeconds(_codebooks(inner, timing, plan), timing.filling(inner, rows))
    known = (module.IndexIVFFlat, module.IndexIVFScalarQuantizer, module.IndexIVFPQ)
    coarse = module.downcast_index(inner.quantizer) if isinstance(inner, module.IndexIVF) else None
    if type(inner) not in known or not isinstance(coarse, module.IndexFlat | module.IndexHNSWFlat):
        return None
    if isinstance(inner, module.IndexIVFPQ) and inner.pq.nbits != CODE_BITS:
        return None
    lists = min(inner.nlist, _LISTS)
    some = draw(_ROWS_OF_A_LIST * lists + _ROWS)
    some = some[np.random.default_rng(_SEED).permutation(len(some))]
    return _lists(inner, some[: _ROWS_OF_A_LIST * lists], lists, _Timing(some[-_ROWS:], threads), plan, rows)


def _behind_transforms(index: Any, plan: IndexPlan, rows: int, threads: int, draw: Draw) -> IndexSeconds | None:
    sample = draw(_ROWS)
    start = time.perf_counter()
    with faiss_threads(threads):
        train_transforms(index, np.resize(sample, (plan.training_rows, plan.dim)))
    trained = time.perf_counter() - start
    applied = _Timing(sample, threads).of(partial(train_transforms, index), rows)
    parts = plan.factory.split(",")[index.chain.size() :]
    inner = replace(plan, factory=",".join(parts), dim=index.index.d)
    found = index_seconds(inner, rows, threads, lambda count: train_transforms(index, draw(count)))
    return found and IndexSeconds(trained + found.training, applied + found.adding)


@dataclass(frozen=True)
class _Timing:
    """What is timed with a sample of rows (n, dim), and how many threads."""

    sample: Float32Array
    threads: int

    def of(self, work: Callable[[Float32Array], object], rows: int) -> float:
        """Return the seconds of work on so many rows, by how much longer the sample takes than a half of it."""
        half = self.sample[: len(self.sample) // 2]
        with faiss_threads(self.threads):
            of_half, of_all = (_seconds(partial(work, part)) for part in (half, self.sample))
        a_row = of_all / len(self.sample) if of_all <= of_half else (of_all - of_half) / (len(self.sample) - len(half))
        return of_all + a_row * (rows - len(self.sample))

    def filling(self, index: Any, rows: int) -> float:
        """Return the seconds of filling a trained index, by the core if it does."""
        start = time.perf_counter()
        fill = filler_of(index, self.threads) or (lambda rows, ids, threads: index.add(rows))
        fill(self.sample[:ROWS_TRIED], None, self.threads)
        begun = time.perf_counter() - start
        return begun + self.of(lambda part: fill(part, None, self.threads), rows)


def _lists(ivf: Any, some: Float32Array, lists: int, timing: _Timing, plan: IndexPlan, rows: int) -> IndexSeconds:
    module, metric = faiss(), metric_names()[ivf.metric_type]
    has_graph = isinstance(module.downcast_index(ivf.quantizer), module.IndexHNSWFlat)
    threads, more = timing.threads, ivf.nlist / lists
    cluster = Clustering(some, "l2" if has_graph else metric, bool(ivf.cp.spherical), _ITERATIONS, threads)
    fresh = replace(cluster, rows=timing.sample)  # the few rows of each list lie nearer to it than the many of a run
    trained_on = min(plan.training_rows, ivf.cp.max_points_per_centroid * ivf.nlist)

    def iteration(centroids: Float32Array) -> float:
        start = time.perf_counter()
        ways = fresh.ways(centroids, LeadingDirections(centroids))
        found = time.perf_counter() - start
        return found + timing.of(lambda part: replace(cluster, rows=part).moved(centroids, ways), trained_on)

    # Training begins with rows. Where it ends the nearest list is found sooner, and so it is after a few iterations.
    centroids = cluster.refined(some[:lists])
    training = more * (iteration(some[:lists]) + (ivf.cp.niter - 1) * iteration(centroids))
    coarse = f"IVF{len(centroids)}"
    if has_graph and two_levels(centroids, metric, threads) is None and graph_is_sooner(centroids, metric):
        coarse, centroids = f"IVF{_GRAPH_LISTS}_HNSW32", centroids[:_GRAPH_LISTS]  # which FAISS searches
        more = log(ivf.nlist) / log(_GRAPH_LISTS)
    fewer = make_index(re.sub(r"IVF\d+(_HNSW\d*)?", coarse, plan.factory), plan.dim, plan.metric)
    fewer.quantizer.add(centroids)
    if fewer.by_residual:
        trained_on = min(plan.training_rows, fewer.train_encoder_num_vectors())
        training += timing.of(lambda part: nearest_lists(centroids, metric, part, threads), trained_on)
    if isinstance(fewer, module.IndexIVFPQ):
        training += _codebooks(fewer, timing, plan)
    else:
        fewer.train(timing.sample)  # in no time, beside that
    return IndexSeconds(training, more * timing.filling(fewer, rows))


def _codebooks(index: Any, timing: _Timing, plan: IndexPlan) -> float:
    """Return the seconds of training codebooks; gives the index some."""
    quantizer = index.pq
    books = np.resize(timing.sample, (quantizer.ksub, quantizer.M, quantizer.dsub)).transpose(1, 0, 2)
    books = np.ascontiguousarray(books)
    trained_on = min(plan.training_rows, quantizer.cp.max_points_per_centroid * quantizer.ksub)
    rows = np.resize(timing.sample, (trained_on, plan.dim))  # as many: a cache holds the sample, but not these
    iteration = _seconds(lambda: cluster_codebooks(rows, books, iterations=1, threads=timing.threads))
    faiss().copy_array_to_vector(books.ravel(), quantizer.centroids)
    index.is_trained = True
    return iterations_for(quantizer.cp.niter) * iteration


def _copied_row(index: Any, sample: Float32Array) -> float:
    if not index.is_trained:
        index.train(sample)

    def add() -> None:
        index.reset()
        index.add(sample)

    return _seconds(add) / len(sample)


def _graph_row(graph: Any, sample: Float32Array, rows: int, threads: int) -> float:
    """Return the seconds of one row in a graph of all rows, which grow as the logarithm of their number."""
    if not graph.is_trained:
        graph.train(sample)
    start = time.perf_counter()
    with faiss_threads(threads):
        graph.add(sample)
    return (time.perf_counter() - start) / len(sample) * max(1.0, log(max(rows, 2)) / log(max(len(sample), 2)))


def _seconds(work: Callable[[], object]) -> float:
    """Return the least that work takes, of as often as it is done in a moment."""
    begun, least = time.perf_counter(), float("inf")
    while (start := time.perf_counter()) - begun < _LEAST_SECONDS:
        work()
        least = min(least, time.perf_counter() - start)
    return least
