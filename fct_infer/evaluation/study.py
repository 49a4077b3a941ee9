"""One upgrade judged whole: every pair of models, flips, the backfilling curves, and whether it is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError
from fct_infer.evaluation.backfilling import BackfillingCurve, backfilling_curves
from fct_infer.evaluation.checks import AnyEmbeddings, Int64Array, Metric, SearchOptions
from fct_infer.evaluation.compatibility import CompatibilityRow, CompatibilityTable
from fct_infer.evaluation.flips import Flips, flips
from fct_infer.evaluation.matrix import CompatibilityMatrix, compatibility_matrix
from fct_infer.evaluation.orders import Direction, class_mean_orders, oracle_order, random_order, uncertainty_order
from fct_infer.evaluation.relevance import Exclusions
from fct_infer.evaluation.retrieval import Figure, QueryRanks, RetrievalMetrics
from fct_infer.evaluation.verdict import Verdict, judge
from fct_infer.gallery.jobs import Workers
from fct_infer.pages import html_summary

StageProgress = Callable[[str, int, int], None]
TRANSFORMED = "old, transformed"
ORACLE = "oracle"
CLASS_MEAN = "class mean"
_WORDS: dict[Direction, str] = {"far": "far from", "near": "near"}
_RANDOM_SEEDS = 3


@dataclass(frozen=True)
class StudyInputs:
    """What is known of an upgrade; only the first four are needed.

    Embeddings are arrays, or :class:`StoredEmbeddings` that are read where they are searched.

    Attributes:
        queries: (n_q, dim) by the new model.
        gallery: (n_g, dim) what is searched: old, or old and transformed.
        query_labels: (n_q,) integers, str or bytes; or (n_q, t), such as the ids of the right rows.
        gallery_labels: (n_g,), comparable with them.
        old_queries: (n_q, dim_old) the same queries by the old model; gives old/old.
        old_gallery: (n_g, dim_old) as it was before the transformation, if ``gallery`` is transformed.
        new_gallery: (n_g, dim) the gallery re-embedded by the new model; gives new/new and the backfilling curves.
        uncertainty: (n_g,) of each transformed row, larger for less sure.
        query_cameras, gallery_cameras, query_groups, gallery_groups: see :class:`Exclusions`.
    """

    queries: AnyEmbeddings
    gallery: AnyEmbeddings
    query_labels: NDArray[Any]
    gallery_labels: NDArray[Any]
    old_queries: AnyEmbeddings | None = None
    old_gallery: AnyEmbeddings | None = None
    new_gallery: AnyEmbeddings | None = None
    uncertainty: NDArray[Any] | None = None
    query_cameras: NDArray[Any] | None = None
    gallery_cameras: NDArray[Any] | None = None
    query_groups: NDArray[Any] | None = None
    gallery_groups: NDArray[Any] | None = None

    @property
    def searched(self) -> tuple[str, str]:
        """Names of the query model and the gallery that are in question."""
        return "new", "old" if self.old_gallery is None else TRANSFORMED

    def query_sets(self) -> dict[str, AnyEmbeddings]:
        """Return the queries by model, oldest first."""
        return _given(old=self.old_queries, new=self.queries)

    def galleries(self) -> dict[str, AnyEmbeddings]:
        """Return the galleries by name, oldest first."""
        return _given(**{"old": self.old_gallery, self.searched[1]: self.gallery, "new": self.new_gallery})


@dataclass(frozen=True)
class Settings:
    """How a study measures: as the arguments of :func:`rank_queries` and :class:`Exclusions`.

    ``figures`` are those shown.
    """

    metric: Metric = "l2"
    exclude_self: bool = False
    ks: tuple[int, ...] = (1, 5)
    figures: tuple[Figure, ...] = ("cmc", "map")
    per_class: bool = False
    threads: int | None = None
    ignored_labels: tuple[Any, ...] = ()
    distractor_labels: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes:
        matrix: every query model against every gallery.
        ranks: the search in question, new/old.
        flips: from old/old to it; None if the old model's queries are not known.
        curves: backfilling curves by order; empty if the gallery was not re-embedded.
        per_class: label -> figures of the search in question; empty if not asked for.
        verdict: what to do; None if nothing is known to compare with.
        settings: how it was measured.
    """

    matrix: CompatibilityMatrix
    searched: tuple[str, str]
    flips: Flips | None
    curves: dict[str, BackfillingCurve]
    per_class: dict[Any, RetrievalMetrics]
    verdict: Verdict | None
    settings: Settings

    def __repr__(self) -> str:
        metrics = self.ranks.metrics()
        shares = ", ".join(
            f"{name} {100 * share:.1f} %" for name, share in metrics.shares(self.settings.figures).items()
        )
        return f"Study({'/'.join(self.searched)}: {metrics.queries:,} queries, {shares})"

    def _repr_html_(self) -> str:
        metrics = self.ranks.metrics()
        known = {name: f"{100 * share:.2f} %" for name, share in metrics.shares(self.settings.figures).items()}
        known["queries"] = f"{metrics.queries:,}"
        if self.verdict is not None:
            known["worth it?"] = self.verdict.sentence
        return html_summary(f"Study of {'/'.join(self.searched)}", known)

    @property
    def ranks(self) -> QueryRanks:
        """The search in question, query by query."""
        return self.matrix.ranks[self.searched]

    @property
    def left_out(self) -> str:
        """Say which orders of backfilling are missing, and why; empty if none are that the labels would allow."""
        if not self.curves or any(CLASS_MEAN in name for name in self.curves):
            return ""
        return f"no order by the {CLASS_MEAN}: every gallery row has a label of its own, and is its own mean"

    def table(self) -> CompatibilityTable:
        """Return every pair with its figures, judged by old/old and new/new."""
        rows = [
            CompatibilityRow(query, gallery, metrics) for (query, gallery), metrics in self.matrix.metrics().items()
        ]
        return CompatibilityTable(tuple(rows), figures=self.settings.figures)

    def by_class(self) -> list[list[str]]:
        """Return the figures of each label as text, header first, the worst mAP first."""
        worst_first = sorted(self.per_class.items(), key=lambda item: item[1].mean_average_precision)
        names = worst_first[0][1].shares(self.settings.figures)
        lines = [["label", "queries", *(f"{name} %" for name in names)]]
        for label, metrics in worst_first:
            shares = metrics.shares(self.settings.figures).values()
            lines.append([str(json_label(label)), f"{metrics.queries:,}", *(f"{100 * share:.1f}" for share in shares)])
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON: the figures of the search in question first, then what was given for."""
        document = self.ranks.metrics().as_dict() | {
            "exclude_self": self.settings.exclude_self,
            "ignored_labels": [json_label(label) for label in self.settings.ignored_labels],
            "distractor_labels": [json_label(label) for label in self.settings.distractor_labels],
        }
        if len(self.matrix.ranks) > 1:
            document |= {"compatibility": self.table().as_dict()["rows"], "matrix": self.matrix.as_dict()}
        if self.flips is not None:
            document["flips"] = self.flips.as_dict()
        if self.curves:
            document["backfilling"] = {name: curve.as_dict() for name, curve in self.curves.items()}
        if self.left_out:
            document["left_out"] = self.left_out
        if self.per_class:
            document["per_class"] = [
                {"label": json_label(label)} | metrics.as_dict() for label, metrics in self.per_class.items()
            ]
        if self.verdict is not None:
            document["verdict"] = self.verdict.as_dict()
        return document


def study(
    inputs: StudyInputs,
    settings: Settings,
    progress: StageProgress | None = None,
    workers: Workers | None = None,
) -> Study:
    """Measure all that the inputs allow, here or by workers elsewhere; what they find is the same.

    Raises:
        ArrayError: an array is wrong in itself or does not fit the others; names it.
        UsageError: a setting that does not exist.
        FctError: as for :func:`~fct_infer.evaluation.blocks.do_blocks`.
    """
    _check_shapes(inputs)
    with nullcontext() if workers is None else workers.session():
        return _study(inputs, settings, progress, search_options(inputs, settings) | {"workers": workers})


def _study(inputs: StudyInputs, settings: Settings, progress: StageProgress | None, search: SearchOptions) -> Study:
    matrix = compatibility_matrix(
        inputs.query_sets(),
        inputs.galleries(),
        inputs.query_labels,
        inputs.gallery_labels,
        ks=settings.ks,
        progress=progress,
        **search,
    )
    ranks = matrix.ranks[inputs.searched]
    old_old, new_new = (matrix.ranks.get((name, name)) for name in ("old", "new"))
    curves = _curves(inputs, settings, search, progress)
    return Study(
        matrix=matrix,
        searched=inputs.searched,
        flips=None if old_old is None else flips(old_old, ranks),
        curves=curves,
        per_class=ranks.by_class(inputs.query_labels) if settings.per_class else {},
        verdict=_verdict(old_old, ranks, new_new, curves),
        settings=settings,
    )


def search_options(inputs: StudyInputs, settings: Settings) -> SearchOptions:
    """Return what every search of a study shares.

    Raises:
        UsageError: cameras or groups of only one of the sets.
    """
    exclusions = Exclusions(
        inputs.query_cameras,
        inputs.gallery_cameras,
        inputs.query_groups,
        inputs.gallery_groups,
        settings.ignored_labels,
        settings.distractor_labels,
    )
    return {
        "metric": settings.metric,
        "exclude_self": settings.exclude_self,
        "threads": settings.threads,
        "exclusions": exclusions,
    }


def _curves(
    inputs: StudyInputs, settings: Settings, search: SearchOptions, progress: StageProgress | None
) -> dict[str, BackfillingCurve]:
    if inputs.new_gallery is None:
        return {}
    arrays = (inputs.queries, inputs.gallery, inputs.new_gallery, inputs.query_labels, inputs.gallery_labels)

    orders: dict[str, Sequence[Int64Array]] = {}
    if inputs.uncertainty is not None:
        orders["most uncertain first"] = [uncertainty_order(inputs.uncertainty)]
    directions: tuple[Direction, ...] = ("far", "near")
    if len(np.unique(inputs.gallery_labels)) == len(inputs.gallery_labels):
        directions = ()  # see Study.left_out
    by_class = class_mean_orders(
        inputs.gallery, inputs.gallery_labels, directions, settings.metric, search.get("workers")
    )
    for first in directions:
        orders[f"{_WORDS[first]} the {CLASS_MEAN} first"] = [by_class[first]]
    orders["random"] = [random_order(len(inputs.gallery), seed) for seed in range(_RANDOM_SEEDS)]
    orders[ORACLE] = [oracle_order(*arrays, progress=progress and partial(progress, "oracle"), **search)]
    return backfilling_curves(
        *arrays, orders, ks=settings.ks, progress=progress and partial(progress, "backfilling"), **search
    )


def _verdict(
    old_old: QueryRanks | None, ranks: QueryRanks, new_new: QueryRanks | None, curves: dict[str, BackfillingCurve]
) -> Verdict | None:
    if old_old is None and new_new is None:
        return None
    old, here, new = (
        None if found is None else found.metrics().mean_average_precision for found in (old_old, ranks, new_new)
    )
    assert here is not None
    return judge(old, here, new, {name: curve for name, curve in curves.items() if name != ORACLE})


def _check_shapes(inputs: StudyInputs) -> None:
    """Raise ArrayError unless all sets of queries, and all galleries, have the same number of rows."""
    for of, others in (("queries", ("old_queries",)), ("gallery", ("old_gallery", "new_gallery", "uncertainty"))):
        wanted = len(getattr(inputs, of))
        for name in others:
            array = getattr(inputs, name)
            if array is not None and len(array) != wanted:
                raise ArrayError(
                    f"{name} has {len(array)} rows, {of} has {wanted}; wanted the same items in the same order"
                )
    old = "gallery" if inputs.old_gallery is None else "old_gallery"
    for one, other in (("queries", "gallery"), ("queries", "new_gallery"), ("old_queries", old)):
        first, second = getattr(inputs, one), getattr(inputs, other)
        if first is not None and second is not None and first.shape[1:] != second.shape[1:]:
            raise ArrayError(f"{one} have {first.shape[1]} dims, {other} has {second.shape[1]}; wanted the same")


def _given(**sets: AnyEmbeddings | None) -> dict[str, AnyEmbeddings]:
    return {name: array for name, array in sets.items() if array is not None}


def json_label(label: Any) -> Any:
    """Return a label as JSON can hold it."""
    return label.decode(errors="replace") if isinstance(label, bytes) else label
