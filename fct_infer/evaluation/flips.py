"""Which queries an upgrade repairs and which it breaks: positive and negative flips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fct_infer.errors import UsageError
from fct_infer.evaluation.checks import Int64Array
from fct_infer.evaluation.retrieval import QueryRanks


@dataclass(frozen=True)
class Flips:
    """Queries whose search turned right or wrong; right means a relevant item among the ``k`` nearest.

    Attributes:
        positive: rows of the queries that were wrong before and are right after, the largest change of average
            precision first.
        negative: rows of those that were right and are wrong (Yan et al., CVPR 2021, arXiv 2011.09161), likewise.
        queries: number of queries that have something relevant in both searches.
        k: how many nearest items count.
    """

    positive: Int64Array
    negative: Int64Array
    queries: int
    k: int

    def as_dict(self, examples: int = 20) -> dict[str, Any]:
        """Return counts, rates and the first ``examples`` query rows of each kind as strict JSON."""
        kinds = {"positive": self.positive, "negative": self.negative}
        return {"k": self.k, "queries": self.queries} | {
            name: {"count": len(rows), "rate": len(rows) / self.queries, "query_rows": rows[:examples].tolist()}
            for name, rows in kinds.items()
        }


def flips(before: QueryRanks, after: QueryRanks, k: int = 1) -> Flips:
    """Compare two searches with the same queries, such as old/old and new/old.

    Raises:
        UsageError: different numbers of queries, ``k`` below one, or no query that both can answer.
    """
    if len(before.first_relevant) != len(after.first_relevant):
        raise UsageError(
            f"flips want the same queries twice, got {len(before.first_relevant)} and {len(after.first_relevant)}"
        )
    if k < 1:
        raise UsageError(f"flips are asked at k = {k}, wanted at least 1")
    answerable = (before.first_relevant > 0) & (after.first_relevant > 0)
    if not answerable.any():
        raise UsageError("no query has something relevant in both searches")
    was_right, is_right = before.first_relevant <= k, after.first_relevant <= k
    change = after.average_precision - before.average_precision
    positive = np.flatnonzero(answerable & ~was_right & is_right)
    negative = np.flatnonzero(answerable & was_right & ~is_right)
    return Flips(
        positive[np.argsort(-change[positive], kind="stable")],
        negative[np.argsort(change[negative], kind="stable")],
        int(answerable.sum()),
        k,
    )
