from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support.programs import random_rows
from support.torch_models import PublicTransformation, randomized

from fct_infer.artifacts.onnx_graph import program_from_onnx
from fct_infer.errors import ArtifactError
from fct_infer.reference import apply_float64

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((5, 6), dtype=np.float32), RNG.standard_normal(5, dtype=np.float32)
S = RNG.uniform(0.5, 2, 6).astype(np.float32)
TWO_D, FOUR_D = ("batch", 6), ("batch", 6, 1, 1)


def node(op: str, inputs: str, output: str = "y", **attributes):
    return helper.make_node(op, inputs.split(), [output], name=f"{op}-{output}", **attributes)


def save(path: Path, nodes: list, constants: dict | None = None, inputs: dict | None = None, output: str = "y") -> Path:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (inputs or {"x": TWO_D}).items()
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", values, outputs, initializers)
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    path.write_bytes(model.SerializeToString())
    return path


def assert_equals_onnxruntime(path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {
        value.name: random_rows(9, value.shape[1], seed).reshape(9, *value.shape[1:])
        for seed, value in enumerate(session.get_inputs())
    }
    wanted = session.run(None, feeds)[0].reshape(9, -1)
    program = program_from_onnx(path)
    found = apply_float64(program, *(feed.reshape(9, -1) for feed in feeds.values()))
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


GRAPHS = {
    "gemm": ([node("Gemm", "x w b", transB=1)], {"w": W, "b": B}, TWO_D),
    "gemm with factors": ([node("Gemm", "x w b", alpha=0.5, beta=3.0)], {"w": W.T.copy(), "b": B[None]}, TWO_D),
    "gemm without bias": ([node("Gemm", "x w", transB=1)], {"w": W}, TWO_D),
    "matmul and add": ([node("MatMul", "x w", "z"), node("Add", "b z")], {"w": W.T.copy(), "b": B}, TWO_D),
    "transposed constant": (
        [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t")],
        {"w": W},
        TWO_D,
    ),
    "constant node": (
        [node("Constant", "", "s", value=numpy_helper.from_array(S)), node("Mul", "x s", "z"), node("Relu", "z")],
        {},
        TWO_D,
    ),
    "scale, shift, gemm": (
        [node("Mul", "s x", "a"), node("Sub", "s a", "c"), node("Div", "c s", "d"), node("Gemm", "d w", transB=1)],
        {"s": S, "w": W},
        TWO_D,
    ),
    "convolution": (
        [node("Conv", "x w b", "z", kernel_shape=[1, 1]), node("Relu", "z", "r"), node("Flatten", "r")],
        {"w": W[..., None, None], "b": B},
        FOUR_D,
    ),
    "batch norm": (
        [node("BatchNormalization", "x s s m s", "z", epsilon=0.1), node("Gelu", "z")],
        {"s": S, "m": RNG.standard_normal(6, dtype=np.float32)},
        TWO_D,
    ),
    "batch norm, four axes": (
        [node("BatchNormalization", "x s s m s", "z"), node("Squeeze", "z axes")],
        {"s": S, "m": S, "axes": np.array([2, 3])},
        FOUR_D,
    ),
    "add per feature, four axes": ([node("Add", "x s")], {"s": S[None, :, None, None]}, FOUR_D),
    "reshape": ([node("Reshape", "x shape", "z"), node("Relu", "z")], {"shape": np.array([0, -1])}, FOUR_D),
    "reshape up": (
        [node("Reshape", "x shape", "z"), node("Conv", "z w")],
        {"shape": np.array([-1, 6, 1, 1]), "w": W[..., None, None]},
        TWO_D,
    ),
    "unsqueeze": (
        [node("Unsqueeze", "x axes", "z"), node("Conv", "z w", "c"), node("Identity", "c")],
        {"axes": np.array([-1, -2]), "w": W[..., None, None]},
        TWO_D,
    ),
    "concat with itself": ([node("Concat", "x x", axis=-1)], {}, TWO_D),
    "concat, four axes": ([node("Concat", "x x", axis=1)], {}, FOUR_D),
    "residual": ([node("Gemm", "x w", "z", transB=1), node("Add", "x z")], {"w": np.eye(6, dtype=np.float32)}, TWO_D),
    "lp normalization": ([node("LpNormalization", "x", axis=-1, p=2)], {}, TWO_D),
    "norm by reduction": (
        [node("ReduceL2", "x axes", "n", keepdims=1), node("Clip", "n floor", "c"), node("Div", "x c")],
        {"axes": np.array([1]), "floor": np.array(1e-12, np.float32)},
        TWO_D,
    ),
    "norm as PyTorch writes it": (
        [
            node("ReduceL2", "x axes", "n", keepdims=1),
            node("Clip", "n floor", "c"),
            node("Shape", "x", "shape"),
            node("Expand", "c shape", "e"),
            node("Div", "x e"),
        ],
        {"axes": np.array([-1]), "floor": np.array(1e-12, np.float32)},
        TWO_D,
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_equals_onnxruntime(tmp_path, name):
    nodes, constants, shape = GRAPHS[name]
    assert_equals_onnxruntime(save(tmp_path / "h.onnx", nodes, constants, {"x": shape}))


def export_with_torch(model: torch.nn.Module, inputs: tuple, path: Path, names: list[str]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(
            model, inputs, str(path), dynamo=False, input_names=names, dynamic_axes=axes, opset_version=17
        )
    return path


def test_the_public_layout_as_pytorch_exports_it(tmp_path):
    model = randomized(PublicTransformation(12, 5, 7, 20))
    inputs = (torch.randn(2, 12, 1, 1), torch.randn(2, 5, 1, 1))
    path = export_with_torch(model, inputs, tmp_path / "h.onnx", ["old_feature", "side_info"])
    assert program_from_onnx(path).dims == {"old": 12, "side": 5}
    assert_equals_onnxruntime(path)


def test_a_normalized_mlp_as_pytorch_exports_it(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.BatchNorm1d(9), torch.nn.ReLU())

        def forward(self, x):
            return torch.nn.functional.normalize(self.layers(x))

    model = randomized(Model())
    assert_equals_onnxruntime(export_with_torch(model, (torch.randn(2, 6),), tmp_path / "h.onnx", ["x"]))


def test_inputs_called_old_and_side_are_taken_by_name(tmp_path):
    nodes = [node("Gemm", "old w", "z", transB=1), node("Concat", "z side", axis=1)]
    path = save(tmp_path / "h.onnx", nodes, {"w": W}, {"side": ("batch", 2), "old": TWO_D})
    assert program_from_onnx(path).dims == {"side": 2, "old": 6}


REFUSED = {
    "Sigmoid": ([node("Sigmoid", "x")], {}, r"node 'Sigmoid-y' \(Sigmoid\): no transformation program has this"),
    "other domain": ([node("Relu", "x", domain="com.acme")], {}, "no transformation program has this"),
    "unknown input": ([node("Relu", "q")], {}, "reads 'q', which nothing before it produces"),
    "written twice": ([node("Relu", "x"), node("Relu", "x")], {}, "writes 'y', which exists already"),
    "tanh gelu": ([node("Gelu", "x", approximate="tanh")], {}, "approximate is tanh, wanted none"),
    "weight on the left": ([node("MatMul", "w x")], {"w": W}, "input 1 is rows"),
    "weight does not fit": ([node("Gemm", "x w")], {"w": W}, "do not fit rows 6 wide"),
    "two rows multiplied": ([node("Mul", "x x")], {}, "applied to rows"),
    "batch axis": ([node("Concat", "x x", axis=0)], {}, "wanted the feature axis 1"),
    "norm over the batch": ([node("ReduceL2", "x a")], {"a": np.array([0])}, "wanted the feature axis 1"),
    "norm over all": ([node("ReduceL2", "x")], {}, "wanted the feature axis only"),
    "norm itself": ([node("ReduceL2", "x a")], {"a": np.array([1])}, "the output is a norm, wanted rows"),
    "clip of rows": ([node("Clip", "x f")], {"f": np.array(0.0, np.float32)}, "wanted a norm"),
    "constant output": ([node("Identity", "w")], {"w": W}, "the output is a constant"),
    "reshape to one row": ([node("Reshape", "x s")], {"s": np.array([1, -1])}, "reshapes rows"),
    "reshape of features": ([node("Reshape", "x s")], {"s": np.array([-1, 2, 3])}, "made into"),
    "double weights": ([node("Gemm", "x w", transB=1)], {"w": W.astype(complex)}, "real numbers"),
    "huge weights": ([node("Gemm", "x w", transB=1)], {"w": W.astype(np.float64) * 1e300}, "finite"),
    "NaN weights": ([node("Gemm", "x w", transB=1)], {"w": W * np.float32(np.nan)}, "finite"),
    "attribute of another type": ([node("Gemm", "x w", transB=1, alpha="much")], {"w": W}, "Gemm"),
    "missing operand": ([node("Gemm", "x")], {}, "input 1 is missing"),
    "one input missing": ([node("Add", "x")], {}, "applied to rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_program_can_hold_is_named(tmp_path, name):
    nodes, constants, message = REFUSED[name]
    with pytest.raises(ArtifactError, match=rf"h\.onnx: .*{message}"):
        program_from_onnx(save(tmp_path / "h.onnx", nodes, constants))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": ("batch", 3, 8, 8)}, "wanted"),
        ({"x": ("batch", "d")}, "wanted"),
        ({"x": ()}, "wanted"),
        ({"x": ("batch", 10**12)}, "wanted"),
        ({"x": TWO_D, "a": TWO_D, "b": TWO_D}, "3 inputs, wanted old or old and side"),
    ],
)
def test_other_inputs_are_refused(tmp_path, inputs, message):
    with pytest.raises(ArtifactError, match=message):
        program_from_onnx(save(tmp_path / "h.onnx", [node("Relu", "x")], {}, inputs))


@pytest.mark.parametrize("location", ["/etc/passwd", "../../secret", "weights.bin"])
def test_weights_outside_the_file_are_refused_unread(tmp_path, location):
    path = save(tmp_path / "h.onnx", [node("Gemm", "x w", transB=1)], {"w": W})
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="weight 'w' lies in "):
        program_from_onnx(path)


def test_a_weight_that_claims_more_than_it_has_is_refused(tmp_path):
    path = save(tmp_path / "h.onnx", [node("Gemm", "x w", transB=1)], {"w": W})
    model = onnx.load(str(path))
    model.graph.initializer[0].dims[0] = 10**12
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="weight 'w' is malformed"):
        program_from_onnx(path)


@pytest.mark.parametrize("data", [b"", b"text, no model", b"\x08\x07", b"\xff" * 100], ids=str)
def test_other_data_is_refused(tmp_path, data):
    (tmp_path / "h.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        program_from_onnx(tmp_path / "h.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@settings(deadline=None)
@given(st.data())
def test_a_damaged_graph_is_a_program_or_an_artifact_error(folder, data):
    nodes = [node("Gemm", "x w b", "z", transB=1), node("Relu", "z", "r"), node("Concat", "r z", axis=1)]
    path = save(folder / "h.onnx", nodes, {"w": W[:, :2].copy(), "b": B}, {"x": ("batch", 2)})
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(text)
    try:
        program = program_from_onnx(path)
    except ArtifactError as error:
        assert str(path) in str(error)
    else:
        assert program.new_dim >= 1


def test_linear_models_as_skl2onnx_writes_them_are_programs(tmp_path):
    """A scaler and a linear model with several targets, in the domain of classical machine learning."""
    rng = np.random.default_rng(3)
    offset, scale, weight, bias = rng.normal(size=4), rng.uniform(1, 2, 4), rng.normal(size=(3, 4)), rng.normal(size=3)
    scaled = onnx.helper.make_node("Scaler", ["X"], ["s"], domain="ai.onnx.ml", offset=offset, scale=scale)
    options = {"coefficients": weight.ravel(), "intercepts": bias, "targets": 3}
    regressor = onnx.helper.make_node("LinearRegressor", ["s"], ["y"], domain="ai.onnx.ml", **options)
    graph = onnx.helper.make_graph(
        [scaled, regressor],
        "g",
        [onnx.helper.make_tensor_value_info("X", 1, [None, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, [None, 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 1)]
    (tmp_path / "h.onnx").write_bytes(onnx.helper.make_model(graph, opset_imports=opsets).SerializeToString())
    rows = rng.normal(size=(5, 4)).astype(np.float32)
    found = apply_float64(program_from_onnx(tmp_path / "h.onnx"), rows)
    np.testing.assert_allclose(found, (rows - offset) * scale @ weight.T + bias, rtol=1e-5, atol=1e-6)
