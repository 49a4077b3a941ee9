"""Without labels: how many of the nearest items of one search are those of another, over the same items."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fct_infer.errors import ArrayError, UsageError
from fct_infer.evaluation.checks import AnyEmbeddings, Int64Array, Metric, check_ks
from fct_infer.evaluation.neighbours import nearest
from fct_infer.evaluation.parallel import Progress
from fct_infer.gallery.jobs import Workers

SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class NeighbourOverlap:
    """How far two searches find the same items.

    Attributes:
        overlap: k -> mean over queries of the share of the k nearest in the one that are among the k nearest in the
            other, 0 to 1.
        standard_error: k -> of that mean, over the queries.
        queries: number of queries these are means over.
        gallery_rows: number of items.
        metric: how distances were measured.
    """

    overlap: dict[int, float]
    standard_error: dict[int, float]
    queries: int
    gallery_rows: int
    metric: Metric

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as strict JSON."""
        by_k = {name: {str(k): v for k, v in getattr(self, name).items()} for name in ("overlap", "standard_error")}
        return asdict(self) | by_k


def neighbour_overlap(
    gallery: AnyEmbeddings,
    new_gallery: AnyEmbeddings,
    *,
    queries: AnyEmbeddings | None = None,
    old_queries: AnyEmbeddings | None = None,
    ks: Iterable[int] = (10,),
    metric: Metric = "l2",
    exclude_self: bool = False,
    sample: int = SAMPLE_ROWS,
    seed: int = 0,
    threads: int | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> NeighbourOverlap:
    """Compare what is found in two galleries of the same items, which may have different dims.

    Args:
        gallery: (n_g, dim_1) float32 or float16.
        new_gallery: (n_g, dim_2), row i the same item.
        queries: (n_q, dim_2) what both are searched with; None searches each gallery with its own rows, a row without
            itself.
        old_queries: (n_q, dim_1) the same queries for ``gallery``; None takes ``queries``.
        ks: how many nearest items are compared.
        metric: ``"l2"``, ``"ip"`` or ``"cosine"``.
        exclude_self: query i is item i; it does not find itself.
        sample: queries taken at random where there are more.
        seed: of that choice.
        threads: threads to use; by default all cores this process may use.
        workers: who searches instead of this process, in :class:`StoredEmbeddings`.
        progress: called with queries done and queries in all, over both searches.

    Raises:
        ArrayError: wrong dtype or shape, a NaN or infinity, galleries or sets of queries of different lengths.
        UsageError: unknown metric, a k below one or beyond the gallery, a sample or thread count below one.
    """
    ks = check_ks(ks)
    if len(gallery) != len(new_gallery):
        raise ArrayError(
            f"gallery has {len(gallery)} rows, new_gallery {len(new_gallery)}; wanted the same items in the same order"
        )
    if sample < 1:
        raise UsageError(f"sample is {sample}, wanted at least 1")
    if queries is None:
        exclude_self = True
        pairs = ((gallery, gallery), (new_gallery, new_gallery))
    else:
        pairs = ((queries if old_queries is None else old_queries, gallery), (queries, new_gallery))
    counts = [len(searching) for searching, _ in pairs]
    if counts[0] != counts[1]:
        raise ArrayError(f"old_queries has {counts[0]} rows, queries {counts[1]}; wanted the same queries")
    chosen = np.arange(counts[0])
    if len(chosen) > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), sample, replace=False))
    found: list[Int64Array] = []

    def report(done: int, rows: int) -> None:
        if progress is not None:
            progress(len(found) * rows + done, 2 * rows)

    with nullcontext() if workers is None else workers.session():
        for searching, searched in pairs:
            _, rows = nearest(
                searching,
                searched,
                ks[-1],
                metric=metric,
                exclude_self=exclude_self,
                query_rows=chosen,
                threads=threads,
                workers=workers,
                progress=report,
            )
            found.append(rows)
    shares = {k: (found[0][:, :k, None] == found[1][:, None, :k]).any(axis=2).mean(axis=1) for k in ks}
    spread = {
        k: float(share.std(ddof=1) / np.sqrt(len(share))) if len(share) > 1 else 0.0 for k, share in shares.items()
    }
    means = {k: float(share.mean()) for k, share in shares.items()}
    return NeighbourOverlap(means, spread, len(chosen), len(gallery), metric)
