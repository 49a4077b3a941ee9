"""The transformation h(old, side_information) -> new as torch modules."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.training.models.base import TransformationModule


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


class PaperTransformation(TransformationModule):
    """The paper's h (arXiv 2112.02805, section 3.2): a branch per input, then a mixer on their concatenation.

    Each branch is d -> 2 d -> 2 d_new; the mixer is 4 d_new -> inner_dim -> inner_dim -> d_new. Without
    side-information the paper feeds the old embedding to both branches: pass it as ``side``.
    """

    def __init__(self, old_dim: int, side_dim: int, new_dim: int, inner_dim: int = 2048) -> None:
        super().__init__(old_dim, side_dim, new_dim)
        self.p1 = nn.Sequential(PointwiseBlock(old_dim, 2 * old_dim), PointwiseBlock(2 * old_dim, 2 * new_dim))
        self.p2 = nn.Sequential(PointwiseBlock(side_dim, 2 * side_dim), PointwiseBlock(2 * side_dim, 2 * new_dim))
        self.mixer = nn.Sequential(
            PointwiseBlock(4 * new_dim, inner_dim),
            PointwiseBlock(inner_dim, inner_dim),
            PointwiseBlock(inner_dim, new_dim, is_last=True),
        )

    def forward(self, old: Tensor, side: Tensor) -> Tensor:
        """(n, old_dim) and (n, side_dim) float32 -> (n, new_dim) float32."""
        mixed: Tensor = self.mixer(torch.cat([self.p1(old), self.p2(side)], dim=1))
        return mixed


class MlpTransformation(TransformationModule):
    """A plain MLP on the concatenation of both inputs; no hidden layer makes it a linear map."""

    def __init__(self, old_dim: int, side_dim: int, new_dim: int, hidden_dims: Iterable[int] = (256, 256)) -> None:
        super().__init__(old_dim, side_dim, new_dim)
        widths = [old_dim + side_dim, *hidden_dims]
        blocks = [PointwiseBlock(dim_in, dim_out) for dim_in, dim_out in pairwise(widths)]
        self.layers = nn.Sequential(*blocks, PointwiseBlock(widths[-1], new_dim, is_last=True))

    def forward(self, old: Tensor, side: Tensor) -> Tensor:
        """(n, old_dim) and (n, side_dim) float32 -> (n, new_dim) float32."""
        new: Tensor = self.layers(torch.cat([old, side], dim=1))
        return new
