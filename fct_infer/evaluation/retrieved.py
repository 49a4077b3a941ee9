"""What a few queries find in each search: rows for a report to show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.evaluation.checks import Int64Array
from fct_infer.evaluation.neighbours import nearest
from fct_infer.evaluation.relevance import Relevance
from fct_infer.evaluation.study import Settings, Study, StudyInputs, json_label, search_options
from fct_infer.gallery.jobs import Workers

_QUERIES_SHOWN, _FLIPS_SHOWN, _FOUND_SHOWN = 8, 2, 6


@dataclass(frozen=True)
class RetrievedRow:
    """What one query finds in each search.

    Attributes:
        query: row of the query.
        label: its label.
        found: search -> gallery rows from nearest on.
        is_relevant: search -> for each of them, whether it has the query's label.
        note: what is special about the query, such as "repaired".
    """

    query: int
    label: Any
    found: dict[str, list[int]]
    is_relevant: dict[str, list[bool]]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as strict JSON."""
        return asdict(self)


def retrieved_rows(inputs: StudyInputs, found: Study, workers: Workers | None = None) -> list[RetrievedRow]:
    """Return what a few queries find: some that flipped, then some spread over all, with their nearest gallery rows.

    ``inputs`` and ``workers`` as :func:`study` had them.
    """
    settings, kept = found.settings, np.flatnonzero(found.ranks.first_relevant > 0)
    notes: dict[int, str] = {}
    if found.flips is not None:
        notes |= dict.fromkeys(found.flips.positive[:_FLIPS_SHOWN].tolist(), "repaired")
        notes |= dict.fromkeys(found.flips.negative[:_FLIPS_SHOWN].tolist(), "broken")
    spread = kept[np.linspace(0, len(kept) - 1, _QUERIES_SHOWN).astype(np.int64)].tolist()
    shown = list(dict.fromkeys([*notes, *spread]))[:_QUERIES_SHOWN]
    searches = dict.fromkeys([("old", "old"), found.searched, ("new", "new")])
    is_left_out = _left_out(inputs, settings, np.array(shown))
    k = min(_FOUND_SHOWN + int(is_left_out.sum(axis=1).max()), len(inputs.gallery))
    neighbours = {}
    for query, gallery in searches:
        if (query, gallery) in found.matrix.ranks:
            sets = inputs.query_sets()[query], inputs.galleries()[gallery]
            _, nearest_rows = nearest(
                *sets,
                k,
                metric=settings.metric,
                threads=settings.threads,
                workers=workers,
                query_rows=np.array(shown),
            )
            neighbours[f"{query}/{gallery}"] = [
                [row for row in of_query.tolist() if not out[row]][:_FOUND_SHOWN]
                for of_query, out in zip(nearest_rows, is_left_out, strict=True)
            ]
    rows = []
    for index, query in enumerate(shown):
        items = {name: found_rows[index] for name, found_rows in neighbours.items()}
        label = inputs.query_labels[query]
        relevant = {name: np.isin(inputs.gallery_labels[at], label).tolist() for name, at in items.items()}
        names = [json_label(each) for each in np.unique(label).tolist()]
        rows.append(
            RetrievedRow(
                query, ", ".join(map(str, names)) if label.ndim else names[0], items, relevant, notes.get(query, "")
            )
        )
    return rows


def _left_out(inputs: StudyInputs, settings: Settings, queries: Int64Array) -> NDArray[np.bool_]:
    """Return which gallery rows each of a few queries is not ranked against: (b, n_g)."""
    search = search_options(inputs, settings)
    relevance = Relevance(
        inputs.query_labels,
        inputs.gallery_labels,
        (len(inputs.queries), len(inputs.gallery)),
        exclude_self=settings.exclude_self,
        exclusions=search["exclusions"],
    )
    is_left_out = np.zeros((len(queries), len(inputs.gallery)), bool)
    is_left_out.ravel()[relevance.left_out(queries)] = True
    return is_left_out
