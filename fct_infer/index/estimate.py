"""How long an index will take: its kernels timed for a moment on random rows, here and now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from fct_infer import _core
from fct_infer.index.factory import IndexPlan, make_index
from fct_infer.index.faiss_module import faiss, faiss_threads
from fct_infer.index.filling import CODE_BITS, metric_names
from fct_infer.transformation import Float32Array

_ROWS, _LISTS, _GRAPH_ROWS = 4096, 2048, 2000  # timed with
_LEAST_SECONDS = 0.1
_SEED = 17


@dataclass(frozen=True)
class IndexSeconds:
    """About how long training takes, and adding all rows, if nothing else wants the CPUs meanwhile."""

    training: float
    adding: float


def index_seconds(plan: IndexPlan, rows: int, threads: int) -> IndexSeconds | None:
    """Return what building an index on CPUs will take; None for kinds that are not known well enough to say.

    Known are ``Flat``, ``SQ``, ``PQ``, ``HNSW``, and inverted lists of the first three. Takes less than a second.
    """
    whole = make_index(plan.factory, plan.dim, plan.metric)  # to be held: FAISS frees what lies inside with it
    module = faiss()
    inner = module.downcast_index(whole)
    sample = np.random.default_rng(_SEED).standard_normal((_ROWS, plan.dim), np.float32)
    if isinstance(inner, module.IndexHNSW):
        return IndexSeconds(0.0, rows * _graph_row(inner, sample, rows, threads))
    if type(inner) in (module.IndexFlat, module.IndexFlatL2, module.IndexFlatIP, module.IndexScalarQuantizer):
        return IndexSeconds(0.0, rows * _copied_row(inner, sample))
    if type(inner) is module.IndexPQ and inner.pq.nbits == CODE_BITS:
        code = _code_row(inner.pq, sample, threads)
        return IndexSeconds(_codebooks(inner.pq, plan.training_rows) * code, rows * code)
    known = (module.IndexIVFFlat, module.IndexIVFScalarQuantizer, module.IndexIVFPQ)
    coarse = module.downcast_index(inner.quantizer) if isinstance(inner, module.IndexIVF) else None
    if type(inner) not in known or not isinstance(coarse, module.IndexFlat | module.IndexHNSWFlat):
        return None
    return _lists(inner, coarse, plan, rows, sample, threads)


def _lists(
    ivf: Any, coarse: Any, plan: IndexPlan, rows: int, sample: Float32Array, threads: int
) -> IndexSeconds | None:
    module, metric = faiss(), metric_names()[ivf.metric_type]
    timed = min(ivf.nlist, _LISTS)
    assigner = _core.Assigner(sample[:timed], None, metric=metric)
    nearest = _seconds(lambda: assigner.assign(sample, threads)) / _ROWS * ivf.nlist / timed
    training = ivf.cp.niter * min(plan.training_rows, ivf.cp.max_points_per_centroid * ivf.nlist) * nearest
    if isinstance(coarse, module.IndexHNSWFlat):
        coarse.add(sample[:timed])
        with faiss_threads(threads):
            found = _seconds(lambda: coarse.search(sample, 1)) / _ROWS
        nearest = found * log(ivf.nlist) / log(timed)
    if not isinstance(ivf, module.IndexIVFPQ):
        return IndexSeconds(training, rows * nearest)
    if ivf.pq.nbits != CODE_BITS:
        return None
    code = _code_row(ivf.pq, sample, threads)
    return IndexSeconds(training + _codebooks(ivf.pq, plan.training_rows) * code, rows * (nearest + code))


def _codebooks(quantizer: Any, training_rows: int) -> int:
    """Return how often a row is encoded while the codebooks are trained."""
    return int(quantizer.cp.niter * min(training_rows, quantizer.cp.max_points_per_centroid * quantizer.ksub))


def _code_row(quantizer: Any, sample: Float32Array, threads: int) -> float:
    books = sample[: quantizer.ksub].reshape(quantizer.ksub, quantizer.M, quantizer.dsub).transpose(1, 0, 2)
    assigner = _core.Assigner(None, np.ascontiguousarray(books), by_residual=False)
    return _seconds(lambda: assigner.assign(sample, threads)) / _ROWS


def _copied_row(index: Any, sample: Float32Array) -> float:
    if not index.is_trained:
        index.train(sample)

    def add() -> None:
        index.reset()
        index.add(sample)

    return _seconds(add) / _ROWS


def _graph_row(graph: Any, sample: Float32Array, rows: int, threads: int) -> float:
    """Return the seconds of one row in a graph of all rows, which grow as the logarithm of their number."""
    if not graph.is_trained:
        graph.train(sample)
    start = time.perf_counter()
    with faiss_threads(threads):
        graph.add(sample[:_GRAPH_ROWS])
    return (time.perf_counter() - start) / _GRAPH_ROWS * max(1.0, log(max(rows, 2)) / log(_GRAPH_ROWS))


def _seconds(work: Callable[[], object]) -> float:
    work()
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < _LEAST_SECONDS:
        work()
        done += 1
    return (time.perf_counter() - start) / done
