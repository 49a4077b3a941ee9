"""A bf16 ONNX graph on a CPU whose runtime has no bf16: float32 products of numbers rounded to bfloat16.

That is what hardware with bf16 computes, up to the order of its float32 sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.artifacts.files import read_file
from fct_infer.artifacts.onnx_file import MAX_ONNX_BYTES
from fct_infer.backends.runner import Batch, Interface, Runner
from fct_infer.transformation import Float32Array

from .onnx_model import OUTPUT, import_onnx


class EmulatedBf16Runner(Runner):
    """Runs a bf16 file of this project in ONNX Runtime on the CPU; for proof, not for production."""

    backend, device = "onnxruntime", "cpu"

    def __init__(self, path: Path, interface: Interface) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps the roundings
        model = import_onnx().load_model_from_string(read_file(path, MAX_ONNX_BYTES))
        data = _widened(model).SerializeToString()
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.interface = interface
        self.runtime = f"onnxruntime {onnxruntime.__version__} cpu, bf16 emulated"

    def run(self, batch: Batch) -> Float32Array:
        """Compute one batch; see :meth:`Runner.run`."""
        return np.asarray(self._session.run([OUTPUT], dict(batch))[0], np.float32)


def _widened(model: Any) -> Any:
    """Put a cast to float32 before each bf16 operand, and one to bf16 after each bf16 result."""
    onnx = import_onnx()
    bf16, float32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes: list[Any] = []
    wide: set[str] = set()

    def cast(source: str, target: str, to: int) -> None:
        nodes.append(onnx.helper.make_node("Cast", [source], [target], to=to))

    for node in model.graph.node:
        if node.op_type == "Cast":
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if types.get(name) == bf16:
                if name not in wide:
                    cast(name, f"{name}/wide", float32)
                    wide.add(name)
                node.input[index] = f"{name}/wide"
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) == bf16:
                node.output[index] = f"{name}/exact"
                cast(f"{name}/exact", name, bf16)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return model
