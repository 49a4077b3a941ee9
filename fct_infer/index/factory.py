"""Which index: the default rule, and what a factory string will cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

from fct_infer.errors import UsageError
from fct_infer.index.faiss_module import condensed, faiss, ivf_of

FLAT_BELOW = 50_000
IVF_FLAT_BELOW = 2_000_000
HNSW_COARSE_FROM = 1 << 16  # inverted lists from which finding the nearest lists deserves a graph
MAX_CODE_BYTES = 64
MIN_TRAINING_ROWS = 65_536
TRAINING_ROWS_PER_LIST = 64


@dataclass(frozen=True)
class IndexPlan:
    """An index to be built: its factory string, metric (``l2``, ``ip``, ``cosine``) and costs."""

    factory: str
    metric: str
    dim: int
    bytes_per_row: int
    estimated_bytes: int
    training_rows: int


def default_factory(rows: int, dim: int) -> str:
    """Return the factory string ``auto`` stands for.

    Below 50,000 rows exact search is fast enough: ``Flat``. Below 2,000,000: ``IVF<n>,Flat`` with n the power of two
    nearest 4 sqrt(rows), which keeps the vectors whole. From there on: ``IVF<n>,PQ<m>`` with the most bytes a row, up
    to 64, that divide the dim (``SQ8`` where none from 8 on does), and an HNSW graph over the lists from 65,536 lists
    on.
    """
    if rows < FLAT_BELOW:
        return "Flat"
    lists = _nearest_power_of_two(4 * sqrt(rows))
    if rows < IVF_FLAT_BELOW:
        return f"IVF{lists},Flat"
    coarse = f"IVF{lists}_HNSW32" if lists >= HNSW_COARSE_FROM else f"IVF{lists}"
    code_bytes = max(size for size in range(1, min(MAX_CODE_BYTES, dim) + 1) if dim % size == 0)
    return f"{coarse},PQ{code_bytes}" if code_bytes >= 8 else f"{coarse},SQ8"


def _nearest_power_of_two(value: float) -> int:
    below = 1 << (int(value).bit_length() - 1)
    return below if value / below < 2 * below / value else 2 * below


def make_index(factory: str, dim: int, metric: str) -> Any:
    """Return an empty FAISS index.

    Raises:
        UsageError: FAISS does not accept the factory string for this dim and metric.
    """
    module = faiss()
    kind = module.METRIC_L2 if metric == "l2" else module.METRIC_INNER_PRODUCT
    try:
        return module.index_factory(dim, factory, kind)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"index {factory!r} for {dim} dims: {condensed(error)}") from error


def describe_index(factory: str, dim: int, rows: int, metric: str) -> IndexPlan:
    """Return what building ``factory`` over ``rows`` rows will take.

    Raises:
        UsageError: FAISS refuses the factory string, or it has more inverted lists than there are rows.
    """
    index = make_index(factory, dim, metric)
    ivf = ivf_of(index)
    if ivf is not None and ivf.nlist > rows:
        raise UsageError(f"index {factory!r} has {ivf.nlist} inverted lists, more than the gallery has rows ({rows})")
    try:
        code_bytes = int(index.sa_code_size())
    except RuntimeError:
        code_bytes = 4 * dim
    graph = getattr(faiss().downcast_index(index), "hnsw", None)
    links = 4 * int(graph.nb_neighbors(0)) * 11 // 10 if graph is not None else 0
    bytes_per_row = code_bytes + links + 8  # and the id
    training_rows = 0
    if not index.is_trained:
        training_rows = min(rows, max(MIN_TRAINING_ROWS, TRAINING_ROWS_PER_LIST * (ivf.nlist if ivf else 0)))
    fixed = 4 * dim * (ivf.nlist if ivf else 0)
    return IndexPlan(factory, metric, dim, bytes_per_row, rows * bytes_per_row + fixed, training_rows)
