"""How near transformed embeddings are to the new ones: what h is trained to minimise, and what is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import UsageError
from fct_infer.training.features.cached import Columns


def transformation_loss(transformed: Tensor, new: Tensor) -> Tensor:
    """Mean squared error of h(old, side) against the raw new embedding, both (n, d) (arXiv 2112.02805)."""
    return F.mse_loss(transformed, new)


def cosine_loss(transformed: Tensor, new: Tensor) -> Tensor:
    """Mean over the rows of 1 - cosine of the angle between them; (n, d) both."""
    return 1 - F.cosine_similarity(transformed, new, dim=1).mean()


ALIGNMENT_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": transformation_loss,
    "l1": F.l1_loss,
    "cosine": cosine_loss,
}
"""By name: (n, d) transformed and (n, d) new -> scalar; ``mse`` and ``l1`` are means over rows and features."""


def alignment_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in ALIGNMENT_LOSSES:
        raise UsageError(f"unknown loss {name!r}, wanted one of {sorted(ALIGNMENT_LOSSES)}")
    return ALIGNMENT_LOSSES[name]


@dataclass(frozen=True)
class Alignment:
    """Over some rows: mean squared error over rows and features, and mean cosine of transformed and new rows."""

    rows: int
    mse: float
    cosine: float


def measure_alignment(
    transform: Callable[[NDArray[Any], NDArray[Any] | None], NDArray[Any]], blocks: Iterable[Columns]
) -> Alignment:
    """Apply ``transform(old, side)``, such as a :class:`fct_infer.transformation.Transformation`, to all rows.

    Raises:
        UsageError: there are no rows.
    """
    rows, squares, cosines = 0, 0.0, 0.0
    width = 0
    for block in blocks:
        if not len(block["old"]):
            continue
        transformed = transform(block["old"], block.get("side")).astype(np.float64)
        new = block["new"].astype(np.float64)
        norms = np.linalg.norm(transformed, axis=1) * np.linalg.norm(new, axis=1)
        cosines += float(np.sum(np.sum(transformed * new, axis=1) / np.maximum(norms, 1e-12)))
        squares += float(np.sum((transformed - new) ** 2))
        rows, width = rows + len(new), new.shape[1]
    if not rows:
        raise UsageError("no rows to measure the alignment on")
    return Alignment(rows, squares / (rows * width), cosines / rows)
