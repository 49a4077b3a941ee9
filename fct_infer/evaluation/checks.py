"""Checks shared by everything that compares embeddings; each failure says which argument and which row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UsageError

if TYPE_CHECKING:
    from fct_infer.evaluation.relevance import Exclusions
    from fct_infer.gallery.jobs import Workers

Metric: TypeAlias = Literal["l2", "ip", "cosine"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Embeddings: TypeAlias = NDArray[np.float32] | NDArray[np.float16]
Int64Array: TypeAlias = NDArray[np.int64]
_PART_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class StoredEmbeddings:
    """Embeddings that are named and not read: whoever computes with them reads them itself. Picklable.

    Attributes:
        path: file, folder or URL, the same for all who read it.
        shape: (rows, dim).
        dtype: float32 or float16.
        seen: the SHA-256 of all rows, once somebody elsewhere has read them: what others read has to be the same.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seen: list[str] = field(default_factory=list, compare=False, repr=False)

    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]


AnyEmbeddings: TypeAlias = Embeddings | StoredEmbeddings


class SearchOptions(TypedDict, total=False):
    """How a gallery is searched: what everything here that searches takes beside its arrays.

    Attributes:
        metric: ``"l2"`` Euclidean distance (the default, and the papers'), ``"ip"`` inner product, ``"cosine"``.
        exclude_self: query i and gallery row i are the same item (one set searched in itself, or in another model's
            embeddings of it); each query's own row is left out of its ranking. Off by default.
        threads: threads to use; by default all cores this process may use.
        exclusions: which rows else a query is not ranked against, by camera, group or label.
        workers: who searches, on other machines; by default this process. The figures are the same. They read the
            embeddings themselves, which are :class:`StoredEmbeddings` then; ``threads`` is not given with them.
    """

    metric: Metric
    exclude_self: bool
    exclusions: Exclusions | None
    threads: int | None
    workers: Workers | None


def check_metric(metric: str) -> None:
    """Raise UsageError unless ``metric`` is one of :data:`METRICS`."""
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")


def check_embeddings(queries: Any, gallery: Any, *, exclude_self: bool) -> None:
    """Check dtypes and shapes of two sets of embeddings that are to be compared (contents are checked when read).

    Raises:
        ArrayError: not a non-empty (rows, dim) array of float32 or float16, different dims, or
            with ``exclude_self`` different row counts.
    """
    for name, array in (("queries", queries), ("gallery", gallery)):
        if not isinstance(array, np.ndarray | StoredEmbeddings):
            raise ArrayError(f"{name} is a {type(array).__name__}, wanted a numpy array")
        if array.dtype not in (np.float32, np.float16):
            raise ArrayError(f"{name} has dtype {array.dtype}, wanted float32 or float16")
        if array.ndim != 2 or 0 in array.shape:
            raise ArrayError(f"{name} has shape {array.shape}, wanted (rows, dim) with at least one of each")
    if queries.shape[1] != gallery.shape[1]:
        raise ArrayError(f"queries have {queries.shape[1]} dims, gallery has {gallery.shape[1]}; wanted the same")
    if exclude_self and len(queries) != len(gallery):
        raise ArrayError(
            f"exclude_self takes query i and gallery row i for the same item, but there are "
            f"{len(queries)} queries and {len(gallery)} gallery rows"
        )


def check_same_items(query_labels: NDArray[Any], gallery_labels: NDArray[Any], differs: NDArray[np.bool_]) -> None:
    """Raise ArrayError if query i and gallery row i, said to be the same item, have different labels somewhere."""
    if differs.any():
        row = int(np.argmax(differs))
        raise ArrayError(
            f"exclude_self takes query i and gallery row i for the same item, but query {row} has label "
            f"{query_labels[row].item()!r} and gallery row {row} has {gallery_labels[row].item()!r}"
        )


def check_ks(ks: Iterable[int]) -> tuple[int, ...]:
    """Return the k of CMC and recall, ascending and each once; UsageError unless all are integers above zero."""
    wanted = tuple(ks)
    if not wanted or any(not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1 for k in wanted):
        raise UsageError(f"CMC is asked at k = {', '.join(map(str, wanted)) or 'nothing'}; wanted integers above zero")
    return tuple(sorted({int(k) for k in wanted}))


def check_contents(name: str, array: Embeddings, metric: Metric) -> None:
    """Read all of ``array`` (rows, dim) and check that every row can be compared.

    Raises:
        ArrayError: a NaN or infinity, or under ``cosine`` a row of length zero; says which row.
    """
    row = first_row_without(array, np.isfinite)
    if row is not None:
        raise ArrayError(f"{name}: row {row} holds a NaN or an infinity")
    if metric == "cosine":
        row = first_row_without(array, lambda part: part.any(axis=1, keepdims=True))
        if row is not None:
            raise ArrayError(f"{name}: row {row} has length zero, so it has no cosine with anything")


def first_row_without(array: Embeddings, trait: Callable[[Embeddings], Any]) -> int | None:
    """Return the first row of which not every value has the trait; None if all have. Reads a part at a time."""
    for part in row_parts(array):
        has_trait = trait(array[part]).all(axis=1)
        if not has_trait.all():
            return int(part.start + np.argmin(has_trait))
    return None


def row_parts(array: Embeddings) -> Iterator[slice]:
    """Yield slices over the rows of ``array`` that are small beside a whole gallery."""
    step = max(1, _PART_ELEMENTS // array.shape[1])
    return (slice(start, min(start + step, len(array))) for start in range(0, len(array), step))


def are_comparable(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether labels, or ids, of one array can be found among those of another."""
    kinds = {labels.dtype.kind for labels in (one, other)}
    # int64 with uint64 has no common integer type: numpy would compare them as float64 and merge labels
    return len(kinds) == 1 or not (kinds & set("US") or np.result_type(one, other).kind == "f")


def encode_labels(
    query_labels: Any, gallery_labels: Any, query_count: int, gallery_count: int, what: str = "labels"
) -> tuple[Int64Array, Int64Array]:
    """Number the labels of both sets alike: 0, 1, ... in sorted order of the gallery's; -1 is a label it lacks.

    A query may have several labels: (n_q, t).

    ``what`` they are called in messages: labels, cameras ...

    Raises:
        ArrayError: not one 1-D array of integers, booleans, str or bytes per set, a length that
            is not the number of embeddings, or kinds that cannot be compared with each other.
    """
    for name, labels, count in (
        (f"query_{what}", query_labels, query_count),
        (f"gallery_{what}", gallery_labels, gallery_count),
    ):
        dims = (1, 2) if name == "query_labels" else (1,)
        if not isinstance(labels, np.ndarray) or labels.ndim not in dims or labels.dtype.kind not in "biuUS":
            came = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
            raise ArrayError(f"{name} is {came}, wanted a 1-D array of integers, str or bytes")
        if len(labels) != count:
            raise ArrayError(f"{name} has {len(labels)} entries for {count} embeddings")
    if not are_comparable(query_labels, gallery_labels):
        raise ArrayError(
            f"query_{what} are {query_labels.dtype} and gallery_{what} {gallery_labels.dtype}; they cannot be compared"
        )
    classes, gallery_codes = np.unique(gallery_labels, return_inverse=True)
    nearest = np.minimum(np.searchsorted(classes, query_labels), len(classes) - 1)
    query_codes = np.where(classes[nearest] == query_labels, nearest, -1)
    return query_codes.astype(np.int64), gallery_codes.astype(np.int64)
