"""What is measured of the result between its last row and publishing it: rows, index, meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GateError
from fct_infer.gallery.destination import Work
from fct_infer.index import ExactNeighbours, IndexBuilder, tune_nprobe
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.meaning import exact_search, measure_meaning, searched_by_index
from fct_infer.upgrade.neighbours import RECALL_K, Neighbours, with_labels
from fct_infer.upgrade.plan import SEED, Plan
from fct_infer.upgrade.report import Meaning, Verification
from fct_infer.upgrade.stream import Watch, index_rows, labels_of_rows
from fct_infer.upgrade.verify import corpus_blocks, verify_cosine
from fct_infer.upgrade.work import FolderWork, own_work


class Checks:
    """The checks of one upgrade.

    Args:
        plan: of the upgrade.
        report: told of the stage and the rows it has seen.

    Attributes:
        queries: published rows (n, new_dim) that :meth:`verify` tried the index with.
    """

    def __init__(self, plan: Plan, report: Callable[[str, int], None]) -> None:
        self._plan, self._report = plan, report
        self._neighbours: Neighbours | None = None
        self.queries: Float32Array = np.empty((0, plan.new_dim), np.float32)

    def begin(self, builder: IndexBuilder) -> None:
        """Choose what the index will be tried with, before it is fed with rows.

        Raises:
            GalleryError: a row of the sample, or its result, is not finite.
        """
        self._neighbours = Neighbours(self._plan, builder.threads)

    @property
    def watch(self) -> Watch | None:
        """What is to be shown the rows that the index is fed with; None without an index."""
        return None if self._neighbours is None else self._neighbours.see

    def verify(self, work: Work, builder: IndexBuilder | None) -> Verification:
        """Recompute rows, and compare the index with exact search.

        Exact search has seen rows on their way into the index. What it found is therefore read back and recomputed like
        the sample: recall is measured with rows, and their ids, that lie on the disk.

        Raises:
            GateError: one of them is not what it should be.
        """
        plan = self._plan
        self._report("verify", 0)
        verification = verify_cosine(plan, *work.read_back(plan.settings.verify_rows, SEED + 1))
        if builder is None:
            return verification
        assert isinstance(work, FolderWork) and self._neighbours is not None
        with own_work():
            written = work.open_written(plan.gallery.parts())
            if builder.rows != written.schema.rows:
                raise GateError(f"the index holds {builder.rows} rows, the gallery {written.schema.rows}")
            exact = self._neighbours.among_all(written, self._report)
        rows, near = self._neighbours.rows, self._neighbours.rows_near(exact)
        names, old, side, new = work.read_back_rows(near)
        verify_cosine(plan, names, old, side, new)
        self._report("verify", written.schema.rows)
        near_rows, near_ids = index_rows(new, plan.metric), labels_of_rows(plan, near)
        own = np.searchsorted(near, rows)
        self.queries = near_rows[own]
        with own_work():
            recall, tried = self._recall(
                builder, near_ids[own], with_labels(plan, written, exact), (near_ids, near_rows)
            )
        return replace(verification, queries=len(rows), recall_at_10=recall, recall_by_nprobe=tried)

    def _recall(
        self,
        builder: IndexBuilder,
        own_ids: NDArray[np.int64],
        exact: ExactNeighbours,
        near: tuple[NDArray[np.int64], Float32Array],
    ) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Measure recall@10 against exact search over all published rows, choosing nprobe on the way."""
        limit = self._plan.settings.min_recall
        tried: dict[int, float] = {}
        recall = tune_nprobe(builder, self.queries, own_ids, exact, limit, tried, near)
        if limit is not None and not recall >= limit:
            way_out = "--force --restart trains one on all rows" if builder.loaded_rows else "choose another --index"
            raise GateError(f"recall@{RECALL_K} of the index is {recall:.3f}, below {limit}; {way_out}")
        return recall, tuple(tried.items())

    def probe(self, work: Work, builder: IndexBuilder | None) -> tuple[Meaning, ...]:
        """Measure what was written by what is known of the new model.

        Raises:
            GateError: it means no more than chance, or too little.
        """
        plan = self._plan
        assert isinstance(work, FolderWork)  # of other destinations no probe is taken
        self._report("probe", 0)
        with own_work():
            written = work.open_written(plan.gallery.parts())
            if builder is not None:
                return measure_meaning(plan, written, searched_by_index(builder), "index")
            blocks = corpus_blocks(plan, written, lambda _, rows: self._report("probe", rows))
            return measure_meaning(plan, written, exact_search(blocks, plan.metric), "exact search")
