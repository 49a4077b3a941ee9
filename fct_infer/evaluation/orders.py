"""Orders in which the rows of a gallery can be re-embedded: each returns all row numbers, first to last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.evaluation.blocks import do_blocks
from fct_infer.evaluation.checks import (
    AnyEmbeddings,
    Embeddings,
    Int64Array,
    Metric,
    SearchOptions,
    check_contents,
    encode_labels,
)
from fct_infer.evaluation.parallel import Progress
from fct_infer.evaluation.ranking import RankedBatch, Ranking
from fct_infer.evaluation.scores import Float64Array
from fct_infer.gallery.jobs import Workers

Direction: TypeAlias = Literal["far", "near"]
_FIXED_POINT = 2.0**40


def random_order(rows: int, seed: int) -> Int64Array:
    """Return a random order, the same for the same seed."""
    return np.random.default_rng(seed).permutation(rows)


def uncertainty_order(uncertainty: NDArray[Any]) -> Int64Array:
    """Return the rows by descending uncertainty (FastFill, arXiv 2303.04766); equal ones by row.

    Args:
        uncertainty: (n_g,) float: larger means that the transformation is less sure of the row, such as the
            log-variance that FastFill's head predicts.

    Raises:
        ArrayError: not a 1-D array of finite numbers.
    """
    if uncertainty.ndim != 1 or uncertainty.dtype.kind not in "fiu":
        raise ArrayError(f"uncertainty is {uncertainty.dtype} {uncertainty.shape}, wanted (rows,) numbers")
    if not np.isfinite(uncertainty).all():
        raise ArrayError(f"uncertainty: row {int(np.argmin(np.isfinite(uncertainty)))} is NaN or infinite")
    return np.argsort(-uncertainty.astype(np.float64), kind="stable")


def class_mean_order(
    embeddings: Embeddings, labels: NDArray[Any], first: Direction = "far", metric: Metric = "l2"
) -> Int64Array:
    """Return the rows by their Euclidean distance to the mean of their class; equal ones by row.

    Args:
        embeddings: (n_g, dim) float32 or float16: the gallery as it is before re-embedding, transformed or not.
        labels: (n_g,) integers, str or bytes.
        first: ``"far"``: rows far from the mean of their class first, which look misplaced; ``"near"``: the most
            typical rows first.
        metric: under ``"cosine"`` rows are brought to length one before.

    Raises:
        ArrayError: lengths differ, or a NaN or infinity.
    """
    check_contents("gallery", embeddings, metric)
    codes = encode_labels(labels, labels, len(embeddings), len(embeddings))[1]
    wide = embeddings.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    by_class = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    means = np.add.reduceat(wide[by_class], np.concatenate(([0], np.cumsum(counts)[:-1])))
    means /= counts[:, None]
    wide -= means[codes]
    distance = np.linalg.norm(wide, axis=1)
    return np.argsort(-distance if first == "far" else distance, kind="stable")


def class_mean_orders(
    embeddings: AnyEmbeddings,
    labels: NDArray[Any],
    directions: Sequence[Direction],
    metric: Metric = "l2",
    workers: Workers | None = None,
) -> dict[Direction, Int64Array]:
    """Return :func:`class_mean_order` in several directions, found by ``workers`` or here; what they read is named."""
    orders: dict[Direction, Int64Array] = {}
    if directions:
        work = _ClassMeanWork((embeddings,), labels, tuple(directions), metric)
        do_blocks(work, orders.update, threads=None if workers else 1, workers=workers)
    return orders


@dataclass(frozen=True)
class _ClassMeanWork:
    """See :class:`~fct_infer.evaluation.blocks.Work`: a row of it is a direction."""

    embeddings: tuple[AnyEmbeddings, ...]
    labels: NDArray[Any]
    directions: tuple[Direction, ...]
    metric: Metric

    block_rows = 1

    @property
    def rows(self) -> int:
        return len(self.directions)

    def open(self, embeddings: Sequence[Embeddings]) -> Callable[[Sequence[slice]], list[tuple[Direction, Int64Array]]]:
        def do(blocks: Sequence[slice]) -> list[tuple[Direction, Int64Array]]:
            wanted = [direction for block in blocks for direction in self.directions[block]]
            return [(first, class_mean_order(embeddings[0], self.labels, first, self.metric)) for first in wanted]

        return do


def oracle_order(
    queries: AnyEmbeddings,
    gallery: AnyEmbeddings,
    new_gallery: AnyEmbeddings,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    progress: Progress | None = None,
    **search: Unpack[SearchOptions],
) -> Int64Array:
    """Return the rows by descending benefit, see :func:`row_benefit`; what no real order knows beforehand."""
    benefit = row_benefit(queries, gallery, new_gallery, query_labels, gallery_labels, progress=progress, **search)
    return np.argsort(-benefit, kind="stable")


def row_benefit(
    queries: AnyEmbeddings,
    gallery: AnyEmbeddings,
    new_gallery: AnyEmbeddings,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    progress: Progress | None = None,
    **search: Unpack[SearchOptions],
) -> Float64Array:
    """Return what mAP would gain if one gallery row alone were re-embedded, for each: (n_g,) float64.

    Arguments and errors as for :func:`backfilling_curves`.
    """
    ranking = Ranking(queries, [gallery, new_gallery], query_labels, gallery_labels, **search)
    total = np.zeros(len(gallery), np.int64)  # fixed point, so that sums do not depend on the order of the threads

    def record(found: Int64Array) -> None:
        np.add(total, found, out=total)

    ranking.each_block(_fixed_gains, record, progress)
    return total / (_FIXED_POINT * len(ranking.kept))


def _fixed_gains(batches: Iterator[RankedBatch]) -> Int64Array:
    """Return what all queries together would gain by each row's replacement alone, in fixed point: (n_g,)."""
    total: Int64Array | None = None
    for batch in batches:
        for of_query in zip(batch.rows, batch.relevant.order, *batch.places, strict=True):
            gains = np.rint(_gains(*of_query) * _FIXED_POINT).astype(np.int64)
            total = gains if total is None else np.add(total, gains, out=total)
    assert total is not None
    return total


def _gains(rows: Int64Array, order: Int64Array, *places: Int64Array) -> Float64Array:
    """Return what one query's average precision would gain by each row's replacement alone.

    Args:
        rows: (r,) relevant rows.
        order: (2 r,) ranking of their present (0 to r - 1) and their new (r to 2 r - 1) scores.
        places: of the present and of the new gallery, (n_g,) how many of those 2 r come before each row.
    """
    count = len(rows)
    is_present = order < count
    present_before = np.concatenate(([0], np.cumsum(is_present)))
    at, then = present_before[places[0]], present_before[places[1]]  # places among the present relevant rows
    ranks = np.cumsum(np.bincount(at, minlength=count))[:count]
    number = np.arange(1, count + 1)
    precisions = number / ranks
    # a row that moves behind relevant ones raises them by one rank, one that moves before them lowers them by one
    raised = _running(number / np.maximum(ranks - 1, 1) - precisions)
    lowered = _running(number / (ranks + 1) - precisions)
    gains = np.where(then > at, raised[then] - raised[at], lowered[at] - lowered[then])

    # a relevant row that moves also changes how many relevant ones come before the others
    own = order[is_present]
    moved, index = rows[own], np.arange(count)
    target = then[moved] - (index < then[moved])  # other relevant rows before it when it has moved
    raised = _running((number - 1) / np.maximum(ranks - 1, 1) - precisions)
    lowered = _running((number + 1) / (ranks + 1) - precisions)
    others = np.where(target > index, raised[target + 1] - raised[index + 1], lowered[index] - lowered[target])
    threshold = np.empty(2 * count, np.int64)
    threshold[order] = np.arange(2 * count)
    threshold = threshold[count + own]
    rows_before = np.cumsum(np.bincount(places[0], minlength=2 * count))[threshold] - (places[0][moved] <= threshold)
    gains[moved] = others + (target + 1) / (rows_before + 1) - precisions
    return gains / count


def _running(values: Float64Array) -> Float64Array:
    """Return the sums of the first 0, 1, ..., all values."""
    return np.concatenate(([0.0], np.cumsum(values)))
