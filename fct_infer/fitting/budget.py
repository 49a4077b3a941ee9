"""How long a fit may take, and how long it would have to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from time import monotonic

_MARGIN = 1.1  # for what else the machine does meanwhile


@dataclass(frozen=True)
class Budget:
    """Seconds that a fit may take, counted from when this is made.

    Attributes:
        seconds: in all.
        share: of what is left that may be used; the rest is for what follows.
        began: by the clock.
        refused: seconds of all that was left out; with a larger budget it would come before what is refused later.
    """

    seconds: float
    share: float = 1.0
    began: float = field(default_factory=monotonic)
    refused: list[float] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds that may be used now."""
        return max(self.share * (self.seconds - self.spent), 0.0)

    def refuse(self, needed: float) -> str:
        """Return that something would take so many seconds, how many are left, and what budget would do."""
        enough = self.spent + sum(self.refused) + needed / self.share
        self.refused.append(needed)
        return (
            f"it takes about {needed:,.0f} s, {self.left:,.0f} s are left; "
            f"--budget {math.ceil(_MARGIN * enough / 60)}m would do"
        )
