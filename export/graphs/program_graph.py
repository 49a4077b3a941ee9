"""A program as an ONNX graph: Gemm, Relu, Gelu, Concat, Add, and ReduceL2-Max-Div for L2 normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fct_infer.backends.runner import Interface
from fct_infer.transformation import Add, Concat, Linear, Normalize, Program, Step

from .onnx_model import OUTPUT, finish, import_onnx

_NORM_CONSTANTS: dict[str, Any] = {"norm.axis": np.array([1]), "norm.floor": np.array(1e-12, np.float32)}


def program_graph(program: Program) -> Any:
    """Return ``program`` as ``onnx.ModelProto``."""
    onnx = import_onnx()
    helper, from_array = onnx.helper, onnx.numpy_helper.from_array
    names = {**{name: name for name in program.dims}, program.output: OUTPUT}
    nodes = [node for step in program.steps for node in _nodes(step, names, helper.make_node)]
    constants: dict[str, Any] = dict(program.tensors())
    if any(isinstance(step, Normalize) for step in program.steps):
        constants |= _NORM_CONSTANTS
    weights = [from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "transformation", [], [], weights)
    return finish(graph, Interface({name: (dim,) for name, dim in program.dims.items()}, program.new_dim))


def _nodes(step: Step, names: dict[str, str], make_node: Callable[..., Any]) -> list[Any]:
    """Nodes of one step; ``names`` are those of values in the graph, by their names in the program."""
    output = names.setdefault(step.output, f"h/{step.output}")
    inner, floored = f"h/{step.output}/inner", f"h/{step.output}/floored"
    match step:
        case Linear():
            operands = [names[step.input], f"{step.output}.weight", f"{step.output}.bias"]
            if step.activation == "none":
                return [make_node("Gemm", operands, [output], name=step.output, transB=1)]
            return [
                make_node("Gemm", operands, [inner], name=step.output, transB=1),
                make_node({"relu": "Relu", "gelu": "Gelu"}[step.activation], [inner], [output]),
            ]
        case Concat():
            return [make_node("Concat", [names[name] for name in step.inputs], [output], name=step.output, axis=1)]
        case Add():
            return [make_node("Add", [names[name] for name in step.inputs], [output], name=step.output)]
        case Normalize():
            return [
                make_node("ReduceL2", [names[step.input], "norm.axis"], [inner], keepdims=1),
                make_node("Max", [inner, "norm.floor"], [floored]),
                make_node("Div", [names[step.input], floored], [output], name=step.output),
            ]
