"""Which layer of a program each operation of an ONNX graph is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.program_builder import Elementwise, Norm, ProgramBuilder, Rows
from fct_infer.errors import ArtifactError

Array: TypeAlias = NDArray[Any]

REAL = "fiu"  # kinds of dtype


@dataclass(frozen=True)
class ShapeOf:
    """The shape of rows, as PyTorch computes it at run time before it expands a norm to it."""

    rows: Rows


Value: TypeAlias = Rows | Norm | ShapeOf | Array


@dataclass(frozen=True)
class Node:
    """One node with its inputs looked up; ``None`` stands for an optional input left out."""

    inputs: list[Value | None]
    attributes: dict[str, Any]

    def rows(self, index: int) -> Rows:
        """Return an input that is rows."""
        value = self._input(index)
        if not isinstance(value, Rows):
            raise ArtifactError(f"input {index} is {describe(value)}, wanted rows")
        return value

    def array(self, index: int) -> Array:
        """Return an input that is a constant."""
        value = self._input(index)
        if not isinstance(value, np.ndarray):
            raise ArtifactError(f"input {index} is {describe(value)}, wanted a constant")
        return value

    def optional(self, index: int) -> Array | None:
        """Return an input that is a constant, or may be left out."""
        return self.array(index) if self._input(index) is not None else None

    def integers(self, name: str, index: int) -> list[int]:
        """A list that older opsets keep in an attribute and newer ones in an input."""
        found = self.optional(index)
        return [int(item) for item in (self.attributes.get(name, ()) if found is None else found.ravel())]

    def expect(self, **wanted: Any) -> None:
        """Refuse attributes with another value than the one given; one left out is at its default, which must fit."""
        for name, value in wanted.items():
            found = self.attributes.get(name, value)
            if found != value:
                raise ArtifactError(f"attribute {name} is {found}, wanted {value}")

    def _input(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None


def describe(value: Value | None) -> str:
    """Return what a value is, for messages."""
    match value:
        case None:
            return "missing"
        case Rows():
            return f"rows of shape {value.shape}"
        case Norm():
            return "a norm"
        case ShapeOf():
            return "the shape of rows"
        case _:
            return f"a constant of shape {value.shape}"


def _feature_axis(rows: Rows, axis: int) -> None:
    if axis not in (1, 1 - rows.rank):
        raise ArtifactError(f"axis {axis} on rows of shape {rows.shape}, wanted the feature axis 1")


def _linear_regressor(builder: ProgramBuilder, node: Node) -> Rows:
    """What skl2onnx makes of a linear model."""
    node.expect(post_transform="NONE")
    targets = int(node.attributes.get("targets", 1))
    weight = np.asarray(node.attributes["coefficients"], np.float32).reshape(targets, -1)
    intercepts = np.asarray(node.attributes.get("intercepts", 0), np.float32)  # one may stand for all targets
    return builder.linear(node.rows(0), weight, np.array(np.broadcast_to(intercepts, targets)))


_SCALER_DEFAULTS = (("offset", 0), ("scale", 1))


def _scaler(builder: ProgramBuilder, node: Node) -> Rows:
    """(x - offset) * scale, as skl2onnx writes a StandardScaler."""
    offset, scale = (np.asarray(node.attributes.get(name, default), np.float32) for name, default in _SCALER_DEFAULTS)
    return builder.constant("mul", builder.constant("sub", node.rows(0), offset), scale)


def _gemm(builder: ProgramBuilder, node: Node) -> Rows:
    node.expect(transA=0)
    weight = node.array(1) if node.attributes.get("transB", 0) else node.array(1).T
    bias = node.optional(2)
    if node.rows(0).rank != 2 or weight.ndim != 2:
        raise ArtifactError(f"multiplies rows of shape {node.rows(0).shape} by {weight.shape}")
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    product = builder.linear(node.rows(0), weight.astype(np.float64) * alpha)
    return product if bias is None else builder.constant("add", product, bias.astype(np.float64) * beta)


def _matmul(builder: ProgramBuilder, node: Node) -> Rows:
    weight = node.array(1)
    if node.rows(0).rank != 2 or weight.ndim != 2:
        raise ArtifactError(f"multiplies rows of shape {node.rows(0).shape} by {weight.shape}")
    return builder.linear(node.rows(0), weight.T)


def _conv(builder: ProgramBuilder, node: Node) -> Rows:
    node.expect(group=1, strides=[1, 1], pads=[0, 0, 0, 0], kernel_shape=[1, 1])
    return builder.convolution(node.rows(0), node.array(1), node.optional(2))


def _batch_norm(builder: ProgramBuilder, node: Node) -> Rows:
    node.expect(training_mode=0, spatial=1)
    scale, shift, mean, variance = (node.array(index) for index in range(1, 5))
    return builder.batch_norm(node.rows(0), scale, shift, mean, variance, node.attributes.get("epsilon", 1e-5))


def _gelu(builder: ProgramBuilder, node: Node) -> Rows:
    node.expect(approximate="none")
    return builder.activate(node.rows(0), "gelu")


def _concat(builder: ProgramBuilder, node: Node) -> Rows:
    parts = [node.rows(index) for index in range(len(node.inputs))]
    for part in parts:
        _feature_axis(part, node.attributes.get("axis", 0))
    return builder.concat(parts)


def _elementwise(operation: Elementwise) -> Callable[[ProgramBuilder, Node], Value]:
    def read(builder: ProgramBuilder, node: Node) -> Value:
        match node.inputs:
            case [Rows() as rows, np.ndarray() as operand]:
                return builder.constant(operation, rows, operand)
            case [np.ndarray() as operand, Rows() as rows]:
                return builder.constant(operation, rows, operand, reverse=True)
            case [Rows() as first, Rows() as second] if operation == "add":
                return builder.add(first, second)
            case [Rows() as rows, Norm() as norm] if operation == "div":
                return builder.divide(rows, norm)
        raise ArtifactError(f"applied to {' and '.join(map(describe, node.inputs))}")

    return read


def _reduce_l2(builder: ProgramBuilder, node: Node) -> Norm:
    node.expect(keepdims=1)
    axes = node.integers("axes", 1)
    if len(axes) != 1:
        raise ArtifactError(f"over the axes {axes}, wanted the feature axis only")
    _feature_axis(node.rows(0), axes[0])
    return builder.norm(node.rows(0))


def _norm_floor(builder: ProgramBuilder, node: Node) -> Norm:
    """Clip with a minimum, or Max of a norm and a constant."""
    norm = next((value for value in node.inputs if isinstance(value, Norm)), None)
    floors = [value for value in node.inputs if isinstance(value, np.ndarray)]
    if norm is None or len(floors) != 1 or floors[0].size != 1 or set(node.attributes) - {"min"}:
        raise ArtifactError("wanted a norm and the least value it may have")
    return builder.norm_floor(norm, float(floors[0].ravel()[0]))


def _expand(_builder: ProgramBuilder, node: Node) -> Norm:
    match node.inputs:
        case [Norm() as norm, ShapeOf() as shape] if shape.rows.shape == norm.rows.shape:
            return norm
    raise ArtifactError(f"expands {' to '.join(map(describe, node.inputs))}, wanted a norm to the shape of its rows")


def _lp_normalization(builder: ProgramBuilder, node: Node) -> Rows:
    node.expect(p=2)
    _feature_axis(node.rows(0), node.attributes.get("axis", -1))
    return builder.normalize(node.rows(0))


def _flatten(builder: ProgramBuilder, node: Node) -> Rows:
    node.expect(axis=1)
    return builder.reshape(node.rows(0), node.rows(0).shape[:1])


def _squeeze(builder: ProgramBuilder, node: Node) -> Rows:
    rows, axes = node.rows(0), node.integers("axes", 1)
    if sorted(axis % rows.rank for axis in axes) != [2, 3]:
        raise ArtifactError(f"squeezes the axes {axes} of rows of shape {rows.shape}")
    return builder.reshape(rows, rows.shape[:1])


def _unsqueeze(builder: ProgramBuilder, node: Node) -> Rows:
    rows, axes = node.rows(0), node.integers("axes", 1)
    if rows.rank != 2 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise ArtifactError(f"unsqueezes the axes {axes} of rows of shape {rows.shape}")
    return builder.reshape(rows, (rows.width, 1, 1))


def _reshape(builder: ProgramBuilder, node: Node) -> Rows:
    node.expect(allowzero=0)
    rows, (batch, *shape) = node.rows(0), (int(size) for size in node.array(1).ravel())
    kept = [rows.shape[axis] if size == 0 and axis < len(rows.shape) else size for axis, size in enumerate(shape)]
    if batch not in (0, -1) or kept.count(-1) > (batch == 0):
        raise ArtifactError(f"reshapes rows of shape {rows.shape} to {[batch, *shape]}")
    known = math.prod(size for size in kept if size != -1)
    return builder.reshape(rows, [rows.width // max(known, 1) if size == -1 else size for size in kept])


def _transpose(_builder: ProgramBuilder, node: Node) -> Array:
    order = node.attributes.get("perm")
    if order is not None and sorted(order) != list(range(node.array(0).ndim)):
        raise ArtifactError(f"axes {order} of a constant of shape {node.array(0).shape}")
    return node.array(0).transpose(order)


def _constant(_builder: ProgramBuilder, node: Node) -> Array:
    value = node.attributes.get("value")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in REAL:
        raise ArtifactError("wanted a tensor of real numbers as its value")
    return value


def _identity(_builder: ProgramBuilder, node: Node) -> Value:
    if len(node.inputs) != 1 or node.inputs[0] is None:
        raise ArtifactError(f"{len(node.inputs)} inputs, wanted one")
    return node.inputs[0]


OPERATIONS: dict[str, Callable[[ProgramBuilder, Node], Value]] = {
    "Add": _elementwise("add"),
    "BatchNormalization": _batch_norm,
    "Clip": _norm_floor,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "Div": _elementwise("div"),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Identity": _identity,
    "LpNormalization": _lp_normalization,
    "MatMul": _matmul,
    "Max": _norm_floor,
    "Mul": _elementwise("mul"),
    "ReduceL2": _reduce_l2,
    "Relu": lambda builder, node: builder.activate(node.rows(0), "relu"),
    "Reshape": _reshape,
    "Shape": lambda _, node: ShapeOf(node.rows(0)),
    "Squeeze": _squeeze,
    "Sub": _elementwise("sub"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "ai.onnx.ml.LinearRegressor": _linear_regressor,
    "ai.onnx.ml.Scaler": _scaler,
}
