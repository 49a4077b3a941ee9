"""What a linear map is fitted from: counts, means and scatter of any number of rows, in O(d^2) memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Float64Array: TypeAlias = NDArray[np.float64]

Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Rows of some items: ``old`` (n, old_dim), ``new`` (n, new_dim) and, where there is any, ``side`` (n, side_dim)."""


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of a least-squares problem from inputs x = [old | side] to targets y = new, in float64.

    Attributes:
        old_dim, side_dim: widths of the parts of x; ``side_dim`` is 0 without side-information.
        rows: how many.
        mean: of z = [x | y], (d,).
        scatter: sum over the rows of (z - mean)(z - mean)^T, (d, d).
    """

    old_dim: int
    side_dim: int
    rows: int
    mean: Float64Array
    scatter: Float64Array

    @classmethod
    def of_block(cls, columns: Columns) -> Statistics:
        """Return the statistics of some rows, at least one."""
        parts = [columns[name] for name in ("old", "side", "new") if name in columns]
        z = np.concatenate(parts, axis=1, dtype=np.float64)
        mean = z.mean(axis=0)
        z -= mean
        side_dim = columns["side"].shape[1] if "side" in columns else 0
        return cls(columns["old"].shape[1], side_dim, len(z), mean, z.T @ z)

    @classmethod
    def of_blocks(cls, blocks: Iterable[Columns]) -> Statistics | None:
        """Return the statistics of all rows of all blocks, one block in memory at a time; None without rows."""
        total: Statistics | None = None
        for block in blocks:
            if len(block["old"]):
                part = cls.of_block(block)
                total = part if total is None else total.merged(part)
        return total

    def merged(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of rows together (Chan, Golub and LeVeque 1979: no cancellation)."""
        rows = self.rows + other.rows
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.rows / rows)
        scatter = np.outer(difference, difference * (self.rows * other.rows / rows))
        scatter += self.scatter
        scatter += other.scatter
        return Statistics(self.old_dim, self.side_dim, rows, mean, scatter)

    @cached_property
    def without_side(self) -> Statistics:
        """The statistics of the same rows from ``old`` alone."""
        if not self.side_dim:
            return self
        kept = np.r_[: self.old_dim, self.input_dim : len(self.mean)]
        return Statistics(self.old_dim, 0, self.rows, self.mean[kept], self.scatter[np.ix_(kept, kept)])

    @cached_property
    def rotation(self) -> Float64Array:
        """The orthogonal Procrustes solution (old_dim, d_out) from centred old rows to new (Schönemann 1966)."""
        u, _, vt = np.linalg.svd(self.xy[: self.old_dim], full_matrices=False)
        return cast(Float64Array, u @ vt)

    @cached_property
    def solved(self) -> dict[tuple[str, float, float], Float64Array]:
        """What was last solved for, kept for maps that follow and want the same; see :func:`~.recipes.ridge_weight`."""
        return {}

    @property
    def input_dim(self) -> int:
        """Width of x."""
        return self.old_dim + self.side_dim

    @property
    def xx(self) -> Float64Array:
        """Centred scatter of the inputs, (d_in, d_in)."""
        return self.scatter[: self.input_dim, : self.input_dim]

    @property
    def xy(self) -> Float64Array:
        """Centred scatter of inputs against targets, (d_in, d_out)."""
        return self.scatter[: self.input_dim, self.input_dim :]

    @property
    def yy(self) -> Float64Array:
        """Centred scatter of the targets, (d_out, d_out)."""
        return self.scatter[self.input_dim :, self.input_dim :]

    def mean_squared_error(self, weight: Float64Array, bias: Float64Array) -> float:
        """Return the mean over rows and features of (x weight + bias - y)^2, exact up to rounding; no row is read.

        Args:
            weight: (d_in, d_out).
            bias: (d_out,).
        """
        offset = self.mean[: self.input_dim] @ weight + bias - self.mean[self.input_dim :]
        explained = np.sum(weight * (self.xx @ weight)) - 2 * np.sum(weight * self.xy) + np.trace(self.yy)
        return float(max(explained / self.rows + offset @ offset, 0.0) / len(bias))
