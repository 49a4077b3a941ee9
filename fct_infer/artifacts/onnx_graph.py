"""Reads an ONNX graph as a program: every node is matched to a layer a program has, or named in the error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.artifacts.onnx_file import read_onnx
from fct_infer.artifacts.onnx_operations import OPERATIONS, REAL, Array, Node, Value, describe
from fct_infer.artifacts.program_builder import ProgramBuilder, Rows
from fct_infer.artifacts.roles import roles
from fct_infer.errors import ArtifactError, NotAProgramError
from fct_infer.transformation import INPUTS, Program


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
            if array.dtype.kind in REAL:
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
            raise ArtifactError(f"the output is {describe(output)}, wanted rows")
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
        read = OPERATIONS.get(f"{domain}{node.op_type}")
        try:
            if read is None:
                raise ArtifactError("no transformation program has this")
            if self._unknown.isdisjoint(node.input):
                inputs = [self._values[name] if name else None for name in node.input]
                self._values[output] = read(self._builder, Node(inputs, attributes))
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
