"""What a few queries find in each search: rows for a report to show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fct_infer.evaluation.neighbours import nearest
from fct_infer.evaluation.study import Study, StudyInputs, json_label

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


def retrieved_rows(inputs: StudyInputs, found: Study) -> list[RetrievedRow]:
    """Return what a few queries find: some that flipped, then some spread over all, with their nearest gallery rows."""
    settings, kept = found.settings, np.flatnonzero(found.ranks.first_relevant > 0)
    notes: dict[int, str] = {}
    if found.flips is not None:
        notes |= dict.fromkeys(found.flips.positive[:_FLIPS_SHOWN].tolist(), "repaired")
        notes |= dict.fromkeys(found.flips.negative[:_FLIPS_SHOWN].tolist(), "broken")
    spread = kept[np.linspace(0, len(kept) - 1, _QUERIES_SHOWN).astype(np.int64)].tolist()
    shown = list(dict.fromkeys([*notes, *spread]))[:_QUERIES_SHOWN]
    searches = dict.fromkeys([("old", "old"), found.searched, ("new", "new")])
    neighbours = {
        f"{query}/{gallery}": nearest(
            inputs.query_sets()[query],
            inputs.galleries()[gallery],
            min(_FOUND_SHOWN, len(inputs.gallery) - settings.exclude_self),
            query_rows=np.array(shown),
            **settings.search,
        )[1]
        for query, gallery in searches
        if (query, gallery) in found.matrix.ranks
    }
    rows = []
    for index, query in enumerate(shown):
        items = {name: found_rows[index].tolist() for name, found_rows in neighbours.items()}
        label = inputs.query_labels[query]
        relevant = {name: (inputs.gallery_labels[at] == label).tolist() for name, at in items.items()}
        rows.append(RetrievedRow(query, json_label(label.item()), items, relevant, notes.get(query, "")))
    return rows
