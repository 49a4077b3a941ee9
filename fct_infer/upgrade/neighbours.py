"""The true neighbours of some published rows, by which the recall of an index is measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fct_infer.gallery import Part, Source, SourceReader, read_row_ids, sample_rows
from fct_infer.index import ExactNeighbours, ExactSearch
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.plan import SEED, Plan
from fct_infer.upgrade.stream import index_rows
from fct_infer.upgrade.verify import read_block

RECALL_QUERIES = 100
RECALL_K = 10


class Neighbours:
    """Exact search for sampled rows among all rows, made while these pass on their way into the index.

    Rows that no index of this process was fed with are read back. What came of the others is not what lies on the disk:
    whoever relies on it compares that with :attr:`ExactNeighbours.ids`, see :meth:`rows_near`.

    Args:
        plan: of an upgrade with an index.
        threads: of the matrix products.

    Attributes:
        rows: (m,) sorted numbers of the sampled rows.

    Raises:
        GalleryError: a sampled row, or its result, is not finite.
    """

    def __init__(self, plan: Plan, threads: int) -> None:
        self._plan = plan
        self.rows = sample_rows(plan.gallery.schema.rows, RECALL_QUERIES, SEED + 2)
        queries = index_rows(plan.transform_rows(self.rows), plan.metric)
        self._search = ExactSearch(queries, RECALL_K + 1, plan.metric, threads)
        self._passed: dict[str, int] = {}  # rows by part

    def see(self, part: Part, start: int, rows: Float32Array) -> None:
        """Take note of rows of a part from ``start`` on, as the index takes them; each once, a part's in order."""
        first = part.first_row + start
        self._search.offer(rows, np.arange(first, first + len(rows), dtype=np.int64))
        self._passed[part.name] = self._passed.get(part.name, 0) + len(rows)

    def among_all(self, written: Source, report: Callable[[str, int], None]) -> ExactNeighbours:
        """Return the neighbours of each sampled row by row number, itself among them.

        Args:
            written: all published rows.
            report: told of what is read back.
        """
        plan = self._plan
        with SourceReader(written) as reader:
            for part in written.parts():
                for start in range(self._passed.get(part.name, 0), part.rows, plan.block_rows):
                    stop = min(start + plan.block_rows, part.rows)
                    self.see(part, start, index_rows(read_block(plan, reader, part, start, stop), plan.metric))
                    report("verify", part.first_row + stop)
        return self._search.found()

    def rows_near(self, exact: ExactNeighbours) -> NDArray[np.int64]:
        """Return the sorted numbers of the sampled rows and of their nearest ones, without all that are as near."""
        near = [ids[: exact.k] for ids in exact.ids if ids is not None]
        return np.unique(np.concatenate([self.rows, *near]))


def with_labels(plan: Plan, written: Source, exact: ExactNeighbours) -> ExactNeighbours:
    """Return neighbours by the labels under which the index is to hold them, as the published ids say."""
    kept = [ids for ids in exact.ids if ids is not None]
    if plan.gallery.id_facts.use != "labels" or not kept:
        return exact
    rows = np.unique(np.concatenate(kept))
    labels = read_row_ids(written, rows).astype(np.int64)
    found = (None if ids is None else labels[np.searchsorted(rows, ids)] for ids in exact.ids)
    return ExactNeighbours(exact.k, tuple(found))
