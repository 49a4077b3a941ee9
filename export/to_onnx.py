"""Target ``onnx``: one self-contained graph with a dynamic ``batch``, input(s) by name, output ``embedding``."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.artifacts.onnx_graph import MAX_ONNX_BYTES
from fct_infer.artifacts.torchscript import last_line
from fct_infer.errors import ArtifactError, GateError, MissingExtraError, UnsupportedError
from fct_infer.transformation import Add, Concat, Linear, Normalize, Program, Step

from .template import Exporter, Runner, SourceT

if TYPE_CHECKING:
    from .image_model import ImageModel

OPSET = 20  # the first with Gelu
OUTPUT = "embedding"
_BATCH = "batch"


class _ToOnnx(Exporter[SourceT]):
    target = "onnx"
    file_name = "model.onnx"

    def open(self, source: SourceT, path: Path) -> Runner:
        """Run the file in ONNX Runtime on the CPU."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "export") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise GateError(f"ONNX Runtime refuses the file: {error}") from error
        return lambda batch: np.asarray(session.run([OUTPUT], dict(batch))[0], np.float32)


class TransformationToOnnx(_ToOnnx[Program]):
    """A program written node by node: Gemm, Relu, Gelu, Concat, Add, and ReduceL2-Max-Div for L2 normalisation."""

    def convert(self, source: Program, metadata: Mapping[str, str]) -> bytes:
        """Return the ONNX file."""
        onnx = _import_onnx()
        helper, from_array = onnx.helper, onnx.numpy_helper.from_array
        names = {**{name: name for name in source.dims}, source.output: OUTPUT}
        nodes = [node for step in source.steps for node in _nodes(step, names, helper.make_node)]
        constants: dict[str, Any] = dict(source.tensors())
        if any(isinstance(step, Normalize) for step in source.steps):
            constants |= _NORM_CONSTANTS
        weights = [from_array(array, name) for name, array in constants.items()]
        inputs = {name: (dim,) for name, dim in source.dims.items()}
        graph = helper.make_graph(nodes, "transformation", *_interface(onnx, inputs, source.new_dim), weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
        return _serialize(onnx, model, metadata)


class ImageModelToOnnx(_ToOnnx["ImageModel"]):
    """A backbone through PyTorch's exporter."""

    def convert(self, source: ImageModel, metadata: Mapping[str, str]) -> bytes:
        """Return the ONNX file.

        The TorchScript-based exporter is used because the newer one refuses TorchScript modules, which is what most
        users have.
        """
        import torch

        from .tracing import trace, without_warnings

        onnx = _import_onnx()
        buffer: Any = io.BytesIO()  # PyTorch accepts one, its annotation does not say so
        example = torch.zeros(2, *source.image_shape)
        # Traced, because the exporter cannot trace a module that has TorchScript inside; and copied, because it runs
        # such a module's batch norm in training mode, which changes its statistics.
        traced = trace(copy.deepcopy(source), example)
        try:
            with without_warnings():
                torch.onnx.export(
                    traced,
                    (example,),
                    buffer,
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["image"],
                    output_names=[OUTPUT],
                    dynamic_axes={"image": {0: _BATCH}, OUTPUT: {0: _BATCH}},
                )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ArtifactError(f"PyTorch cannot write the model as ONNX: {last_line(error)}") from error
        model = onnx.load_model_from_string(buffer.getvalue())
        inputs, outputs = _interface(onnx, {"image": source.image_shape}, source.output_dim)
        for field, values in ((model.graph.input, inputs), (model.graph.output, outputs)):
            del field[:]
            field.extend(values)
        return _serialize(onnx, model, metadata)


_NORM_CONSTANTS: dict[str, Any] = {"norm.axis": np.array([1]), "norm.floor": np.array(1e-12, np.float32)}


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


def _interface(onnx: Any, inputs: Mapping[str, tuple[int, ...]], output_dim: int) -> tuple[list[Any], list[Any]]:
    def value(name: str, shape: tuple[int, ...]) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [_BATCH, *shape])

    return [value(name, shape) for name, shape in inputs.items()], [value(OUTPUT, (output_dim,))]


def _serialize(onnx: Any, model: Any, metadata: Mapping[str, str]) -> bytes:
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = "fct-infer"
    if model.ByteSize() >= MAX_ONNX_BYTES:
        raise UnsupportedError("the ONNX file would exceed 2 GB, its format's limit; leave this target out")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"the ONNX checker refuses the graph: {error}") from error
    data: bytes = model.SerializeToString()
    return data


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "export") from error
    return onnx
