"""The transformation h(old, side_information) -> new as torch modules.

Where ``side_dim`` is 0 there is no side-information: the paper's h feeds the old embedding to both branches (arXiv
2112.02805), the others take the old embedding alone, which is the same class of functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.maps import Statistics
from fct_infer.training.models.base import TransformationModule, check_layers


class PointwiseBlock(nn.Module):
    """A 1x1 convolution on (n, d) rows, then batch norm and ReLU unless it is the last layer of a network.

    Parameter names and shapes are those of the public FCT checkpoints: ``conv.weight`` is (d_out, d_in, 1, 1), and
    ``conv.bias`` exists where there is no batch norm. On rows the convolution is a matrix product.
    """

    def __init__(self, dim_in: int, dim_out: int, is_last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 1, bias=is_last)
        self.normalizer = None if is_last else nn.BatchNorm1d(dim_out)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, dim_in) -> (n, dim_out)."""
        rows = F.linear(rows, self.conv.weight.flatten(1), self.conv.bias)
        if self.normalizer is not None:
            rows = F.relu(self.normalizer(rows))
        return rows


class LayeredTransformation(TransformationModule):
    """h made of layers, with or without FastFill's head, a linear layer on h's output as in the public FastFill code.

    Attributes:
        uncertainty: (n, new_dim) -> (n, 1), the log-variance s of FastFill (arXiv 2303.04766); None without.
    """

    uncertainty: nn.Linear | None

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """(n, old_dim) and (n, side_dim) float32 -> (n, new_dim) float32; no ``side`` where ``side_dim`` is 0."""
        raise NotImplementedError

    @property
    def spread(self) -> Tensor | float:
        """Spread of a column of the new rows, as far as h knows it: the unit in which its errors are measured."""
        return 1.0

    def begin_from(self, training: Statistics) -> None:
        """Take what this h has to know of the rows it will be trained on, before the first step."""

    def with_uncertainty(self, old: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the new embedding (n, new_dim) and the log-variance s (n,)."""
        assert self.uncertainty is not None
        new = self(old, side)
        return new, self.uncertainty(new).squeeze(1)

    def _inputs(self, old: Tensor, side: Tensor | None) -> Tensor:
        """Both inputs side by side, or ``old`` alone."""
        return torch.cat([old, self._side(old, side)], dim=1) if self.side_dim else old

    def _side(self, old: Tensor, side: Tensor | None) -> Tensor:
        return old if side is None or not self.side_dim else side

    def _add_uncertainty(self, wanted: bool) -> None:
        """Called last, so that the weights of h are drawn the same with and without."""
        self.uncertainty = nn.Linear(self.new_dim, 1) if wanted else None


class PaperTransformation(LayeredTransformation):
    """The paper's h (arXiv 2112.02805): a branch per input, then a mixer on their concatenation.

    With the paper's depths each branch is d -> 2 d -> 2 d_new, and the mixer is 4 d_new -> inner_dim -> inner_dim ->
    d_new. A deeper branch has more layers 2 d wide, a deeper mixer more layers ``inner_dim`` wide.

    Args:
        old_dim, side_dim, new_dim: widths of inputs and output; ``side_dim`` 0 is FCT without side-information.
        inner_dim: width of the mixer.
        branch_depth, mixer_depth: layers of each, at least 1.
        uncertainty: add FastFill's head.

    Raises:
        ValueError: a depth is below 1.
    """

    def __init__(
        self,
        old_dim: int,
        side_dim: int,
        new_dim: int,
        inner_dim: int = 2048,
        branch_depth: int = 2,
        mixer_depth: int = 3,
        uncertainty: bool = False,
    ) -> None:
        super().__init__(old_dim, side_dim, new_dim)
        if min(branch_depth, mixer_depth) < 1:
            raise ValueError(f"depths are {branch_depth} and {mixer_depth}, wanted at least 1")
        check_layers(2 * branch_depth + mixer_depth)
        self.p1, self.p2 = (
            _chain([dim, *[2 * dim] * (branch_depth - 1), 2 * new_dim]) for dim in (old_dim, side_dim or old_dim)
        )
        self.mixer = _chain([4 * new_dim, *[inner_dim] * (mixer_depth - 1)])
        self.mixer.append(PointwiseBlock(4 * new_dim if mixer_depth == 1 else inner_dim, new_dim, is_last=True))
        self._add_uncertainty(uncertainty)

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """See :class:`LayeredTransformation`."""
        new: Tensor = self.mixer(torch.cat([self.p1(old), self.p2(self._side(old, side))], dim=1))
        return new


class MlpTransformation(LayeredTransformation):
    """A plain MLP on the concatenation of both inputs; no hidden layer makes it a linear map."""

    def __init__(
        self,
        old_dim: int,
        side_dim: int,
        new_dim: int,
        hidden_dims: Iterable[int] = (256, 256),
        uncertainty: bool = False,
    ) -> None:
        super().__init__(old_dim, side_dim, new_dim)
        widths = [old_dim + side_dim, *hidden_dims]
        check_layers(len(widths))
        self.layers = _chain(widths).append(PointwiseBlock(widths[-1], new_dim, is_last=True))
        self._add_uncertainty(uncertainty)

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """See :class:`LayeredTransformation`."""
        new: Tensor = self.layers(self._inputs(old, side))
        return new


class ResidualBlock(nn.Module):
    """x + outer(ReLU(batch norm(inner x))); begins as the identity, because ``outer`` begins at zero."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.inner = PointwiseBlock(dim, inner_dim)
        self.outer = PointwiseBlock(inner_dim, dim, is_last=True)
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, dim) -> (n, dim)."""
        refined: Tensor = rows + self.outer(self.inner(rows))
        return refined


class ResidualMlpTransformation(LayeredTransformation):
    """A linear map of the concatenated inputs to ``width``, residual blocks, and a linear map to the new embedding.

    It begins as a linear map, which the blocks learn to correct.
    """

    def __init__(
        self,
        old_dim: int,
        side_dim: int,
        new_dim: int,
        width: int = 256,
        inner_dim: int = 512,
        blocks: int = 2,
        uncertainty: bool = False,
    ) -> None:
        super().__init__(old_dim, side_dim, new_dim)
        check_layers(blocks)
        self.stem = PointwiseBlock(old_dim + side_dim, width, is_last=True)
        self.blocks = nn.Sequential(*(ResidualBlock(width, inner_dim) for _ in range(blocks)))
        self.head = PointwiseBlock(width, new_dim, is_last=True)
        self._add_uncertainty(uncertainty)

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """See :class:`LayeredTransformation`."""
        new: Tensor = self.head(self.blocks(self.stem(self._inputs(old, side))))
        return new


def linear_transformation(old_dim: int, side_dim: int, new_dim: int, uncertainty: bool = False) -> MlpTransformation:
    """Return an affine map, trained like the others; :mod:`fct_infer.maps` solves for one instead."""
    return MlpTransformation(old_dim, side_dim, new_dim, (), uncertainty)


TRANSFORMATIONS: dict[str, Callable[..., TransformationModule]] = {
    "paper": PaperTransformation,
    "mlp": MlpTransformation,
    "residual_mlp": ResidualMlpTransformation,
    "linear": linear_transformation,
}
"""What the registry builds by these names."""


def _chain(widths: list[int]) -> nn.Sequential:
    return nn.Sequential(*(PointwiseBlock(dim_in, dim_out) for dim_in, dim_out in pairwise(widths)))
