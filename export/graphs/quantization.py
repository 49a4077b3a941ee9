"""An ONNX graph with 8-bit products: Q/DQ pairs around them, scales from rows of a real gallery.

The graph stays explicit about it, so ONNX Runtime and TensorRT's strongly typed networks read the same file. ONNX
Runtime's own quantizer is not used: its only way to fp8 scales clips what is large. Lowest cosines on the demo's models
were 0.935 (transformation) and 0.751 (backbone) with it, 0.993 and 0.995 with scales from the largest values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.foreign_code import said_by
from fct_infer.backends.runner import Batch, split_batch
from fct_infer.errors import ArtifactError, import_error
from fct_infer.transformation import Float32Array

from .onnx_model import import_onnx

_BATCH_ROWS = 256
_LARGEST = {"int8": 127.0, "fp8": 448.0}  # of signed integers, symmetric, and of float8 E4M3


def quantize(model: Any, precision: str, rows: Batch) -> Any:
    """Return ``model`` (float32 ``onnx.ModelProto``) with its products in ``int8`` or ``fp8`` (E4M3).

    Weights have a scale per output channel, what meets them one per tensor: the largest value seen. All are symmetric,
    as TensorRT wants them, and what follows a product is float32.

    Args:
        model: with float32 inputs and output, which stay so.
        precision: ``int8`` or ``fp8``.
        rows: inputs by name, (n, ...) float32, of a real gallery.

    Raises:
        ArtifactError: no product has a constant operand.
    """
    onnx = import_onnx()
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {"Conv": (3, 4, 5), "Gemm": (2,), "MatMul": (2,)}
    products = [
        product
        for product in map(_product, graph.node)
        if product and product.weight in weights and len(weights[product.weight].dims) in ranks[product.node.op_type]
    ]
    if not products:
        raise ArtifactError("it has no product of a constant weight, so nothing to quantize")
    seen = _largest_values(model, {product.rows for product in products}, rows)
    writer = _Writer(onnx, graph, precision)
    for product in products:
        if product.rows not in writer.pairs:
            writer.pair(product.rows, np.float32(seen[product.rows] or 1.0))
        writer.weight(product, onnx.numpy_helper.to_array(weights[product.weight]))
    writer.finish(products)
    return quantized


@dataclass(frozen=True)
class _Product:
    """A Conv, Gemm or MatMul: its node, the value that meets a weight, the weight, and the weight's output axis."""

    node: Any
    rows: str
    weight: str
    axis: int


def _product(node: Any) -> _Product | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    flags = {attribute.name: attribute.i for attribute in node.attribute if attribute.name.startswith("trans")}
    has_rows_first = node.op_type == "Conv" or flags.get("transB", 0) == 1
    return _Product(node, node.input[0], node.input[1], 0 if has_rows_first else 1)


class _Writer:
    """Adds Q/DQ nodes and 8-bit weights to a graph."""

    def __init__(self, onnx: Any, graph: Any, precision: str) -> None:
        self._onnx, self._graph, self._largest = onnx, graph, _LARGEST[precision]
        self._type = onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT8E4M3FN
        self._is_integer = precision == "int8"
        self.pairs: dict[str, str] = {}  # of a value: what comes out of its pair
        self._dequantized: dict[tuple[str, int], str] = {}  # of a weight and axis
        self._nodes: dict[str, list[Any]] = {}  # by the value they follow; "" is the start

    def pair(self, name: str, largest: np.float32) -> None:
        """Put Quantize and Dequantize behind a value."""
        scale, zero = self._scale(f"{name}/scale", np.asarray(largest / self._largest, np.float32))
        quantized, self.pairs[name] = f"{name}/quantized", f"{name}/dequantized"
        make = self._onnx.helper.make_node
        self._nodes[name] = [
            make("QuantizeLinear", [name, scale, zero], [quantized], f"{name}/quantize"),
            make("DequantizeLinear", [quantized, scale, zero], [self.pairs[name]], f"{name}/dequantize"),
        ]

    def weight(self, product: _Product, array: Float32Array) -> None:
        """Put an 8-bit weight and its Dequantize in the place of a weight, once for each axis it is used along."""
        key = (product.weight, product.axis)
        if key not in self._dequantized:
            name = f"{product.weight}/{product.axis}"
            axes = tuple(axis for axis in range(array.ndim) if axis != product.axis)
            largest = np.abs(array).max(axis=axes)
            scales = (np.where(largest > 0, largest, 1) / self._largest).astype(np.float32)
            scale, zero = self._scale(f"{name}/scale", scales)
            shape = [-1 if axis == product.axis else 1 for axis in range(array.ndim)]
            self._add(f"{name}/quantized", array / scales.reshape(shape))
            inputs, output = [f"{name}/quantized", scale, zero], f"{name}/dequantized"
            node = self._onnx.helper.make_node("DequantizeLinear", inputs, [output], name, axis=product.axis)
            self._nodes.setdefault("", []).append(node)
            self._dequantized[key] = output
        product.node.input[1] = self._dequantized[key]

    def finish(self, products: list[_Product]) -> None:
        """Connect the products and put all nodes in an order in which they can run."""
        for product in products:
            product.node.input[0] = self.pairs[product.rows]
        constants = {value.name for value in (*self._graph.input, *self._graph.initializer)}
        nodes = [*self._nodes.pop("", [])]
        nodes += [node for name in self._nodes if name in constants for node in self._nodes[name]]
        for node in self._graph.node:
            nodes.append(node)
            nodes += [pair for name in node.output for pair in self._nodes.get(name, [])]
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _scale(self, name: str, scales: NDArray[np.float32]) -> tuple[str, str]:
        """Add scales and the zero points that go with them; return their names."""
        zero = f"{name}/zero"
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(scales, name))
        self._add(zero, np.zeros_like(scales))
        return name, zero

    def _add(self, name: str, array: Float32Array) -> None:
        dtype = self._onnx.helper.tensor_dtype_to_np_dtype(self._type)
        rounded = np.rint(array) if self._is_integer else array
        data = np.clip(rounded, -self._largest, self._largest).astype(dtype)
        self._graph.initializer.append(
            self._onnx.helper.make_tensor(name, self._type, data.shape, data.tobytes(), raw=True)
        )


def _largest_values(model: Any, names: set[str], rows: Batch) -> dict[str, float]:
    """Run ``rows`` through ``model`` and return the largest absolute value of each of the values named."""
    try:
        import onnxruntime
    except ImportError as error:
        raise import_error("onnxruntime", "export", error) from error
    onnx = import_onnx()
    inner = sorted(names - set(rows))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise ArtifactError(f"its inner values cannot be watched: {said_by(error)}") from error
    largest = {name: float(np.abs(array).max()) for name, array in rows.items()} | dict.fromkeys(inner, 0.0)
    for batch in split_batch(rows, _BATCH_ROWS):
        for name, values in zip(inner, session.run(inner, batch) if inner else [], strict=True):
            largest[name] = max(largest[name], float(np.abs(values).max()))
    return largest
