"""Reads an ONNX graph as a program: every node is matched to a layer a program has, or named in the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.files import GIBIBYTE, read_file
from fct_infer.artifacts.onnx_weights import take_weights
from fct_infer.artifacts.program_builder import Elementwise, Norm, ProgramBuilder, Rows
from fct_infer.artifacts.roles import roles
from fct_infer.errors import ArtifactError, MissingExtraError, NotAProgramError
from fct_infer.transformation import INPUTS, Program

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class ShapeOf:
    """The shape of rows, as PyTorch computes it at run time before it expands a norm to it."""

    rows: Rows


Value: TypeAlias = Rows | Norm | ShapeOf | Array

MAX_ONNX_BYTES = 2 * GIBIBYTE
_REAL = "fiu"  # kinds of dtype
MAX_NODES = 50_000  # and as many weights; a runtime takes seconds to load so many


def program_from_onnx(path: Path, *, self_contained: bool = False) -> Program:
    """Read a transformation from an ONNX file.

    One input is the old embedding; which of two is told by their names, see :func:`roles.roles`. Rows are (n, d) or
    (n, d, 1, 1). Weights may lie in files beside it, unless it must be ``self_contained``, as in a bundle.

    Raises:
        NotAProgramError: it has nodes that no program has; names them all.
        ArtifactError: the file is no ONNX model, or keeps weights outside itself.
        MissingExtraError: onnx is not installed.
    """
    return program_of_graph(read_onnx(path, self_contained=self_contained)[0].graph, path)


def program_of_graph(graph: Any, path: Path, old_first: Sequence[str] | None = None) -> Program:
    """Read a transformation from an ``onnx.GraphProto``; errors as :func:`program_from_onnx`.

    ``old_first`` names its inputs in the order old, side, where their names do not tell.
    """
    try:
        with np.errstate(all="ignore"):  # numbers that are nonsense become NaN or infinity, which Program refuses
            return _Reader(graph, old_first).read()
    except NotAProgramError as error:
        raise NotAProgramError(error.operations, str(path)) from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def read_onnx(path: Path, *, self_contained: bool = False) -> tuple[Any, bytes]:
    """Return the file as ``onnx.ModelProto``, and the bytes of one file that holds all of it.

    With ``self_contained`` weights in other files are refused: a bundle's manifest has no digest of those.
    Read once: a file on the disk could be exchanged after it was checked, and refer to other files.

    Raises:
        FctError: as :func:`program_from_onnx`.
    """
    data = read_file(path, MAX_ONNX_BYTES)
    model = _parsed(data, path)
    if self_contained:
        return model, data  # such weights are refused by whoever reads them
    return model, model.SerializeToString(deterministic=True) if take_weights(model, path) else data


def parse_onnx(path: Path) -> Any:
    """Return the file as ``onnx.ModelProto``; errors as :func:`program_from_onnx`."""
    return read_onnx(path)[0]


def _parsed(data: bytes, path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("onnx", "export") from error
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not an ONNX model: {error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{path}: not an ONNX model, or one without nodes")
    count = max(len(model.graph.node), len(model.graph.initializer))
    if count > MAX_NODES:
        raise ArtifactError(f"{path}: a graph of {count:,} nodes or weights, at most {MAX_NODES:,} are accepted")
    return model


@dataclass(frozen=True)
class _Node:
    """One node with its inputs looked up; ``None`` stands for an optional input left out."""

    inputs: list[Value | None]
    attributes: dict[str, Any]

    def rows(self, index: int) -> Rows:
        value = self._input(index)
        if not isinstance(value, Rows):
            raise ArtifactError(f"input {index} is {_describe(value)}, wanted rows")
        return value

    def array(self, index: int) -> Array:
        value = self._input(index)
        if not isinstance(value, np.ndarray):
            raise ArtifactError(f"input {index} is {_describe(value)}, wanted a constant")
        return value

    def optional(self, index: int) -> Array | None:
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


class _Reader:
    def __init__(self, graph: Any, old_first: Sequence[str] | None) -> None:
        self._graph, self._old_first = graph, old_first
        self._builder = ProgramBuilder()
        self._values: dict[str, Value] = {}
        self._refused: list[str] = []
        self._unknown: set[str] = set()  # what refused nodes made, and all that follows from it

    def read(self) -> Program:
        if self._graph.sparse_initializer:
            raise ArtifactError("sparse weights, wanted dense ones")
        for tensor in self._graph.initializer:
            array = _array(tensor)
            if array.dtype.kind in _REAL:
                self._values[tensor.name] = array
            else:
                self._refused.append(f"weight {tensor.name!r}: is {array.dtype}, a program has real numbers only")
                self._unknown.add(tensor.name)
        self._read_inputs()
        for node in self._graph.node:
            self._read_node(node)
        if self._refused:
            raise NotAProgramError(self._refused)
        if len(self._graph.output) != 1:
            raise ArtifactError(f"{len(self._graph.output)} outputs, wanted one")
        output = self._values.get(self._graph.output[0].name)
        if not isinstance(output, Rows):
            raise ArtifactError(f"the output is {_describe(output)}, wanted rows")
        return self._builder.finish(output)

    def _read_inputs(self) -> None:
        inputs = [value for value in self._graph.input if value.name not in self._values]
        if not 1 <= len(inputs) <= len(INPUTS):
            raise ArtifactError(f"{len(inputs)} inputs, wanted old or old and side")
        shapes = [[int(dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:]] for value in inputs]
        found = roles([value.name for value in inputs], [math.prod(shape) for shape in shapes], self._old_first)
        for value, shape, role in zip(inputs, shapes, found, strict=True):
            tensor = value.type.tensor_type
            if tensor.elem_type != 1:  # onnx.TensorProto.FLOAT
                raise ArtifactError(f"input {value.name!r} is not float32")
            self._values[value.name] = self._builder.input(role, shape)

    def _read_node(self, node: Any) -> None:
        output = node.output[0] if node.output else ""
        label = f"node {node.name or output!r} ({node.op_type})"
        for name in node.input:
            if name and name not in self._values and name not in self._unknown:
                raise ArtifactError(f"{label}: reads {name!r}, which nothing before it produces")
        if output in self._values or output in self._unknown or not output:
            raise ArtifactError(f"{label}: writes {output!r}, which exists already or is no name")
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."  # a damaged one comes as bytes
        read = _OPERATIONS.get(f"{domain}{node.op_type}")
        try:
            if read is None:
                raise ArtifactError("no transformation program has this")
            if self._unknown.isdisjoint(node.input):
                inputs = [self._values[name] if name else None for name in node.input]
                self._values[output] = read(self._builder, _Node(inputs, attributes))
                return
        except (ValueError, TypeError, LookupError, OverflowError) as error:  # ArtifactErrors, and NumPy's at nonsense
            self._refused.append(f"{label}: {error}")
        self._unknown.update(node.output)


def _array(tensor: Any) -> Array:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ArtifactError(f"weight {tensor.name!r} lies in another file; wanted one self-contained file")
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ArtifactError(f"weight {tensor.name!r} is malformed: {error}") from error
    return array


def _attribute(attribute: Any) -> Any:
    from onnx import AttributeProto, helper

    if attribute.type == AttributeProto.TENSOR:
        return _array(attribute.t)
    try:
        value = helper.get_attribute_value(attribute)
    except ValueError as error:
        raise ArtifactError(f"attribute {attribute.name!r} is malformed: {error}") from error
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _describe(value: Value | None) -> str:
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


def _linear_regressor(builder: ProgramBuilder, node: _Node) -> Rows:
    """What skl2onnx makes of a linear model."""
    node.expect(post_transform="NONE")
    targets = int(node.attributes.get("targets", 1))
    weight = np.asarray(node.attributes["coefficients"], np.float32).reshape(targets, -1)
    intercepts = np.asarray(node.attributes.get("intercepts", 0), np.float32)  # one may stand for all targets
    return builder.linear(node.rows(0), weight, np.array(np.broadcast_to(intercepts, targets)))


_SCALER_DEFAULTS = (("offset", 0), ("scale", 1))


def _scaler(builder: ProgramBuilder, node: _Node) -> Rows:
    """(x - offset) * scale, as skl2onnx writes a StandardScaler."""
    offset, scale = (np.asarray(node.attributes.get(name, default), np.float32) for name, default in _SCALER_DEFAULTS)
    return builder.constant("mul", builder.constant("sub", node.rows(0), offset), scale)


def _gemm(builder: ProgramBuilder, node: _Node) -> Rows:
    node.expect(transA=0)
    weight = node.array(1) if node.attributes.get("transB", 0) else node.array(1).T
    bias = node.optional(2)
    if node.rows(0).rank != 2 or weight.ndim != 2:
        raise ArtifactError(f"multiplies rows of shape {node.rows(0).shape} by {weight.shape}")
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    product = builder.linear(node.rows(0), weight.astype(np.float64) * alpha)
    return product if bias is None else builder.constant("add", product, bias.astype(np.float64) * beta)


def _matmul(builder: ProgramBuilder, node: _Node) -> Rows:
    weight = node.array(1)
    if node.rows(0).rank != 2 or weight.ndim != 2:
        raise ArtifactError(f"multiplies rows of shape {node.rows(0).shape} by {weight.shape}")
    return builder.linear(node.rows(0), weight.T)


def _conv(builder: ProgramBuilder, node: _Node) -> Rows:
    node.expect(group=1, strides=[1, 1], pads=[0, 0, 0, 0], kernel_shape=[1, 1])
    return builder.convolution(node.rows(0), node.array(1), node.optional(2))


def _batch_norm(builder: ProgramBuilder, node: _Node) -> Rows:
    node.expect(training_mode=0, spatial=1)
    scale, shift, mean, variance = (node.array(index) for index in range(1, 5))
    return builder.batch_norm(node.rows(0), scale, shift, mean, variance, node.attributes.get("epsilon", 1e-5))


def _gelu(builder: ProgramBuilder, node: _Node) -> Rows:
    node.expect(approximate="none")
    return builder.activate(node.rows(0), "gelu")


def _concat(builder: ProgramBuilder, node: _Node) -> Rows:
    parts = [node.rows(index) for index in range(len(node.inputs))]
    for part in parts:
        _feature_axis(part, node.attributes.get("axis", 0))
    return builder.concat(parts)


def _elementwise(operation: Elementwise) -> Callable[[ProgramBuilder, _Node], Value]:
    def read(builder: ProgramBuilder, node: _Node) -> Value:
        match node.inputs:
            case [Rows() as rows, np.ndarray() as operand]:
                return builder.constant(operation, rows, operand)
            case [np.ndarray() as operand, Rows() as rows]:
                return builder.constant(operation, rows, operand, reverse=True)
            case [Rows() as first, Rows() as second] if operation == "add":
                return builder.add(first, second)
            case [Rows() as rows, Norm() as norm] if operation == "div":
                return builder.divide(rows, norm)
        raise ArtifactError(f"applied to {' and '.join(map(_describe, node.inputs))}")

    return read


def _reduce_l2(builder: ProgramBuilder, node: _Node) -> Norm:
    node.expect(keepdims=1)
    axes = node.integers("axes", 1)
    if len(axes) != 1:
        raise ArtifactError(f"over the axes {axes}, wanted the feature axis only")
    _feature_axis(node.rows(0), axes[0])
    return builder.norm(node.rows(0))


def _norm_floor(builder: ProgramBuilder, node: _Node) -> Norm:
    """Clip with a minimum, or Max of a norm and a constant."""
    norm = next((value for value in node.inputs if isinstance(value, Norm)), None)
    floors = [value for value in node.inputs if isinstance(value, np.ndarray)]
    if norm is None or len(floors) != 1 or floors[0].size != 1 or set(node.attributes) - {"min"}:
        raise ArtifactError("wanted a norm and the least value it may have")
    return builder.norm_floor(norm, float(floors[0].ravel()[0]))


def _expand(_builder: ProgramBuilder, node: _Node) -> Norm:
    match node.inputs:
        case [Norm() as norm, ShapeOf() as shape] if shape.rows.shape == norm.rows.shape:
            return norm
    raise ArtifactError(f"expands {' to '.join(map(_describe, node.inputs))}, wanted a norm to the shape of its rows")


def _lp_normalization(builder: ProgramBuilder, node: _Node) -> Rows:
    node.expect(p=2)
    _feature_axis(node.rows(0), node.attributes.get("axis", -1))
    return builder.normalize(node.rows(0))


def _flatten(builder: ProgramBuilder, node: _Node) -> Rows:
    node.expect(axis=1)
    return builder.reshape(node.rows(0), node.rows(0).shape[:1])


def _squeeze(builder: ProgramBuilder, node: _Node) -> Rows:
    rows, axes = node.rows(0), node.integers("axes", 1)
    if sorted(axis % rows.rank for axis in axes) != [2, 3]:
        raise ArtifactError(f"squeezes the axes {axes} of rows of shape {rows.shape}")
    return builder.reshape(rows, rows.shape[:1])


def _unsqueeze(builder: ProgramBuilder, node: _Node) -> Rows:
    rows, axes = node.rows(0), node.integers("axes", 1)
    if rows.rank != 2 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise ArtifactError(f"unsqueezes the axes {axes} of rows of shape {rows.shape}")
    return builder.reshape(rows, (rows.width, 1, 1))


def _reshape(builder: ProgramBuilder, node: _Node) -> Rows:
    node.expect(allowzero=0)
    rows, (batch, *shape) = node.rows(0), (int(size) for size in node.array(1).ravel())
    kept = [rows.shape[axis] if size == 0 and axis < len(rows.shape) else size for axis, size in enumerate(shape)]
    if batch not in (0, -1) or kept.count(-1) > (batch == 0):
        raise ArtifactError(f"reshapes rows of shape {rows.shape} to {[batch, *shape]}")
    known = math.prod(size for size in kept if size != -1)
    return builder.reshape(rows, [rows.width // max(known, 1) if size == -1 else size for size in kept])


def _transpose(_builder: ProgramBuilder, node: _Node) -> Array:
    order = node.attributes.get("perm")
    if order is not None and sorted(order) != list(range(node.array(0).ndim)):
        raise ArtifactError(f"axes {order} of a constant of shape {node.array(0).shape}")
    return node.array(0).transpose(order)


def _constant(_builder: ProgramBuilder, node: _Node) -> Array:
    value = node.attributes.get("value")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _REAL:
        raise ArtifactError("wanted a tensor of real numbers as its value")
    return value


def _identity(_builder: ProgramBuilder, node: _Node) -> Value:
    if len(node.inputs) != 1 or node.inputs[0] is None:
        raise ArtifactError(f"{len(node.inputs)} inputs, wanted one")
    return node.inputs[0]


_OPERATIONS: dict[str, Callable[[ProgramBuilder, _Node], Value]] = {
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
