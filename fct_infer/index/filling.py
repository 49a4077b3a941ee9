"""Inverted files and product quantizers filled by the compiled core: the index FAISS would fill, sooner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.device_arrays import device_rows
from fct_infer.errors import ArrayError
from fct_infer.index.faiss_module import faiss, inner_indexes, transforms_of
from fct_infer.index.leading_directions import ROWS_TRIED, LeadingDirections
from fct_infer.index.two_levels import LISTS_FROM, two_levels
from fct_infer.transformation import Float32Array

CODE_BITS = 8

Fill: TypeAlias = Callable[[Any, NDArray[np.int64] | None, int], None]


class MakeAssigner(Protocol):
    """What makes the core's assigner of some centroids and codebooks on a device."""

    def __call__(
        self,
        centroids: Float32Array | None,
        codebooks: Float32Array | None,
        *,
        metric: str = "l2",
        by_residual: bool = True,
    ) -> _core.Assigner:
        """Return it; centroids (lists, dim) and codebooks (parts, 256, dim / parts)."""


def filler_of(index: Any, threads: int = 1, on_device: MakeAssigner | None = None) -> Fill | None:
    """Return what adds rows to a trained FAISS index in place of its own ``add_with_ids``; None if nothing does.

    Known are inverted files over a flat coarse quantizer or an HNSW graph (``IVF<n>,Flat``, ``SQ``, ``PQ``,
    ``IVF<n>_HNSW32,PQ``) and ``PQ``, under pre-transforms (``OPQ``, ``PCA``) and ID maps. What a row gets depends on
    the row alone, whatever the threads and however rows are cut into blocks.

    Below 16,384 lists that is the nearest list: the one FAISS finds with a flat quantizer, up to rows between two
    centroids that float32 cannot tell apart, for which FAISS's own answer depends on how many rows it is given at once;
    with a graph FAISS misses the nearest list of a few rows in a hundred. From there on, where two levels are sooner,
    it is the nearest list for all rows but about one in 2,000, and another near one for those (see
    :mod:`fct_infer.index.two_levels`). Codes are those FAISS gives in that list. The quantizer stays as it is, for
    searching: a graph then misses some lists that rows were put into, which FAISS's own filling misses as well. Of
    16,384 lists, 64 searched, recall@10 was 0.001 to 0.002 lower by 4,000 queries (by 500, in one of four sets, 0.004).

    Args:
        index: of FAISS.
        threads: to group many lists with; they make no difference to what is filled.
        on_device: makes what finds lists and codes on a device; None: the CPU does. On one device rows may lie there
            too, of an index for which :func:`needs_codes_only` holds.

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
        return _behind_transforms(index, threads, on_device)
    if isinstance(index, module.IndexIDMap) and type(index) is module.IndexIDMap:
        return _under_ids(index, threads, on_device)
    if isinstance(index, module.IndexIVF):
        return _inverted_file(index, threads, on_device)
    if type(index) is module.IndexPQ and index.pq.nbits == CODE_BITS:
        return _quantizer(index, on_device)
    return None


def _behind_transforms(index: Any, threads: int, on_device: MakeAssigner | None) -> Fill | None:
    inner = filler_of(index.index, threads, on_device)
    if inner is None:
        return None

    def fill(rows: Any, ids: NDArray[np.int64] | None, threads: int) -> None:
        inner(_transformed(index, rows), ids, threads)
        index.ntotal = index.index.ntotal

    return fill


def _transformed(index: Any, rows: Float32Array) -> Float32Array:
    for transform in transforms_of(index):
        rows = transform.apply(rows)
    return rows


def _under_ids(index: Any, threads: int, on_device: MakeAssigner | None) -> Fill | None:
    """Return a filler that numbers the rows inside and keeps their ids in the map, as FAISS does."""
    module = faiss()
    inner = filler_of(index.index, threads, on_device)
    if inner is None:
        return None

    def fill(rows: Any, ids: NDArray[np.int64] | None, threads: int) -> None:
        assert ids is not None, "an ID map wants ids"
        before = index.ntotal
        inner(rows, None, threads)
        index.id_map.resize(before + len(ids))
        kept = module.rev_swig_ptr(index.id_map.data(), before + len(ids))
        kept[before:] = ids
        index.ntotal = index.index.ntotal

    return fill


def _inverted_file(index: Any, threads: int, on_device: MakeAssigner | None) -> Fill | None:
    module = faiss()
    coarse, metrics = module.downcast_index(index.quantizer), metric_names()
    known = (module.IndexIVFFlat, module.IndexIVFScalarQuantizer, module.IndexIVFPQ)
    if (
        type(index) not in known
        or type(coarse) not in (module.IndexFlat, module.IndexFlatL2, module.IndexFlatIP, module.IndexHNSWFlat)
        or coarse.metric_type not in metrics
        or index.direct_map.type != module.DirectMap.NoMap
    ):
        return None
    encodes = isinstance(index, module.IndexIVFPQ) and index.pq.nbits == CODE_BITS
    codebooks = _codebooks(index.pq) if encodes else None
    centroids, metric = coarse.reconstruct_n(0, index.nlist), metrics[coarse.metric_type]
    by_residual = bool(index.by_residual)
    if on_device is not None:  # which scores all lists
        assigner_for = _always(on_device(centroids, codebooks, metric=metric, by_residual=by_residual))
    else:
        levels = two_levels(centroids, metric, threads)
        has_graph = isinstance(coarse, module.IndexHNSWFlat)
        if has_graph and levels is None and graph_is_sooner(centroids, metric):
            return None
        make = partial(_core.Assigner, centroids, codebooks, metric=metric, by_residual=by_residual)
        assigner_for = _ByRows(make, centroids, metric) if levels is None else _always(make(groups=levels.groups))

    def fill(rows: Any, ids: NDArray[np.int64] | None, threads: int) -> None:
        lists, codes = _assigned(assigner_for(rows), rows, threads)
        assert lists is not None  # there are centroids
        if ids is None:
            ids = np.arange(index.ntotal, index.ntotal + len(lists), dtype=np.int64)
        if codes is None:  # FAISS's own encoding, in parallel
            pointers = [module.swig_ptr(array) for array in (rows, ids, lists)]
            index.add_core(len(rows), *pointers)
        else:
            index.add_sa_codes(np.hstack([_list_bytes(lists, index.coarse_code_size()), codes]), ids)

    return fill


def graph_is_sooner(centroids: Float32Array, metric: str) -> bool:
    """Whether FAISS finds a list of a row in a graph over the lists sooner than the core the nearest among all."""
    if len(centroids) < LISTS_FROM:
        return False
    are_tried = np.arange(len(centroids)) % (len(centroids) // ROWS_TRIED) == 0  # as rows, among the rest
    rest = centroids[~are_tried]
    return LeadingDirections(rest).enough(rest, metric, centroids[are_tried]) is None


def _always(assigner: _core.Assigner) -> Callable[[Any], _core.Assigner]:
    return lambda _: assigner


class _ByRows:
    """Gives an assigner that is made anew by the first rows that show along how many directions to bound scores."""

    def __init__(self, make: Callable[..., _core.Assigner], centroids: Float32Array, metric: str) -> None:
        self._make, self._centroids, self._metric = make, centroids, metric
        self._assigner, self._is_decided = make(), False

    def __call__(self, rows: Float32Array) -> _core.Assigner:
        if not self._is_decided and len(rows) >= ROWS_TRIED:
            self._is_decided = True
            directions = LeadingDirections(self._centroids).enough(self._centroids, self._metric, rows)
            if directions is not None:
                self._assigner = self._make(directions=directions)
        return self._assigner


def _quantizer(index: Any, on_device: MakeAssigner | None) -> Fill:
    assigner = (on_device or _core.Assigner)(None, _codebooks(index.pq), by_residual=False)

    def fill(rows: Any, ids: NDArray[np.int64] | None, threads: int) -> None:
        assert ids is None, "a quantizer keeps no ids"
        index.add_sa_codes(_assigned(assigner, rows, threads)[1])

    return fill


def needs_codes_only(index: Any) -> bool:
    """Whether lists and codes by the core are all that an index stores of rows, and rows go to them as they are."""
    module = faiss()
    *outer, inner = inner_indexes(index)
    is_known = type(inner) in (module.IndexIVFPQ, module.IndexPQ) and inner.pq.nbits == CODE_BITS
    return is_known and all(type(each) is module.IndexIDMap for each in outer)


def _assigned(
    assigner: _core.Assigner, rows: Any, threads: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.uint8] | None]:
    """Return lists and codes of rows, NumPy's or on the assigner's device."""
    if isinstance(rows, np.ndarray):
        return assigner.assign(rows, threads)
    found = device_rows("rows", rows, assigner.dim, assigner.stream, dtypes=("float32",))
    if found.device_number is not None and f"cuda:{found.device_number}" != assigner.device:
        raise ArrayError(f"rows are on cuda:{found.device_number}, wanted them on {assigner.device}")
    return assigner.assign_on_device(found.address, found.rows)


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
