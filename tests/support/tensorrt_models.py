"""Tiny ONNX models as engines are built from, and the TensorRT that builds them."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fct_infer.backends.runner import Interface
from fct_infer.backends.tensorrt_runtime import import_tensorrt
from fct_infer.errors import MissingExtraError

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
OPSET, OPSET_OF_BFLOAT16_CONV = 20, 22
TRANSFORMATION = Interface({"old": (24,), "side": (8,)}, 16)
BACKBONE = Interface({"image": (3, 16, 16)}, 16)


def require_tensorrt(target: str) -> ModuleType:
    """Return the real module; without it the test is skipped, or fails where FCT_REQUIRE_TENSORRT is 1."""
    try:
        return import_tensorrt(target)
    except MissingExtraError as error:
        if os.environ.get("FCT_REQUIRE_TENSORRT") == "1":
            pytest.fail(f"FCT_REQUIRE_TENSORRT is set: {error}")
        pytest.skip(str(error))


def transformation(compute: int = FLOAT) -> bytes:
    """``old``, ``side`` -> ``embedding`` in the given type, float32 outside, as a transformation is exported."""
    graph = _Graph(TRANSFORMATION, compute)
    halves = [
        graph.add("Relu", graph.linear(graph.cast(name), dim, 32)) for name, (dim,) in TRANSFORMATION.inputs.items()
    ]
    return graph.finish(graph.linear(graph.add("Concat", *halves, axis=1), 64, TRANSFORMATION.output_dim))


def backbone(compute: int = FLOAT) -> bytes:
    """``image`` -> ``embedding``: a convolution, pooling, a linear layer."""
    graph = _Graph(BACKBONE, compute)
    kernel = graph.weight(8, 3, 3, 3)
    maps = graph.add("Relu", graph.add("Conv", graph.cast("image"), kernel, pads=[1] * 4, strides=[2, 2]))
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", maps))
    return graph.finish(graph.linear(pooled, 8, BACKBONE.output_dim))


def quantized(model: bytes, precision: str, folder: Path) -> bytes:
    """The model with Q/DQ pairs, ``int8`` or ``fp8``, calibrated on random rows."""
    from onnxruntime import quantization as q

    proto = onnx.load_from_string(model)
    batches = [random_batch(proto, 64, seed) for seed in range(4)]

    class Reader(q.CalibrationDataReader):
        def get_next(self) -> Any:
            return batches.pop() if batches else None

    int8 = precision == "int8"
    kind = q.QuantType.QInt8 if int8 else q.QuantType.QFLOAT8E4M3FN
    method = q.CalibrationMethod.MinMax if int8 else q.CalibrationMethod.Distribution
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    q.quantize_static(
        proto,
        folder / "quantized.onnx",
        Reader(),
        per_channel=True,
        activation_type=kind,
        weight_type=kind,
        calibrate_method=method,
        extra_options=options,
    )
    return (folder / "quantized.onnx").read_bytes()


def random_batch(proto: Any, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {each.name: [axis.dim_value for axis in each.type.tensor_type.shape.dim[1:]] for each in proto.graph.input}
    return {name: rng.standard_normal((rows, *shape), np.float32) for name, shape in shapes.items()}


def one_node(operator: str, name: str, domain: str = "", compute: int = FLOAT, batch: str | int = "batch") -> bytes:
    """``x`` (batch, 4, 4) -> ``embedding`` by a single node."""
    node = helper.make_node(operator, ["x"], ["embedding"], name=name, domain=domain)
    x, y = (helper.make_tensor_value_info(each, compute, [batch, 4, 4]) for each in ("x", "embedding"))
    return _serialized(helper.make_graph([node], "one node", [x], [y]), domain)


class _Graph:
    def __init__(self, interface: Interface, compute: int) -> None:
        self._interface, self._compute = interface, compute
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._rng = np.random.default_rng(3)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def cast(self, name: str) -> str:
        return name if self._compute == FLOAT else self.add("Cast", name, to=self._compute)

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self._weights)}"
        values = self._rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        self._weights.append(helper.make_tensor(name, self._compute, shape, values.ravel()))
        return name

    def linear(self, rows: str, dim_in: int, dim_out: int) -> str:
        return self.add("Gemm", rows, self.weight(dim_out, dim_in), self.weight(dim_out), transB=1)

    def finish(self, last: str) -> bytes:
        self._nodes.append(helper.make_node("Cast", [last], ["embedding"], name="result", to=FLOAT))
        inputs = [
            helper.make_tensor_value_info(name, FLOAT, ["batch", *shape])
            for name, shape in self._interface.inputs.items()
        ]
        output = helper.make_tensor_value_info("embedding", FLOAT, ["batch", self._interface.output_dim])
        graph = helper.make_graph(self._nodes, "tiny", inputs, [output], self._weights)
        model = _serialized(graph, opset=OPSET_OF_BFLOAT16_CONV if self._compute == BFLOAT16 else OPSET)
        onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
        return model


def _serialized(graph: Any, domain: str = "", opset: int = OPSET) -> bytes:
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
