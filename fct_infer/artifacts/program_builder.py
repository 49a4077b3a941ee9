"""Collects the layers found in a foreign model into a :class:`~fct_infer.transformation.Program`.

Batch norm, biases and constant factors are folded into the neighbouring linear layer in float64; only the finished
program is float32. The readers of ONNX and TorchScript both speak to this builder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError
from fct_infer.transformation import MAX_WIDTH, Activation, Add, Concat, Linear, Normalize, Program, Step

Float64Array: TypeAlias = NDArray[np.float64]
Elementwise: TypeAlias = Literal["add", "sub", "mul", "div"]

_MAX_DIAGONAL = 1 << 13  # a factor per feature that no linear layer absorbs becomes a square matrix
_MAX_WEIGHTS = 1 << 29  # 2 GiB as float32, the size an ONNX file can have; one tensor may be named many times
_MAX_NORM_FLOOR = 1e-8  # PyTorch's F.normalize has 1e-12; only rows shorter than the floor could tell


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that are an affine function of a finished value; what follows may still be folded in.

    Attributes:
        source: name of an input or of the output of a step.
        weight: (width, d_in) matrix, or (width,) factors of the features of ``source``.
        bias: (width,).
        rank: 2 for (n, d), 4 for (n, d, 1, 1), and 3 on the way from one to the other.
    """

    source: str
    weight: Float64Array = field(repr=False)
    bias: Float64Array = field(repr=False)
    rank: int

    @property
    def width(self) -> int:
        """Features of a row."""
        return len(self.bias)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the batch axis."""
        return (self.width, 1, 1)[: self.rank - 1]


@dataclass(frozen=True)
class Norm:
    """The L2 norm of each row of ``rows``, on its way into a division."""

    rows: Rows


class ProgramBuilder:
    """Builds a program layer by layer; every method returns the value its layer produces.

    Raises:
        ArtifactError: from any method: the layer does not fit what it is applied to, or no program can hold it.
    """

    def __init__(self) -> None:
        self._dims: dict[str, int] = {}
        self._steps: list[Step] = []
        self._written: dict[tuple[Rows, Activation], Rows] = {}
        self._weights = 0

    def input(self, name: str, shape: Sequence[int]) -> Rows:
        """Declare an input of ``shape`` without the batch axis: (d,) or (d, 1, 1)."""
        if len(shape) not in (1, 3) or tuple(shape[1:]) not in ((), (1, 1)) or not 1 <= shape[0] <= MAX_WIDTH:
            raise ArtifactError(f"input {name!r} has rows of shape {tuple(shape)}, wanted (d,) or (d, 1, 1)")
        self._dims[name] = shape[0]
        return _finished(name, shape[0], len(shape) + 1)

    def linear(self, rows: Rows, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> Rows:
        """``rows @ weight.T + bias`` with ``weight`` (d_out, d_in)."""
        weight = np.asarray(weight, np.float64)
        bias = np.zeros(weight.shape[:1]) if bias is None else np.asarray(bias, np.float64)
        if weight.ndim != 2 or weight.shape[1] != rows.width or bias.shape != weight.shape[:1]:
            raise ArtifactError(f"weight {weight.shape} and bias {bias.shape} do not fit rows {rows.width} wide")
        if rows.weight.ndim == 2:
            rows = self._finish_rows(rows)
        self._count(weight.size)
        return Rows(rows.source, weight * rows.weight, bias + weight @ rows.bias, rows.rank)

    def convolution(self, rows: Rows, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> Rows:
        """A 1x1 convolution, ``weight`` (d_out, d_in, 1, 1); stride, groups and padding are the caller's to check."""
        if rows.rank != 4 or weight.ndim != 4 or weight.shape[2:] != (1, 1):
            raise ArtifactError(f"not a 1x1 convolution: weight {weight.shape} on rows of shape {rows.shape}")
        return self.linear(rows, weight[:, :, 0, 0], bias)

    def batch_norm(
        self,
        rows: Rows,
        scale: NDArray[Any] | None,
        shift: NDArray[Any] | None,
        mean: NDArray[Any],
        variance: NDArray[Any],
        epsilon: float,
    ) -> Rows:
        """Batch norm with running statistics: an affine function of each feature."""
        variance = np.asarray(variance, np.float64) + epsilon
        if not (variance > 0).all():
            raise ArtifactError("batch norm with a variance that is not positive")
        factor = (1.0 if scale is None else np.asarray(scale, np.float64)) / np.sqrt(variance)
        offset = (0.0 if shift is None else np.asarray(shift, np.float64)) - mean * factor
        if factor.shape != (rows.width,) or offset.shape != (rows.width,):
            raise ArtifactError(f"batch norm over {factor.shape} features on rows {rows.width} wide")
        return Rows(rows.source, (rows.weight.T * factor).T, rows.bias * factor + offset, rows.rank)

    def constant(self, operation: Elementwise, rows: Rows, operand: NDArray[Any], *, reverse: bool = False) -> Rows:
        """``rows <operation> operand`` (``operand <operation> rows`` if ``reverse``), one number per feature or one."""
        target = (1, *rows.shape)
        try:
            if np.broadcast_shapes(operand.shape, target) != target:
                raise ValueError
        except ValueError as error:
            raise ArtifactError(f"a constant of shape {operand.shape} beside rows of shape {rows.shape}") from error
        number = np.broadcast_to(np.asarray(operand, np.float64), target).reshape(rows.width)
        factor, offset = np.ones(rows.width), np.zeros(rows.width)
        match operation:
            case "add":
                offset = number
            case "sub":
                factor, offset = (-factor, number) if reverse else (factor, -number)
            case "mul":
                factor = number
            case "div":
                if reverse or not number.all():
                    raise ArtifactError("a constant divided by rows" if reverse else "rows divided by zero")
                factor = 1 / number
        return Rows(rows.source, (rows.weight.T * factor).T, rows.bias * factor + offset, rows.rank)

    def activate(self, rows: Rows, activation: Activation) -> Rows:
        """Relu or exact GELU."""
        return self._finish_rows(rows, activation)

    def concat(self, parts: Sequence[Rows]) -> Rows:
        """Side by side along the feature axis."""
        if len({part.rank for part in parts}) != 1:
            raise ArtifactError("concatenates (n, d) with (n, d, 1, 1)")
        inputs = tuple(self._finish_rows(part).source for part in parts)
        name = self._name("concat")
        self._steps.append(Concat(inputs, name))
        return _finished(name, sum(part.width for part in parts), parts[0].rank)

    def add(self, first: Rows, second: Rows) -> Rows:
        """Sum of two values of one shape."""
        if first.shape != second.shape:
            raise ArtifactError(f"adds rows of shape {first.shape} and {second.shape}")
        inputs = (self._finish_rows(first).source, self._finish_rows(second).source)
        name = self._name("add")
        self._steps.append(Add(inputs, name))
        return _finished(name, first.width, first.rank)

    def norm(self, rows: Rows) -> Norm:
        """L2 norm of each row; of use to :meth:`divide` only."""
        return Norm(self._finish_rows(rows))

    def norm_floor(self, norm: Norm, floor: float) -> Norm:
        """The norm, at least ``floor``, which must be so small that it only prevents a division by zero."""
        if not 0 <= floor <= _MAX_NORM_FLOOR:
            raise ArtifactError(f"a norm of at least {floor}, wanted at most {_MAX_NORM_FLOOR}")
        return norm

    def divide(self, rows: Rows, norm: Norm) -> Rows:
        """``rows`` divided by their own norm."""
        if self._finish_rows(rows).source != norm.rows.source:
            raise ArtifactError("rows divided by the norm of other rows")
        return self.normalize(norm.rows)

    def normalize(self, rows: Rows) -> Rows:
        """Rows divided by their L2 norm."""
        source = self._finish_rows(rows).source
        name = self._name("normalize")
        self._steps.append(Normalize(source, name))
        return _finished(name, rows.width, rows.rank)

    def reshape(self, rows: Rows, shape: Sequence[int]) -> Rows:
        """Rows as ``shape`` without the batch axis: (d,), (d, 1) or (d, 1, 1), nothing moved."""
        if len(shape) > 3 or tuple(shape) != (rows.width, 1, 1)[: max(len(shape), 1)]:
            raise ArtifactError(f"rows of shape {rows.shape} made into {tuple(shape)}")
        return Rows(rows.source, rows.weight, rows.bias, len(shape) + 1)

    def finish(self, output: Rows) -> Program:
        """Return the program whose output is ``output``."""
        output = self._finish_rows(output)
        if output.source in self._dims:
            raise ArtifactError("the output is an input, unchanged")
        return Program(dict(self._dims), tuple(self._steps), output.source)

    def _finish_rows(self, rows: Rows, activation: Activation = "none") -> Rows:
        """Write what is pending as one linear step (none if nothing is), so that its value has a name."""
        is_diagonal = rows.weight.ndim == 1
        if is_diagonal and activation == "none" and (rows.weight == 1).all() and not rows.bias.any():
            return rows
        if (rows, activation) not in self._written:
            if is_diagonal and rows.width > _MAX_DIAGONAL:
                raise ArtifactError(f"a layer of its own per feature on rows {rows.width} wide")
            self._count(rows.width**2 if is_diagonal else 0)
            weight = np.diag(rows.weight) if is_diagonal else rows.weight
            name = self._name("linear")
            with np.errstate(over="ignore"):  # becomes infinite, which Program refuses
                weight32, bias32 = np.ascontiguousarray(weight, np.float32), rows.bias.astype(np.float32)
            self._steps.append(Linear(rows.source, name, weight32, bias32, activation))
            self._written[rows, activation] = _finished(name, rows.width, rows.rank)
        return self._written[rows, activation]

    def _count(self, weights: int) -> None:
        self._weights += weights
        if self._weights > _MAX_WEIGHTS:
            raise ArtifactError(f"more than {_MAX_WEIGHTS:,} weights")

    def _name(self, operation: str) -> str:
        return f"{operation}.{len(self._steps)}"


def _finished(name: str, width: int, rank: int) -> Rows:
    return Rows(name, np.ones(width), np.zeros(width), rank)
