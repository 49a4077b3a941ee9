"""Which index: the default rule, and what a factory string will cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import sqrt
from typing import Any

from fct_infer.errors import UsageError
from fct_infer.index.faiss_module import condensed, faiss, inner_indexes, transforms_of

FLAT_BELOW = 50_000
IVF_FLAT_BELOW = 2_000_000
HNSW_COARSE_FROM = 1 << 16  # inverted lists from which finding the nearest lists deserves a graph
MAX_CODE_BYTES = 64
MIN_TRAINING_ROWS = 65_536
TRAINING_ROWS_PER_LIST = 64
MAX_CODE_BITS = 16  # of one sub-quantizer; FAISS allocates 2^bits centroids before it looks at any row
MAX_FACTORY_LENGTH = 200
MAX_FACTORY_NESTING = 4
MAX_FACTORY_NUMBER = 1 << 16  # of dims, bits, links ...: FAISS allocates before it looks at any row; lists apart
MIN_GRAPH_LINKS = 2  # with fewer FAISS divides by log(links) = 0
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20}
_ID_BYTES = 8


@dataclass(frozen=True)
class IndexPlan:
    """An index to be built: its factory string, metric (``l2``, ``ip``, ``cosine``) and costs.

    Attributes:
        bytes_per_row: stored for each row: code, id, graph links.
        estimated_bytes: of the saved index; while it is built, its lists may take up to twice as much memory.
        training_rows: random rows worth training on; 0 if the index needs none.
    """

    factory: str
    metric: str
    dim: int
    bytes_per_row: int
    estimated_bytes: int
    training_rows: int

    @property
    def depends_on_blocks(self) -> bool:
        """Whether its bytes depend on how rows are cut into blocks: graphs do, and FAISS's products with a matrix."""
        return re.search(r"HNSW|OPQ|PCA|ITQ|RR", self.factory) is not None


def default_factory(rows: int, dim: int, lists: int | None = None) -> str:
    """Return the factory string ``auto`` stands for.

    Below 50,000 rows exact search is fast enough: ``Flat``. Below 2,000,000: ``IVF<n>,Flat`` with n the power of two
    nearest 4 sqrt(rows), which keeps the vectors whole. From there on: ``IVF<n>,PQ<m>`` with the most bytes a row, up
    to 64, that divide the dim (``SQ8`` where none from 8 on does), and an HNSW graph over the lists from 65,536 lists
    on. ``lists`` may be given instead: those of an index there is already.
    """
    if rows < FLAT_BELOW and lists is None:
        return "Flat"
    lists = lists or _nearest_power_of_two(4 * sqrt(rows))
    if rows < IVF_FLAT_BELOW:
        return f"IVF{lists},Flat"
    coarse = f"IVF{lists}_HNSW32" if lists >= HNSW_COARSE_FROM else f"IVF{lists}"
    code_bytes = max(size for size in range(1, min(MAX_CODE_BYTES, dim) + 1) if dim % size == 0)
    return f"{coarse},PQ{code_bytes}" if code_bytes >= 8 else f"{coarse},SQ8"


def make_index(factory: str, dim: int, metric: str) -> Any:
    """Return an empty FAISS index.

    Raises:
        UsageError: FAISS does not accept the factory string for this dim and metric, or the index cannot be filled
            block by block.
    """
    check_factory(factory)
    module = faiss()
    kind = module.METRIC_L2 if metric == "l2" else module.METRIC_INNER_PRODUCT
    try:
        index = module.index_factory(dim, factory, kind)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UsageError(f"index {factory!r} for {dim} dims: {condensed(error)}") from error
    for part in inner_indexes(index):
        if part.metric_type != kind:  # FAISS builds some indexes for another metric than the one asked for
            raise UsageError(f"index {factory!r} does not support metric {metric}")
        for opq in (each for each in transforms_of(part) if isinstance(each, module.OPQMatrix)):
            if opq.d_out % opq.M:
                raise UsageError(f"index {factory!r}: its {opq.d_out} dims cannot be cut into {opq.M} equal parts")
        if isinstance(part, module.IndexNSG | module.IndexNNDescent):
            raise UsageError(f"index {factory!r} cannot be filled block by block; HNSW can")
        if hasattr(part, "do_polysemous_training"):
            # Minutes of annealing that reorder the codebook for a Hamming filter which no search here uses.
            part.do_polysemous_training = False
    return index


def describe_index(factory: str, dim: int, rows: int, metric: str) -> IndexPlan:
    """Return what building ``factory`` over ``rows`` rows will take.

    Raises:
        UsageError: FAISS refuses the factory string, or the gallery has too few rows to train it.
    """
    check_factory(factory)
    for lists in inverted_lists(factory):
        if not 1 <= lists <= rows:
            raise UsageError(f"index {factory!r} has {lists} inverted lists, wanted 1 to {rows}, the gallery's rows")
    index = make_index(factory, dim, metric)
    parts = inner_indexes(index)
    for part in parts:
        if not part.is_trained and _centroids(part) > rows:
            raise UsageError(f"index {factory!r} needs {_centroids(part)} rows to be trained, the gallery has {rows}")
    training_rows = 0
    if not index.is_trained:
        lists = max(getattr(part, "nlist", 0) for part in parts)
        training_rows = min(rows, max(MIN_TRAINING_ROWS, TRAINING_ROWS_PER_LIST * lists))
    bytes_per_row = _row_bytes(index)
    if not any(isinstance(part, faiss().IndexIVF | faiss().IndexIDMap | faiss().IndexIDMap2) for part in parts):
        bytes_per_row += _ID_BYTES  # IndexBuilder wraps it
    estimated = rows * bytes_per_row + sum(_fixed_bytes(part) for part in parts)
    return IndexPlan(factory, metric, dim, bytes_per_row, estimated, training_rows)


def check_factory(factory: str) -> None:
    """Refuse what FAISS does not survive: it aborts, divides by zero or hangs on numbers it never checks.

    Raises:
        UsageError: a number in the factory string is zero or beyond all sense, a graph has less than two links, or the
            string is too long, nested too deeply or no printable ASCII.
    """
    shown = factory if len(factory) <= MAX_FACTORY_LENGTH else factory[:60] + "..."
    if len(factory) > MAX_FACTORY_LENGTH or re.search(r"[0-9]{10}", factory):
        raise UsageError(f"index {shown!r} is too long or has a number that is too large")
    if not re.fullmatch(r"[!-~]+", factory):
        raise UsageError(f"index {shown!r}: wanted a FAISS factory string, such as IVF1024,PQ32")
    if factory.count("(") > MAX_FACTORY_NESTING:
        raise UsageError(f"index {shown!r} is nested too deeply")
    bits = [int(digits) for digits in re.findall(r"(?<=[0-9]x)[0-9]+", factory)]
    if max(bits, default=0) > MAX_CODE_BITS:
        raise UsageError(f"index {shown!r} is too long or has a number that is too large")
    if any(int(digits) > MAX_FACTORY_NUMBER for digits in re.findall(r"(?<!IVF)(?<![0-9])[0-9]+", factory)):
        raise UsageError(f"index {shown!r} is too long or has a number that is too large")
    zero = re.search(r"[A-Za-z+]*(?<![0-9])0+(?![0-9])", factory)
    if zero:
        raise UsageError(f"index {shown!r}: {zero[0]!r} is zero of something, wanted at least 1")
    if any(int(links) < MIN_GRAPH_LINKS for links in re.findall(r"(?:HNSW|NSG)([0-9]+)", factory)):
        raise UsageError(f"index {shown!r}: a graph needs at least {MIN_GRAPH_LINKS} links a row")


def _nearest_power_of_two(value: float) -> int:
    below = 1 << (int(value).bit_length() - 1)
    return below if value / below < 2 * below / value else 2 * below


def inverted_lists(factory: str) -> list[int]:
    """Return the list counts a checked factory string names; FAISS allocates them at once: they are judged before."""
    plain = [int(digits) * _UNITS[unit] for digits, unit in re.findall(r"IVF([0-9]+)([kM]?)", factory)]
    multi = [1 << int(parts) * int(bits) for parts, bits in re.findall(r"IMI([0-9]{1,2})x([0-9]{1,2})", factory)]
    return plain + multi


def _centroids(index: Any) -> int:
    """Return the most centroids that any of an index's own quantizers has to learn."""
    quantizer = getattr(index, "pq", None)
    return max(getattr(index, "nlist", 0), quantizer.ksub if quantizer is not None else 0)


def _row_bytes(index: Any) -> int:
    """Return the bytes one row takes in an index and in those it wraps."""
    module = faiss()
    index = module.downcast_index(index)
    if isinstance(index, module.IndexPreTransform):
        return _row_bytes(index.index)
    if isinstance(index, module.IndexIDMap | module.IndexIDMap2):
        return _row_bytes(index.index) + _ID_BYTES
    if isinstance(index, module.IndexRefine):
        return _row_bytes(index.base_index) + _row_bytes(index.refine_index)
    if isinstance(index, module.IndexHNSW):
        # Level 0 has its links at every row, the levels above at one in M rows and fewer; then level and offset.
        links = index.hnsw.nb_neighbors(0) + 1
        return _row_bytes(index.storage) + 4 * int(links) + 12
    if isinstance(index, module.IndexIVF):
        return int(index.code_size) + _ID_BYTES
    return int(index.sa_code_size())


def _fixed_bytes(index: Any) -> int:
    """Return the bytes an index takes before it has any rows: coarse centroids, codebooks, matrices."""
    module = faiss()
    quantizer = getattr(index, "pq", None)
    size = 4 * quantizer.d * quantizer.ksub if quantizer is not None else 0
    if isinstance(index, module.IndexIVF):
        coarse = module.downcast_index(index.quantizer)
        is_multi = isinstance(coarse, module.MultiIndexQuantizer)
        size += _fixed_bytes(coarse) if is_multi else index.nlist * _row_bytes(coarse)
        size += 8 * index.nlist
    size += sum(4 * transform.d_in * transform.d_out for transform in transforms_of(index))
    return int(size)
