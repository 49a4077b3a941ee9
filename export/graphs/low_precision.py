"""An ONNX graph in a smaller floating type, by casts that stand in the graph: every runtime then does the same."""

from __future__ import annotations

from typing import Any

from fct_infer.errors import UnsupportedError

from .onnx_model import import_onnx

# A sum of squares or of exponentials overflows float16, and a norm's floor of 1e-12 vanishes in it. The sizes and
# regions of resampling are float32 by definition.
_KEPT = {
    *("ReduceL2", "ReduceSumSquare", "ReduceSum", "ReduceMean", "ReduceLogSumExp", "LpNormalization", "Max", "Pow"),
    *("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Exp", "Log"),
    *("Resize", "Upsample", "Range", "CumSum", "Sqrt", "Reciprocal"),
}
_BF16_OPSET = 22  # the first whose convolutions have it


def lower(model: Any, precision: str) -> Any:
    """Return ``model`` (``onnx.ModelProto``, float32 in and out) computing in ``fp16`` or ``bf16`` where it may.

    Raises:
        UnsupportedError: it has control flow, or a node whose types cannot be told.
    """
    return _Lowering(model, precision).run()


class _Lowering:
    def __init__(self, model: Any, precision: str) -> None:
        self._onnx = onnx = import_onnx()
        self._float, self._low = onnx.TensorProto.FLOAT, _element_type(onnx, precision)
        if precision == "bf16" and max(opset.version for opset in model.opset_import) < _BF16_OPSET:
            model = onnx.version_converter.convert_version(model, _BF16_OPSET)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        typed = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        self._types = {value.name: value.type.tensor_type.elem_type for value in typed}
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._types |= {name: tensor.data_type for name, tensor in self._weights.items()}
        self._lowered: set[str] = set()  # values that the new graph has in the small type under their own name
        self._casts: dict[tuple[str, int], str] = {}
        self._nodes: list[Any] = []

    def run(self) -> Any:
        nodes = list(self._graph.node)
        outputs = {value.name for value in self._graph.output}
        for node in nodes:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise UnsupportedError(
                    f"node {node.name or node.output[0]!r} ({node.op_type}) holds a graph of its own"
                )
            self._rewrite(node)
        for name in outputs & self._lowered:
            self._restore_output(name)
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._weights.values() if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        return self._model

    def _rewrite(self, node: Any) -> None:
        if node.op_type == "Constant":
            self._take_constant(node)
            return
        wanted = self._float if node.op_type in _KEPT else self._low
        for index, name in enumerate(node.input):
            if self._types.get(name) == self._float:
                node.input[index] = self._as(name, wanted)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self._float:
                attribute.i = self._low
        if wanted == self._low:
            self._lowered |= {name for name in node.output if self._types.get(name) == self._float}
        missing = [name for name in node.output if name and name not in self._types]
        if missing:
            raise UnsupportedError(f"the type of {missing[0]!r} ({node.op_type}) cannot be told")
        self._nodes.append(node)

    def _as(self, name: str, wanted: int) -> str:
        """Return the name of a float32 value of the old graph in the type wanted."""
        if wanted == (self._low if name in self._lowered else self._float):
            return name
        key = (name, wanted)
        if key not in self._casts:
            self._casts[key] = f"{name}/{'low' if wanted == self._low else 'float'}"
            if name in self._weights:
                self._weights[self._casts[key]] = self._small(self._weights[name], self._casts[key])
            else:
                cast = self._onnx.helper.make_node(
                    "Cast", [name], [self._casts[key]], f"{self._casts[key]}/cast", to=wanted
                )
                self._nodes.append(cast)
        return self._casts[key]

    def _small(self, tensor: Any, name: str) -> Any:
        helper, numpy_helper = self._onnx.helper, self._onnx.numpy_helper
        dtype = helper.tensor_dtype_to_np_dtype(self._low)
        array = numpy_helper.to_array(tensor).astype(dtype)
        return helper.make_tensor(name, self._low, array.shape, array.tobytes(), raw=True)

    def _take_constant(self, node: Any) -> None:
        """Make a constant a weight, which can be cast here and now."""
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if value is None or value.data_type != self._float:
            self._nodes.append(node)
            return
        tensor = self._onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        self._weights[tensor.name] = tensor

    def _restore_output(self, name: str) -> None:
        """Rename a lowered graph output and cast it back under its own name."""
        inner = f"{name}/low"
        for node in self._nodes:
            for field in (node.input, node.output):
                for index, value in enumerate(field):
                    if value == name:
                        field[index] = inner
        self._nodes.append(self._onnx.helper.make_node("Cast", [inner], [name], f"{name}/cast", to=self._float))


def _element_type(onnx: Any, precision: str) -> int:
    return int({"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision])
