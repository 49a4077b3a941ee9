"""h between standardised spaces, so that its training does not depend on the scale of the embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fct_infer.maps import Statistics
from fct_infer.training.models.transformation import LayeredTransformation


class StandardizedTransformation(LayeredTransformation):
    """new_mean + new_scale * h((old - old_mean) / old_scale, (side - side_mean) / side_scale).

    Means are of each column, scales one number for all columns of a part: distances keep their proportions. A program
    has them in h's own first and last layers, at no cost.

    Args:
        inner: h.
        uncertainty: add FastFill's head, to the output.
    """

    def __init__(self, inner: LayeredTransformation, uncertainty: bool = False) -> None:
        super().__init__(inner.old_dim, inner.side_dim, inner.new_dim)
        self.inner = inner
        for name, dim in (("old", inner.old_dim), ("side", inner.side_dim), ("new", inner.new_dim)):
            if dim:
                self.register_buffer(f"{name}_mean", torch.zeros(dim))
                self.register_buffer(f"{name}_scale", torch.ones(()))
        self._add_uncertainty(uncertainty)

    @property
    def spread(self) -> Tensor:
        """See :class:`LayeredTransformation`."""
        return self.get_buffer("new_scale")

    def begin_from(self, training: Statistics) -> None:
        """Take means and scales, of which a part that never varies keeps 1, and let h begin between them."""
        variance = np.diag(training.scatter) / training.rows
        ends = np.cumsum([self.old_dim, self.side_dim, self.new_dim])
        for name, start, end in zip(("old", "side", "new"), (0, *ends), ends, strict=False):
            if start < end:
                scale = float(np.sqrt(variance[start:end].mean())) or 1.0
                self.get_buffer(f"{name}_mean").copy_(torch.from_numpy(training.mean[start:end]))
                self.get_buffer(f"{name}_scale").fill_(scale)

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """See :class:`LayeredTransformation`."""
        beside = self._into("side", self._side(old, side)) if self.side_dim else None
        new: Tensor = self.inner(self._into("old", old), beside)
        return self.get_buffer("new_mean") + self.get_buffer("new_scale") * new

    def _into(self, name: str, rows: Tensor) -> Tensor:
        return (rows - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_scale")
