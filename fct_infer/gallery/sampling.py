"""Random rows of a gallery."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sample_rows(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return ``count`` distinct row numbers below ``rows``, sorted; all of them if there are no more."""
    if count >= rows:
        return np.arange(rows, dtype=np.int64)
    rng = np.random.default_rng(seed)
    chosen = np.unique(rng.integers(0, rows, count))
    while len(chosen) < count:
        chosen = np.unique(np.concatenate([chosen, rng.integers(0, rows, count - len(chosen))]))
    return chosen.astype(np.int64)
