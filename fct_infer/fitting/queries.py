"""Queries that a user brings, and the items that are right for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fct_infer.connectors.joining import Int64Array
from fct_infer.errors import ArrayError, GalleryError, GateError, NonFiniteError, UsageError
from fct_infer.fitting.measures import ByTruth, K
from fct_infer.fitting.pairs import Pairs
from fct_infer.gallery import sample_rows
from fct_infer.transformation import Float32Array

_FEWEST, _ASKED = 50, 1_000  # queries that can tell, and that are asked at most


@dataclass(frozen=True)
class Queries:
    """Queries of the user's own.

    Attributes:
        new: (q, d_new) float32, by the new model.
        truth: (q, t) or (q,) numbers of the pairs that are right; -1 for none.
        old: (q, d_old) float32, the same by the old model, or None.
    """

    new: Float32Array
    truth: Int64Array
    old: Float32Array | None = None

    def checked(self, pairs: Pairs) -> Queries:
        """Return the queries that have a right row among the pairs, truth as (q, t).

        Raises:
            UsageError: queries of another width.
            ArrayError: arrays of another kind or shape, or that do not fit together, or numbers of no pair.
            GalleryError: no query has a right row.
        """
        given = {"new": (self.new, pairs.new.shape[1]), "old": (self.old, pairs.old.shape[1])}
        truth = np.asarray(self.truth)
        truth = truth[:, None] if truth.ndim == 1 else truth
        for name, (rows, width) in given.items():
            if rows is None:
                continue
            if rows.ndim != 2 or rows.dtype.kind != "f" or len(rows) != len(truth):
                raise ArrayError(
                    f"{name} queries: are {rows.dtype} {rows.shape}, wanted floats ({len(truth)}, {width})"
                )
            if rows.shape[1] != width:
                raise UsageError(
                    f"{name} queries are {rows.shape[1]} wide, wanted {width}; OLD is {pairs.old.shape[1]} wide, "
                    f"NEW {pairs.new.shape[1]}: are they swapped?"
                )
            if not (finite := np.isfinite(rows).all(axis=1)).all():
                raise NonFiniteError(f"{name} queries", int(np.argmin(finite)))
        if truth.ndim != 2 or truth.dtype.kind not in "iu":
            raise ArrayError(f"truth: is {truth.dtype} {truth.shape}, wanted integers (q, t) or (q,)")
        if truth.size and not -1 <= truth.min() <= truth.max() < len(pairs):
            raise ArrayError(f"truth: goes from {truth.min()} to {truth.max()}, wanted -1 to {len(pairs) - 1}")
        known = (truth >= 0).any(axis=1)
        if not known.any():
            raise GalleryError("no query's right row is among the pairs, so they cannot say which map is best")
        new, old = (
            None if rows is None else np.ascontiguousarray(rows[known], np.float32) for rows, _ in given.values()
        )
        assert new is not None
        return Queries(new, truth[known].astype(np.int64), old)

    def refuse_foreign(self, measure: ByTruth, old: Float32Array, new: Float32Array) -> None:
        """Raise a GateError if queries find their right rows no better than by chance even without a map.

        Args:
            measure: of these queries, in a gallery of the judged rows.
            old, new: the judged rows, (m, d_old) and (m, d_new).
        """
        asked = sample_rows(len(self.new), _ASKED, 4)
        found, chance = float(measure.between(self.new, new, asked).mean()), min(1.0, K / len(new))
        if len(asked) < _FEWEST or found > chance + 2 * np.sqrt(chance * (1 - chance) / len(asked)):
            return
        message = (
            f"the queries find their right rows in NEW as rarely as by chance ({100 * found:.1f} % {measure.name}): "
            "are they by the model of NEW, and does the truth name the right items?"
        )
        if old.shape[1] == new.shape[1]:
            elsewhere = float(measure.between(self.new, old, asked).mean())
            message += f" In OLD they find {100 * elsewhere:.1f} %: are OLD and NEW swapped?" * (elsewhere > 2 * found)
        raise GateError(message)
