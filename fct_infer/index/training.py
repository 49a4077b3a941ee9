"""Training by the compiled core: k-means of inverted lists and of product quantizers, as FAISS does it, sooner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.index.clustering import Clustering, cluster_codebooks, iterations_for
from fct_infer.index.faiss_module import faiss, inner_indexes, transforms_of
from fct_infer.index.filling import CODE_BITS, metric_names
from fct_infer.index.leading_directions import nearest_lists
from fct_infer.index.principal import train_rotation
from fct_infer.index.warm_start import WarmStart
from fct_infer.transformation import Float32Array

_SEED = 1234  # FAISS's
_QUANTIZER_TRAINS_ITSELF = 1


def train_index(index: Any, sample: Float32Array, threads: int, warm: WarmStart | None = None) -> None:
    """Train a FAISS index on rows (n, dim) float32; to be run with FAISS's own thread count set.

    By the core: the centroids of inverted lists, and codebooks of product quantizers with 8 bits a code; as tight as
    FAISS's iterations make them (see :mod:`fct_infer.index.clustering`), from rows chosen as it does, on as many rows;
    lists from an old index's, if ``warm`` names them and they prove as good. Scalar quantizers are trained by FAISS, on
    what the core's lists leave of rows. OPQ's rotation follows from the rows' variances (see
    :mod:`fct_infer.index.principal`). All else, PCA and other codes, is left to FAISS, and so is a sample with fewer
    rows than centroids, which it refuses. What is not left to it depends on the rows alone, not on the threads.

    Raises:
        RuntimeError: FAISS's.
    """
    module = faiss()
    *outer, inner = inner_indexes(index)
    rows = train_transforms(index, sample)
    if not isinstance(inner, module.IndexIVF | module.IndexPQ):
        index.train(sample)
        return
    centroids = _train_lists(inner, rows, threads, warm) if isinstance(inner, module.IndexIVF) else None
    refines = any(isinstance(part, module.IndexRefine) for part in outer)
    if refines or not _train_codes(inner, rows, centroids, threads):
        index.train(sample)  # finds the lists trained, if they are
        return
    for part in outer:
        part.is_trained = True


def train_transforms(index: Any, sample: Float32Array) -> Float32Array:
    """Train what an index applies to rows (n, dim) float32 before all else, if it is not: OPQ by us, the rest by FAISS.

    Returns:
        the rows (n, d_out) float32 that it hands on.
    """
    rows = sample
    for part in inner_indexes(index):
        for transform in transforms_of(part):
            if not transform.is_trained:
                if isinstance(transform, faiss().OPQMatrix):
                    train_rotation(transform, rows)
                else:
                    transform.train(rows)
            rows = transform.apply(rows)
    return rows


def _train_lists(ivf: Any, rows: Float32Array, threads: int, warm: WarmStart | None) -> Float32Array | None:
    """Give an inverted file its centroids and return them; None if that is left to FAISS."""
    module = faiss()
    coarse = module.downcast_index(ivf.quantizer)
    is_flat = isinstance(coarse, module.IndexFlat) and coarse.metric_type in metric_names()
    is_graph = isinstance(coarse, module.IndexHNSWFlat)
    if ord(ivf.quantizer_trains_alone) == _QUANTIZER_TRAINS_ITSELF or not (is_flat or is_graph):
        return None
    limit = ivf.cp.max_points_per_centroid * ivf.nlist
    lists = None if warm is None else _at_most(warm.lists, limit)[0]
    rows, order = _at_most(rows, limit)
    if len(rows) < ivf.nlist:
        return None
    cluster = Clustering(
        rows,
        metric=metric_names()[coarse.metric_type] if is_flat else "l2",  # FAISS's choice for a graph
        spherical=bool(ivf.cp.spherical),
        iterations=ivf.cp.niter,
        threads=threads,
    )
    centroids = None if warm is None or lists is None else warm.centroids(cluster, lists, ivf.nlist)
    if centroids is None:
        centroids = cluster.refined(rows[order[: ivf.nlist]])
    coarse.reset()
    coarse.add(centroids)
    return centroids


def _train_codes(index: Any, rows: Float32Array, centroids: Float32Array | None, threads: int) -> bool:
    """Train what encodes rows, of kinds that are known, with lists that are trained; return whether it was done."""
    module = faiss()
    is_scalar = type(index) is module.IndexIVFScalarQuantizer
    is_product = (
        type(index) in (module.IndexIVFPQ, module.IndexPQ)
        and index.pq.nbits == CODE_BITS
        and not index.do_polysemous_training
    )
    if not (is_scalar or is_product):
        return False
    residuals = _residuals(index, rows, centroids, threads)
    if residuals is None or (is_product and len(residuals) < index.pq.ksub):
        return False
    if is_product:
        _train_codebooks(index, residuals, threads)
    else:
        index.train_encoder(len(residuals), module.swig_ptr(residuals), None)
    index.is_trained = True
    return True


def _residuals(index: Any, rows: Float32Array, centroids: Float32Array | None, threads: int) -> Float32Array | None:
    """Return what codes are to be trained on: rows, or what their lists leave of them; None if that is unknown."""
    if not isinstance(index, faiss().IndexIVF):
        return _at_most(rows, index.pq.cp.max_points_per_centroid * index.pq.ksub)[0]
    if centroids is None:
        return None
    rows, _ = _at_most(rows, index.train_encoder_num_vectors())
    if not index.by_residual:
        return rows
    return rows - centroids[nearest_lists(centroids, metric_names()[index.metric_type], rows, threads)]


def _train_codebooks(index: Any, rows: Float32Array, threads: int) -> None:
    """Give a product quantizer its codebooks, and the index what it computes of them."""
    module, quantizer = faiss(), index.pq
    # Other rows than the lists began with: those lie near their centroids.
    start = rows[_order(len(rows), _SEED + 1)[: quantizer.ksub]].reshape(quantizer.ksub, quantizer.M, quantizer.dsub)
    start = np.ascontiguousarray(start.transpose(1, 0, 2))
    codebooks = cluster_codebooks(rows, start, iterations=iterations_for(quantizer.cp.niter), threads=threads)
    module.copy_array_to_vector(codebooks.ravel(), quantizer.centroids)
    if isinstance(index, module.IndexIVF) and index.by_residual:
        index.precompute_table()


def _at_most(rows: NDArray[Any], limit: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return so many of the rows at most, and a random order of these."""
    if len(rows) > limit:
        rows = rows[np.sort(_order(len(rows), _SEED)[:limit])]
    return rows, _order(len(rows), _SEED)


def _order(rows: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(rows)
