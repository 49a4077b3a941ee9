"""Whether new rows mean what the new model's would: measured by what a probe knows of it, on what was written.

Rows of a wrong transformation, or of another gallery, are as finite, and as near to their recomputation, as right ones.
What tells them apart is the *order* of a probe's items: with a wrong transformation a vector of the new model is as
likely to be farther from its own item's row than from another item's as nearer, whatever clusters the rows form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import integer_or_text
from fct_infer.errors import GateError
from fct_infer.gallery import Source, read_row_ids
from fct_infer.index import IndexBuilder
from fct_infer.measuring import Estimate, Float64Array, directions, distance_blocks, nearest_others, shares
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.computation import Rows
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.probe import Known
from fct_infer.upgrade.report import Meaning
from fct_infer.upgrade.stream import index_rows

K = 10
EXACT_SEARCHES = 256  # without an index; each is compared with all rows
# Measured on pairs of text and image models: 0.83 and more with a right map, from 100 pairs on (of one class 0.63);
# with a wrong one 0.33 to 0.66 of 20 rows, 0.42 to 0.51 of 2,000.
_LEAST_ORDER, _ERRORS = 0.625, 3
_TIE = 1e-9

Search: TypeAlias = Callable[[Float32Array, int], NDArray[np.int64]]
"""Returns the labels (m, k) that an index has or would have of the rows nearest to (m, d) vectors; -1 for none."""


@dataclass(frozen=True)
class Expected:
    """What a probe says before any work, of rows that are transformed for it alone; see :class:`Meaning`."""

    name: str
    rows: int
    given: int
    order: float
    standard_error: float

    def __str__(self) -> str:
        order = Estimate(self.order, self.standard_error)
        return f"{self.rows:,} {self.name} are nearer to their item's row than to {order} of others' (by chance 50 %)"


def check_before_work(plan: Plan) -> tuple[Expected, ...]:
    """Transform the rows that the probe knows, before all others, and say whether they mean what they should.

    Raises:
        GateError: no better than chance.
        GalleryError: one of the rows holds NaN or infinity.
    """
    found = []
    for known in plan.known:
        rows, places = np.unique(known.rows, return_inverse=True)
        order = Estimate.of(_order(known, plan.transform_rows(rows)[places], plan.settings.metric))
        _refuse_chance(known, order)
        found.append(Expected(known.name, len(places), known.given, order.mean, order.standard_error))
    return tuple(found)


def measure_meaning(plan: Plan, written: Source, search: Search, searched_by: str) -> tuple[Meaning, ...]:
    """Measure written rows by all that the probe knows.

    Args:
        plan: of the upgrade.
        written: its rows, all of them.
        search: finds among them.
        searched_by: ``index`` or ``exact search``.

    Raises:
        GateError: they are no nearer to what they should mean than chance, or found less than ``min_probe``.
    """
    found = tuple(_measure(plan, known, written, search, searched_by) for known in plan.known)
    for known, meaning in zip(plan.known, found, strict=True):
        _refuse_chance(known, meaning.order)
        limit = plan.settings.min_probe
        if limit is not None and not meaning.recall_at_10.mean >= limit:
            raise GateError(
                f"recall@{K} of the probe's {known.name} is {meaning.recall_at_10} by {searched_by}, below {limit}; "
                "another --min-probe goes on with the work done"
            )
    return found


def _measure(plan: Plan, known: Known, written: Source, search: Search, searched_by: str) -> Meaning:
    metric, count, total = plan.settings.metric, len(known.vectors), written.schema.rows
    rows, places = np.unique(known.rows, return_inverse=True)
    own = written.read_rows(rows, with_side=False)[0][places]
    order = _order(known, own, metric)
    cosine, by_chance = _cosines(known.vectors, own)
    overlap, at = None, None
    if known.name == "pairs":
        at = min(K, count // 10)
        expected, nearest = (nearest_others(known.vectors, each, at, metric) for each in (known.vectors, own))
        overlap = Estimate.of(shares(nearest, expected))
    searches = np.arange(count)
    if searched_by != "index":
        searches = np.unique(np.linspace(0, count - 1, EXACT_SEARCHES).astype(np.int64))
    labels = search(index_rows(known.vectors[searches], metric), min(K, total))
    first, ten = _recalls(known.right[searches], _ids_of(plan, written, labels), labels >= 0)
    return Meaning(
        name=known.name,
        rows=count,
        given=known.given,
        left_out=known.left_out,
        order=Estimate.of(order),
        as_by_chance=Estimate.of(2.0 * np.asarray(order < 0.5, np.float64)),
        cosine=Estimate.of(cosine),
        cosine_by_chance=by_chance,
        overlap=overlap,
        overlap_at=at,
        overlap_by_chance=None if at is None else at / (count - 1),
        recall_at_1=first,
        recall_at_10=ten,
        searches=len(searches),
        searched_by=searched_by,
        recall_by_chance=min(K, total) / total,
    )


def exact_search(blocks: Iterable[tuple[Float32Array, NDArray[np.int64]]], metric: str) -> Search:
    """Return a search that compares with all rows, one block at a time; for one call."""

    def search(vectors: Float32Array, k: int) -> NDArray[np.int64]:
        middle = vectors.mean(axis=0) if metric == "l2" else np.zeros(vectors.shape[1], np.float32)
        queries = vectors - middle  # what all have in common would cost float32 its digits
        scores: NDArray[np.float32] = np.empty((len(queries), 0), np.float32)
        labels: NDArray[np.int64] = np.empty((len(queries), 0), np.int64)
        for rows, of_rows in blocks:
            shifted = rows - middle
            block = -(queries @ shifted.T)
            if metric == "l2":
                block += np.einsum("ij,ij->i", shifted, shifted) / 2
            near = _smallest(block, k)
            scores = np.concatenate([scores, np.take_along_axis(block, near, 1)], axis=1)
            labels = np.concatenate([labels, of_rows[near]], axis=1)
            near = _smallest(scores, k)
            scores, labels = np.take_along_axis(scores, near, 1), np.take_along_axis(labels, near, 1)
        return np.take_along_axis(labels, np.argsort(scores, axis=1, kind="stable"), 1)

    return search


def _smallest(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the places (m, k or fewer) of each row's smallest numbers, in no order."""
    if scores.shape[1] <= k:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, k - 1, axis=1)[:, :k]


def _order(known: Known, own: Rows, metric: str) -> Float64Array:
    """Return the share of other items' rows (n,) that are farther than the own item's; equally far ones count half."""
    if known.name == "pairs" and metric == "ip":
        metric = "l2"  # by inner product a row is often nearer to a longer one than to its own
    vectors, found = np.asarray(known.vectors, np.float64), np.empty(len(own))
    for place, distances, squares in distance_blocks(vectors, own, np.arange(len(own)), metric):
        for number, row in enumerate(distances, place):
            others = ~np.isin(known.right[:, 0], known.right[number])
            margin = _TIE * (abs(row[number]) + squares[number])
            near, far = row[others] < row[number] - margin, row[others] > row[number] + margin
            found[number] = 0.5 + (far.sum() - near.sum()) / (2 * max(1, others.sum()))
    return found


def _cosines(vectors: Rows, own: Rows) -> tuple[Float64Array, float]:
    """Return the cosine of each to its own (n,), and the mean to all others."""
    one, other = directions(vectors), directions(own)
    cosines = np.asarray(np.einsum("ij,ij->i", one, other))
    count = len(one)
    return cosines, float((one.sum(axis=0) @ other.sum(axis=0) - cosines.sum()) / (count * (count - 1)))


def _recalls(right: NDArray[Any], found: Rows, is_found: NDArray[np.bool_]) -> tuple[Estimate, Estimate]:
    """Return recall at 1 and at 10: the share of right ids (n, t) among the first found (n, k), as many as can be."""
    scores: dict[int, list[float]] = {1: [], K: []}
    for of_query, ids, valid in zip(right.tolist(), found.tolist(), is_found.tolist(), strict=True):
        wanted = set(of_query)
        for k, values in scores.items():
            hits = wanted & {each for each, is_row in zip(ids[:k], valid[:k], strict=True) if is_row}
            values.append(len(hits) / min(len(wanted), k))
    first, ten = (Estimate.of(np.array(values)) for values in scores.values())
    return first, ten


def _ids_of(plan: Plan, written: Source, labels: NDArray[np.int64]) -> Rows:
    """Return the gallery's ids of what an index gives; anything where it gives -1."""
    if plan.gallery.id_facts.use in ("rows", "labels"):
        return labels
    rows, places = np.unique(np.maximum(labels, 0), return_inverse=True)
    ids = integer_or_text(read_row_ids(written, rows), written.column("id"))
    return ids[places].reshape(labels.shape)


def _refuse_chance(known: Known, order: Estimate) -> None:
    if order.mean >= _LEAST_ORDER and order.mean - _ERRORS * order.standard_error > 0.5:
        return
    raise GateError(
        f"the probe is hardly better than chance: of {len(known.vectors):,} {known.name} the new vectors are nearer to "
        f"their own item's row than to {order} of the others' (by chance 50 %, with a right h mostly 90 % and more). "
        f"Is h of another old or new model, are the two swapped, is the gallery another one, or are ids of the "
        f"{known.name} not those of the gallery's rows? Nothing was published"
    )


def searched_by_index(builder: IndexBuilder) -> Search:
    """Return the search of an index."""
    return lambda vectors, k: builder.search(vectors, k)[1]
