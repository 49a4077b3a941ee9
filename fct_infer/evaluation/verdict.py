"""Is it worth it? The figures of an upgrade turned into one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fct_infer.evaluation.backfilling import BackfillingCurve
from fct_infer.evaluation.compatibility import criterion, gap_closed

GOOD_ENOUGH = 0.99  # share of new/new from which on a gallery counts as good as re-embedded
Action = Literal["keep old", "transform", "transform and backfill", "re-embed", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What to do with a gallery.

    Attributes:
        action: what to do.
        backfill: share of the rows to re-embed, 0 to 1; None where that is not known.
        sentence: the same for people, with the figures that decide it.
    """

    action: Action
    backfill: float | None
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as strict JSON."""
        return asdict(self)


def judge(
    old_old: float | None,
    new_old: float,
    new_new: float | None,
    curves: Mapping[str, BackfillingCurve] | None = None,
    *,
    figure: str = "mAP",
) -> Verdict:
    """Say what to do with a gallery, by a figure of merit (0 to 1).

    The rule, the first that applies:

    1. new/new is no better than old/old: keep the old model; there is nothing to gain.
    2. new/new is not known: transform if new/old beats old/old (BCT's criterion), otherwise keep the old model;
       undecided if old/old is not known either.
    3. new/old reaches 99 % of new/new: transform.
    4. Some order reaches 99 % of new/new with a part of the rows re-embedded, and searching meanwhile is no step
       back (the criterion holds, or old/old is not known): transform, and backfill the smallest such part.
    5. No curves are given, and the gallery as it is is better than today: transform, and re-embed rows as can be; how
       many are worth it is not known.
    6. Otherwise re-embed everything.

    Args:
        old_old: M(old, old); None if not known.
        new_old: M(new, old): the gallery as it is, transformed or not.
        new_new: M(new, new): the gallery re-embedded; None if not known.
        curves: backfilling curves by order, those only that can be followed in practice (no oracle); None if nothing
            is known of galleries that are re-embedded in part.
        figure: what the figures are.
    """
    figures = {"old/old": old_old, "new/old": new_old, "new/new": new_new}
    shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in figures.items() if value is not None)
    shown = f"{figure} {shown}"
    if new_new is None:
        return _judge_without_new(old_old, new_old, shown)
    if old_old is not None and new_new <= old_old:
        return Verdict("keep old", 0.0, f"Keep the old model: the new one is no better ({shown}).")
    closed = None if old_old is None else gap_closed(new_old, old_old, new_new)
    gap = "" if closed is None or closed < 0 else f", {100 * closed:.0f} % of the gap closed"
    level = GOOD_ENOUGH * new_new
    if new_old >= level:
        return Verdict(
            "transform",
            0.0,
            f"Transform and re-embed nothing: {100 * new_old / new_new:.1f} % of what re-embedding everything gives "
            f"({shown}{gap}).",
        )
    shares = {name: curve.smallest_share(level) for name, curve in (curves or {}).items()}
    partial = {name: share for name, share in shares.items() if share is not None and share < 1}
    is_step_back = old_old is not None and not criterion(new_old, old_old)
    if partial and not is_step_back:
        name = min(partial, key=lambda order: partial[order])
        return Verdict(
            "transform and backfill",
            partial[name],
            f"Transform and backfill {100 * partial[name]:.0f} % of the rows ({name}): that reaches "
            f"{100 * GOOD_ENOUGH:.0f} % of what re-embedding everything gives ({shown}{gap}).",
        )
    reached = f"the gallery as it is reaches {100 * new_old / new_new:.1f} % of what re-embedding everything gives"
    if curves is None and old_old is not None and not is_step_back:
        return Verdict(
            "transform and backfill",
            None,
            f"Transform, which is better than today, and re-embed rows as you can: {reached} ({shown}{gap}).",
        )
    reason = (
        "searching the gallery as it is would be worse than today"
        if is_step_back
        else f"no smaller part reaches {100 * GOOD_ENOUGH:.0f} % of it"
        if curves
        else reached
    )
    return Verdict("re-embed", 1.0, f"Re-embed everything: {reason} ({shown}{gap}).")


def _judge_without_new(old_old: float | None, new_old: float, shown: str) -> Verdict:
    if old_old is None:
        return Verdict("undecided", None, f"Undecided: {shown}; what the old model and re-embedding give is not known.")
    if criterion(new_old, old_old):
        return Verdict(
            "transform", None, f"Transform: better than today ({shown}); what re-embedding would add is not known."
        )
    return Verdict(
        "keep old",
        None,
        f"Keep the old model: the new one is no better on this gallery ({shown}); "
        "what re-embedding gives is not known.",
    )
