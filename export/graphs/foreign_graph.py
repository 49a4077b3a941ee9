"""An ONNX graph somebody else wrote, with this project's names and layout around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fct_infer.artifacts.foreign_code import said_by
from fct_infer.artifacts.onnx_signature import OnnxInput
from fct_infer.backends.runner import Interface
from fct_infer.errors import UnsupportedError

from .onnx_model import OPSET, OUTPUT, finish, import_onnx

_PREFIX = "model/"  # of every name in the graph, so that ours are free


def plain_graph(model: Any, inputs: Mapping[str, OnnxInput], interface: Interface) -> Any:
    """Return ``model`` with plain rows in and out, at this project's opset or a later one it has already.

    Raises:
        UnsupportedError: it uses operators beyond ONNX's own, or its opset cannot be raised.
    """
    onnx = import_onnx()
    helper = onnx.helper
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign:
        raise UnsupportedError(
            f"it uses operators of {', '.join(sorted(foreign))}, which only their author's runtime has"
        )
    if opsets.get("ai.onnx", 1) < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except (RuntimeError, onnx.version_converter.ConvertError) as error:
            found = opsets.get("ai.onnx")
            raise UnsupportedError(f"its opset {found} cannot be raised to {OPSET}: {said_by(error)}") from error
    model = onnx.compose.add_prefix(model, _PREFIX)
    graph = model.graph
    before, shapes = [], []
    for name, native in inputs.items():
        shape = onnx.numpy_helper.from_array(_int64([-1, *native.shape]), f"{name}/shape")
        shapes.append(shape)
        before.append(helper.make_node("Reshape", [name, shape.name], [_PREFIX + native.name], name=f"{name}/reshape"))
    after = helper.make_node("Flatten", [graph.output[0].name], [OUTPUT], name=f"{OUTPUT}/flatten", axis=1)
    nodes = [*before, *graph.node, after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(shapes)
    version = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    return finish(graph, interface, version)


def _int64(values: list[int]) -> Any:
    import numpy as np

    return np.array(values, np.int64)
