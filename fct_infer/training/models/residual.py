"""A residual network that starts as a closed form, so that training can only add to it: what ``fct-fit`` tries."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.maps import Recipe, Statistics
from fct_infer.training.models.base import check_layers
from fct_infer.training.models.transformation import LayeredTransformation, PointwiseBlock
from fct_infer.transformation import Linear


class FittedResidual(LayeredTransformation):
    """base(x) + spread * mlp(standardised x), x = [old | side], and unit deviation where the recipe has it.

    Built, it knows widths only; :meth:`begin_from` makes it the closed form of some rows. The last layer of the network
    starts at zero.

    Args:
        old_dim, side_dim, new_dim: widths of inputs and output.
        recipe: arguments of :class:`fct_infer.maps.Recipe`, the closed form; its rank is not kept.
        hidden, layers: width of the hidden layers, and how many there are.
        uncertainty: add FastFill's head.

    Raises:
        ValueError: there is side-information and the recipe does without, or the recipe has an unknown argument.
    """

    def __init__(
        self,
        old_dim: int,
        side_dim: int,
        new_dim: int,
        recipe: Mapping[str, Any],
        hidden: int = 512,
        layers: int = 2,
        uncertainty: bool = False,
    ) -> None:
        super().__init__(old_dim, side_dim, new_dim)
        self.recipe = Recipe(**recipe)
        if (self.recipe.side_alpha is None) == bool(side_dim):
            raise ValueError(f"side-information is {side_dim} wide, the recipe's side_alpha {self.recipe.side_alpha}")
        check_layers(layers)
        d_in = old_dim + side_dim
        self.base = PointwiseBlock(d_in, new_dim, is_last=True)
        widths = [d_in, *[hidden] * layers]
        self.mlp = nn.Sequential(
            *(PointwiseBlock(narrow, wide) for narrow, wide in pairwise(widths)),
            PointwiseBlock(widths[-1], new_dim, is_last=True),
        )
        self.standardized = nn.BatchNorm1d(d_in, affine=False, momentum=None)
        self.register_buffer("mean", torch.zeros(new_dim))
        self.register_buffer("radius", torch.ones(()))
        self._add_uncertainty(uncertainty)

    @property
    def spread(self) -> Tensor:
        """See :class:`LayeredTransformation`."""
        return torch.mul(self.get_buffer("radius"), self.new_dim**-0.5)

    @torch.no_grad()
    def begin_from(self, training: Statistics) -> None:
        """See :class:`LayeredTransformation`."""
        training = training if self.side_dim else training.without_side
        recipe, mean = self.recipe, training.mean[training.input_dim :]
        layer = Recipe(recipe.share, recipe.alpha, recipe.side_alpha).fit(training).steps[-1]
        assert isinstance(layer, Linear) and self.base.conv.bias is not None
        self.get_buffer("mean").copy_(torch.from_numpy(mean))
        self.get_buffer("radius").fill_(float(np.sqrt(np.trace(training.yy) / training.rows)))
        weight = self.base.conv.weight.zero_()
        weight[:, : layer.weight.shape[1], 0, 0] = torch.from_numpy(layer.weight)  # Procrustes leaves the side out
        self.base.conv.bias.copy_(torch.from_numpy(layer.bias - mean))
        for parameter in self.mlp[-1].parameters():
            parameter.zero_()

    def deviation(self, x: Tensor) -> Tensor:
        """Return h(x) - mean, (n, d_new), before it is given unit deviation."""
        found: Tensor = self.base(x) + self.spread * self.mlp(self.standardized(x))
        return found

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """See :class:`LayeredTransformation`."""
        deviation = self.deviation(self._inputs(old, side))
        if self.recipe.unit_deviation:
            deviation = self.get_buffer("radius") * F.normalize(deviation, dim=1)
        return self.get_buffer("mean") + deviation
