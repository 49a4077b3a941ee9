"""The compatibility matrix: every query model against every gallery, before and after transformation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError
from fct_infer.evaluation.checks import AnyEmbeddings, SearchOptions
from fct_infer.evaluation.compatibility import criterion
from fct_infer.evaluation.retrieval import QueryRanks, RetrievalMetrics, rank_queries
from fct_infer.pages import heat_map


@dataclass(frozen=True)
class CompatibilityMatrix:
    """M(query model, gallery) for all pairs.

    Attributes:
        queries: names of the query models, in the order in which they were deployed.
        galleries: names of the galleries: a model's name for what that model embedded, any other name for what a
            transformation made, such as ``"old, transformed"``.
        ranks: (query, gallery) -> the search, for the pairs whose dims agree.
    """

    queries: tuple[str, ...]
    galleries: tuple[str, ...]
    ranks: dict[tuple[str, str], QueryRanks]

    def metrics(self) -> dict[tuple[str, str], RetrievalMetrics]:
        """Return the figures of each pair that was measured."""
        return {pair: ranks.metrics() for pair, ranks in self.ranks.items()}

    def merits(self) -> list[list[float | None]]:
        """Return the mAP of each pair, query models down, galleries across; None where dims differ."""
        measured = {pair: metrics.mean_average_precision for pair, metrics in self.metrics().items()}
        return [[measured.get((query, gallery)) for gallery in self.galleries] for query in self.queries]

    def as_dict(self) -> dict[str, Any]:
        """Return the matrix as strict JSON."""
        return {
            "queries": list(self.queries),
            "galleries": list(self.galleries),
            "mean_average_precision": self.merits(),
        }

    def svg(self) -> str:
        """Return the matrix as a heat map of the mAP."""
        return heat_map(self.merits(), self.queries, self.galleries, "mAP by query model (down) and gallery (across)")


def compatibility_matrix(
    queries: Mapping[str, AnyEmbeddings],
    galleries: Mapping[str, AnyEmbeddings],
    query_labels: NDArray[Any],
    gallery_labels: NDArray[Any],
    *,
    ks: Iterable[int] = (1, 5),
    progress: Callable[[str, int, int], None] | None = None,
    **search: Unpack[SearchOptions],
) -> CompatibilityMatrix:
    """Search every gallery with every query model's queries where their dims agree.

    Args:
        queries: model -> (n_q, dim) embeddings of the same queries, oldest model first.
        galleries: name -> (n_g, dim) embeddings of the same items; as stored, or transformed.
        query_labels: (n_q,), as for :func:`rank_queries`, like all that follows.
        gallery_labels: (n_g,).
        ks: the k of CMC top-k and recall@k.
        progress: called with ``"query model/gallery"``, queries done and queries in all.
        search: see :class:`SearchOptions`.

    Raises:
        ArrayError: as for :func:`rank_queries`.
        UsageError: as for :func:`rank_queries`, or no pair has the same dims.
    """
    pairs = [(query, gallery) for query in queries for gallery in galleries]
    same_dims = [(q, g) for q, g in pairs if queries[q].shape[1:] == galleries[g].shape[1:]]
    if not same_dims:
        raise UsageError("no query model has the dims of any gallery")
    ks, ranks = tuple(ks), {}
    for query, gallery in same_dims:
        ranks[query, gallery] = rank_queries(
            queries[query],
            galleries[gallery],
            query_labels,
            gallery_labels,
            ks=ks,
            progress=None if progress is None else partial(progress, f"{query}/{gallery}"),
            **search,
        )
    return CompatibilityMatrix(tuple(queries), tuple(galleries), ranks)


def average_compatibility(merits: NDArray[np.float64]) -> float:
    """Return the share of pairs of models i > j with M(i, j) > M(j, j).

    This is AC of Biondi et al., "CoReS: Compatible Representations via Stationarity" (arXiv 2111.07632): the
    criterion counted over a sequence of models, 1 if every later model can be used with every earlier gallery.

    Args:
        merits: (t, t) M(query model i, gallery of model j), oldest model first; NaN, a pair that cannot be
            compared, does not meet the criterion.

    Raises:
        UsageError: not a square matrix of at least two models.
    """
    later, earlier = _pairs_of_models(merits)
    return float(np.mean([criterion(merits[i, j], merits[j, j]) for i, j in zip(later, earlier, strict=True)]))


def average_accuracy(merits: NDArray[np.float64]) -> float:
    """Return the mean of M(i, j) over all i >= j, CoReS's average multi-model accuracy; arguments as above.

    NaN, a pair that cannot be compared, counts as 0.
    """
    _pairs_of_models(merits)
    return float(np.nan_to_num(merits)[np.tril_indices(len(merits))].mean())


def _pairs_of_models(merits: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    if merits.ndim != 2 or merits.shape[0] != merits.shape[1] or len(merits) < 2:
        raise UsageError(f"a sequence wants a square matrix of at least two models, got shape {merits.shape}")
    return np.tril_indices(len(merits), -1)
