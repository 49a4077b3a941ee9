"""What all ONNX graphs of this project share: opset, names, one free batch axis, one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fct_infer.artifacts.foreign_code import said_by
from fct_infer.artifacts.onnx_file import MAX_ONNX_BYTES
from fct_infer.backends.runner import Interface
from fct_infer.errors import GateError, UnsupportedError, import_error

OPSET = 20  # the first with Gelu
OUTPUT = "embedding"
BATCH = "batch"


def import_onnx() -> Any:
    """Return the module ``onnx``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnx
        import onnx.compose
        import onnx.version_converter
    except ImportError as error:
        raise import_error("onnx", "export", error) from error
    return onnx


def finish(graph: Any, interface: Interface, opset: int = OPSET) -> Any:
    """Return a model of ``graph``, with inputs and output as ``interface`` says: float32, batch axis free and named."""
    helper = import_onnx().helper

    def value(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, 1, [BATCH, *shape])  # 1: onnx.TensorProto.FLOAT

    del graph.input[:], graph.output[:]
    graph.input.extend(value(name, shape) for name, shape in interface.inputs.items())
    graph.output.append(value(OUTPUT, (interface.output_dim,)))
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def serialize(model: Any, metadata: Mapping[str, str]) -> bytes:
    """Return the file; ``metadata`` goes into it.

    Raises:
        UnsupportedError: it would not fit into one file.
        GateError: the ONNX checker refuses it.
    """
    onnx = import_onnx()
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = "fct-infer"
    if model.ByteSize() >= MAX_ONNX_BYTES:
        raise UnsupportedError("the ONNX file would exceed 2 GB, its format's limit; leave this target out")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"the ONNX checker refuses the graph: {said_by(error)}") from error
    data: bytes = model.SerializeToString()
    return data
