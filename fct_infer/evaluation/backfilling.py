"""The backfilling curve: how good the search is while a gallery is being re-embedded, row by row in some order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation.checks import AnyEmbeddings, Int64Array, SearchOptions, check_ks
from fct_infer.evaluation.parallel import Progress
from fct_infer.evaluation.ranking import RankedBatch, Ranking
from fct_infer.evaluation.scores import Float64Array

POINTS = 22  # as FastFill measures it: nothing, 20 between, all

AtPoints: TypeAlias = tuple[int, Int64Array, Float64Array]
"""A query, the rank of its first relevant row, and its average precision: (orders, points)."""


@dataclass(frozen=True)
class BackfillingCurve:
    """M over the share of gallery rows re-embedded; of several orders of one kind, the mean.

    Attributes:
        shares: share of the rows re-embedded at each point, 0 to 1.
        mean_average_precision: mAP at each point.
        cmc: k -> CMC top-k at each point.
        area_spread: standard deviation of the mAP's area over several orders; None for one order.
    """

    shares: tuple[float, ...]
    mean_average_precision: tuple[float, ...]
    cmc: dict[int, tuple[float, ...]]
    area_spread: float | None = None

    @property
    def area(self) -> float:
        """Mean mAP over the points, FastFill's measure (arXiv 2303.04766)."""
        return float(np.mean(self.mean_average_precision))

    def cmc_area(self, k: int) -> float:
        """Return the mean CMC top-k over the points."""
        return float(np.mean(self.cmc[k]))

    def smallest_share(self, level: float) -> float | None:
        """Return the share at the first point whose mAP is at least ``level``; None if none is."""
        reached = (
            share for share, merit in zip(self.shares, self.mean_average_precision, strict=True) if merit >= level
        )
        return next(reached, None)

    def as_dict(self) -> dict[str, Any]:
        """Return the curve as strict JSON."""
        return {
            "shares": list(self.shares),
            "mean_average_precision": list(self.mean_average_precision),
            "cmc": {str(k): list(values) for k, values in self.cmc.items()},
            "area": {
                "mean_average_precision": self.area,
                "cmc": {str(k): self.cmc_area(k) for k in self.cmc},
                "spread": self.area_spread,
            },
        }


def backfilling_curves(
    queries: AnyEmbeddings,
    gallery: AnyEmbeddings,
    new_gallery: AnyEmbeddings,
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    orders: Mapping[str, Sequence[Int64Array]],
    *,
    ks: Iterable[int] = (1, 5),
    points: int = POINTS,
    progress: Progress | None = None,
    **search: Unpack[SearchOptions],
) -> dict[str, BackfillingCurve]:
    """Measure the search at ``points`` equally spaced shares of re-embedded rows, for several orders at once.

    Every point is exactly what :func:`rank_queries` finds in a gallery of the first rows of the order from
    ``new_gallery`` and the others from ``gallery``. All rows of both are scored and placed once a query; a point
    only counts them.

    Args:
        queries: (n_q, dim) embeddings by the new model.
        gallery: (n_g, dim) what is searched before: transformed, or old if the models are compatible.
        new_gallery: (n_g, dim) the same rows re-embedded.
        query_labels: (n_q,), as for :func:`rank_queries`, like all that follows unsaid.
        gallery_labels: (n_g,).
        orders: name -> orders of one kind, each holding every row number once, first to be re-embedded first.
        ks: the k of CMC top-k.
        points: number of points, the first at nothing and the last at all rows.
        progress: called with queries done and queries in all.
        search: see :class:`SearchOptions`; memory is about 150 MB a thread.

    Raises:
        ArrayError: as for :func:`rank_queries`, galleries of different shapes, or an order that is no permutation.
        UsageError: as for :func:`rank_queries`, fewer than two points, or no orders.
    """
    if points < 2 or not orders or not all(orders.values()):
        raise UsageError(f"a backfilling curve wants two points and an order at least, got {points} and {list(orders)}")
    if np.shape(gallery) != np.shape(new_gallery):
        raise ArrayError(f"gallery has shape {np.shape(gallery)}, new_gallery {np.shape(new_gallery)}; wanted the same")
    ks = check_ks(ks)
    rows_done = np.rint(np.linspace(0, len(gallery), points)).astype(np.int64)
    flat = [(name, order) for name, same_kind in orders.items() for order in same_kind]
    turns = tuple(_turns(name, order, rows_done) for name, order in flat)
    ranking = Ranking(queries, [gallery, new_gallery], query_labels, gallery_labels, **search)
    first_relevant = np.zeros((len(flat), points, len(queries)), np.int64)
    precisions = np.zeros((len(flat), points, len(queries)))

    def record(found: Iterable[AtPoints]) -> None:
        for query, *of_query in found:
            first_relevant[..., query], precisions[..., query] = of_query

    ranking.each_block(_Points(turns, points), record, progress)
    merits = precisions[..., ranking.kept].mean(axis=2)
    cmc = {k: (first_relevant[..., ranking.kept] <= k).mean(axis=2) for k in ks}
    shares = rows_done / len(gallery)
    names = np.array([name for name, _ in flat])
    return {name: _curve(shares, merits, cmc, names == name) for name in orders}


@dataclass(frozen=True)
class _Points:
    """A :class:`~fct_infer.evaluation.ranking.Measure`: what every query finds at each point of each order."""

    turns: tuple[NDArray[np.unsignedinteger[Any]], ...]
    points: int

    def __call__(self, batches: Iterator[RankedBatch]) -> list[AtPoints]:
        return [found for batch in batches for found in self._of_batch(batch)]

    def _of_batch(self, batch: RankedBatch) -> Iterator[AtPoints]:
        numbers = np.arange(1, batch.rows.shape[1] + 1)
        shape = len(self.turns), self.points
        rankings = zip(batch.rows, batch.relevant.order, *batch.places, strict=True)
        for query, of_query in zip(batch.queries.tolist(), rankings, strict=True):
            first_relevant, precisions = np.empty(shape, np.int64), np.empty(shape)
            for number, turn in enumerate(self.turns):
                ranks = _ranks_at_points(turn, self.points, *of_query)
                first_relevant[number] = ranks[:, 0]
                precisions[number] = (numbers / ranks).mean(axis=1)
            yield query, first_relevant, precisions


def _turns(name: str, order: Int64Array, rows_done: Int64Array) -> NDArray[np.unsignedinteger[Any]]:
    """Return for each row the number of the first point at which it is re-embedded, in few bytes."""
    rows = int(rows_done[-1])
    if order.shape != (rows,) or not np.array_equal(np.sort(order), np.arange(rows)):
        raise ArrayError(f"order {name!r} has shape {order.shape}; wanted each of the {rows} row numbers once")
    turns = np.empty(rows, np.min_scalar_type(len(rows_done)))
    turns[order] = rows_done.searchsorted(np.arange(rows), "right")
    return turns


def _ranks_at_points(
    turn: NDArray[np.unsignedinteger[Any]], points: int, rows: Int64Array, order: Int64Array, *places: Int64Array
) -> Int64Array:
    """Return the ranks of one query's relevant rows at each point, ascending: (points, r).

    Args:
        turn: (n_g,) point from which on each row is re-embedded.
        points: number of points.
        rows: (r,) relevant rows.
        order: (2 r,) ranking of their old (0 to r - 1) and their new (r to 2 r - 1) scores.
        places: of the old and of the new gallery, (n_g,) how many of those 2 r come before each row.
    """
    count, cells = len(order), (len(order) + 1) * points
    gone, come = (np.bincount(place * points + turn, minlength=cells) for place in places)
    # rows at or before each of the 2 r scores, at each point: all old ones, less the old gone, plus the new come
    change = (come - gone).reshape(-1, points)[:count].cumsum(axis=0).cumsum(axis=1)
    before = change + np.cumsum(np.bincount(places[0], minlength=count)[:count])[:, None]
    is_new = order >= len(rows)
    is_there = (turn[rows[order % len(rows)]] <= np.arange(points)[:, None]) == is_new
    ranks: Int64Array = before.T[is_there].reshape(points, len(rows))
    return ranks


def _curve(
    shares: Float64Array, merits: Float64Array, cmc: Mapping[int, Float64Array], of_kind: NDArray[np.bool_]
) -> BackfillingCurve:
    areas = merits[of_kind].mean(axis=1)
    return BackfillingCurve(
        tuple(shares.tolist()),
        tuple(merits[of_kind].mean(axis=0).tolist()),
        {k: tuple(values[of_kind].mean(axis=0).tolist()) for k, values in cmc.items()},
        float(areas.std()) if len(areas) > 1 else None,
    )
