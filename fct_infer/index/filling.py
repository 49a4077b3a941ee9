"""Inverted files and product quantizers filled by the compiled core: the index FAISS would fill, sooner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.index.faiss_module import faiss, transforms_of
from fct_infer.transformation import Float32Array

CODE_BITS = 8

Fill: TypeAlias = Callable[[Float32Array, NDArray[np.int64] | None, int], None]


def filler_of(index: Any) -> Fill | None:
    """Return what adds rows to a trained FAISS index in place of its own ``add_with_ids``; None if nothing does.

    Lists and codes are those FAISS gives, up to rows between two centroids that float32 cannot tell apart, for which
    FAISS's own answer depends on how many rows it is given at once; this one depends on the row alone, whatever the
    threads and however rows are cut into blocks. Known are inverted files over a flat
    coarse quantizer (``IVF<n>,Flat``, ``SQ``, ``PQ``) and ``PQ``, under pre-transforms (``OPQ``, ``PCA``) and ID maps.

    Returns:
        fill(rows (n, dim) float32, ids (n,) int64 or None, threads), which raises NonFiniteError for a row that holds
        NaN or infinity and then adds none. It is to run with FAISS's own thread count set, and keeps what it needs of
        the training: after another training ask again.
    """
    module = faiss()
    index = module.downcast_index(index)
    if not index.is_trained:
        return None
    if isinstance(index, module.IndexPreTransform):
        return _behind_transforms(index)
    if isinstance(index, module.IndexIDMap) and type(index) is module.IndexIDMap:
        return _under_ids(index)
    if isinstance(index, module.IndexIVF):
        return _inverted_file(index)
    if type(index) is module.IndexPQ and index.pq.nbits == CODE_BITS:
        return _quantizer(index)
    return None


def _behind_transforms(index: Any) -> Fill | None:
    inner = filler_of(index.index)
    if inner is None:
        return None

    def fill(rows: Float32Array, ids: NDArray[np.int64] | None, threads: int) -> None:
        inner(_transformed(index, rows), ids, threads)
        index.ntotal = index.index.ntotal

    return fill


def _transformed(index: Any, rows: Float32Array) -> Float32Array:
    for transform in transforms_of(index):
        rows = transform.apply(rows)
    return rows


def _under_ids(index: Any) -> Fill | None:
    """Return a filler that numbers the rows inside and keeps their ids in the map, as FAISS does."""
    module = faiss()
    inner = filler_of(index.index)
    if inner is None:
        return None

    def fill(rows: Float32Array, ids: NDArray[np.int64] | None, threads: int) -> None:
        assert ids is not None, "an ID map wants ids"
        before = index.ntotal
        inner(rows, None, threads)
        index.id_map.resize(before + len(rows))
        kept = module.rev_swig_ptr(index.id_map.data(), before + len(rows))
        kept[before:] = ids
        index.ntotal = index.index.ntotal

    return fill


def _inverted_file(index: Any) -> Fill | None:
    module = faiss()
    coarse, metrics = module.downcast_index(index.quantizer), metric_names()
    known = (module.IndexIVFFlat, module.IndexIVFScalarQuantizer, module.IndexIVFPQ)
    if (
        type(index) not in known
        or not isinstance(coarse, module.IndexFlat)
        or type(coarse) not in (module.IndexFlat, module.IndexFlatL2, module.IndexFlatIP)
        or coarse.metric_type not in metrics
        or index.direct_map.type != module.DirectMap.NoMap
    ):
        return None
    encodes = isinstance(index, module.IndexIVFPQ) and index.pq.nbits == CODE_BITS
    codebooks = _codebooks(index.pq) if encodes else None
    centroids, metric = coarse.reconstruct_n(0, index.nlist), metrics[coarse.metric_type]
    assigner = _core.Assigner(centroids, codebooks, metric=metric, by_residual=bool(index.by_residual))

    def fill(rows: Float32Array, ids: NDArray[np.int64] | None, threads: int) -> None:
        lists, codes = assigner.assign(rows, threads)
        if ids is None:
            ids = np.arange(index.ntotal, index.ntotal + len(rows), dtype=np.int64)
        if codes is None:  # FAISS's own encoding, in parallel
            pointers = [module.swig_ptr(array) for array in (rows, ids, lists)]
            index.add_core(len(rows), *pointers)
        else:
            assert lists is not None  # there are centroids
            index.add_sa_codes(np.hstack([_list_bytes(lists, index.coarse_code_size()), codes]), ids)

    return fill


def _quantizer(index: Any) -> Fill:
    assigner = _core.Assigner(None, _codebooks(index.pq), by_residual=False)

    def fill(rows: Float32Array, ids: NDArray[np.int64] | None, threads: int) -> None:
        assert ids is None, "a quantizer keeps no ids"
        index.add_sa_codes(assigner.assign(rows, threads)[1])

    return fill


def metric_names() -> dict[int, str]:
    """Return the core's names of FAISS's metrics, those it has kernels for."""
    module = faiss()
    return {module.METRIC_L2: "l2", module.METRIC_INNER_PRODUCT: "ip"}


def _codebooks(quantizer: Any) -> Float32Array:
    centroids: Float32Array = faiss().vector_to_array(quantizer.centroids)
    return centroids.reshape(quantizer.M, quantizer.ksub, quantizer.dsub)


def _list_bytes(lists: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return list numbers as FAISS writes them in front of a code: so many bytes, the lowest first."""
    return lists.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :size]
