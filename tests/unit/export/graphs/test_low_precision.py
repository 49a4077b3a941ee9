from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.onnx_models import element_types, onnx_model, run_onnx, weights
from support.outputs import assert_within, reference, rows_for
from support.programs import examples, random_rows

from fct_infer.errors import UnsupportedError
from fct_infer.export.graphs.low_precision import lower
from fct_infer.export.models import ProgramModel

FLOAT, TYPES = TensorProto.FLOAT, {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PRODUCTS = {"Gemm", "MatMul", "Conv"}
BATCH = {"x": ["batch", 6]}
node = helper.make_node


def lowered(model, precision="fp16"):
    """Lowered, checked, and its interface held against the promise: float32 in and out."""
    before = model.SerializeToString()
    result = lower(model, precision)
    assert model.SerializeToString() == before, "the graph it was given is changed"
    onnx.checker.check_model(result, full_check=True)
    for value in (*result.graph.input, *result.graph.output):
        assert value.type.tensor_type.elem_type == FLOAT
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    return result


def operands(model, kinds):
    """Types of everything that nodes of these kinds read, beside integers."""
    types = element_types(model)
    found = [types[name] for each in model.graph.node if each.op_type in kinds for name in each.input]
    return {kind for kind in found if kind != TensorProto.INT64}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", examples())
def test_products_read_and_hold_the_small_type_and_norms_float32(name, precision):
    program = examples()[name]
    model = lowered(ProgramModel(program).to_onnx(), precision)
    assert operands(model, PRODUCTS | {"Relu", "Gelu", "Concat", "Add"}) == {TYPES[precision]}
    assert operands(model, {"ReduceL2", "Max"}) <= {FLOAT}
    weights_of_products = {
        tensor.data_type for tensor in model.graph.initializer if not tensor.name.startswith("norm.")
    }
    assert weights_of_products == {TYPES[precision]}
    floats = sum(len(each.raw_data) for each in ProgramModel(program).to_onnx().graph.initializer)
    assert sum(len(each.raw_data) for each in model.graph.initializer) < floats * 0.55 + 32  # nothing is kept twice


@pytest.mark.parametrize("name", examples())
def test_fp16_computes_the_program(name):
    program = examples()[name]
    model = lowered(ProgramModel(program).to_onnx())
    for count in (1, 2, 7, 4096):
        rows = rows_for(program.dims, count)
        assert_within(run_onnx(model, **rows), reference(program, rows), "fp16")


def test_the_norm_of_large_and_of_tiny_rows_survives_fp16():
    program = examples()["residual_mlp"]
    model = lowered(ProgramModel(program).to_onnx())
    rows = random_rows(5, 96)
    for scale in (60.0, 1e-3):  # squares of the first overflow float16, those of the second vanish
        scaled = {"old": rows * np.float32(scale)}
        assert_within(run_onnx(model, **scaled), reference(program, scaled), "fp16")


def test_a_weight_that_two_nodes_share_is_cast_once():
    model = onnx_model(
        [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])],
        BATCH,
        {"y": ["batch", 6]},
        weights(w=(6, 6)),
    )
    result = lowered(model)
    assert [tensor.data_type for tensor in result.graph.initializer] == [TensorProto.FLOAT16]
    assert [each.op_type for each in result.graph.node] == ["Cast", "MatMul", "MatMul", "Cast"]


def test_a_weight_that_a_norm_reads_too_is_kept_in_both_types():
    floor = {"floor": np.array(0.5, np.float32)}
    model = onnx_model(
        [
            node("Mul", ["x", "floor"], ["a"]),
            node("ReduceL2", ["a"], ["norm"], axes=[1], keepdims=1),
            node("Max", ["norm", "floor"], ["kept"]),
            node("Div", ["a", "kept"], ["y"]),
        ],
        BATCH,
        {"y": ["batch", 6]},
        floor,
    )
    result = lowered(model)
    assert {tensor.data_type for tensor in result.graph.initializer} == {FLOAT, TensorProto.FLOAT16}
    assert_within(run_onnx(result, x=random_rows(7, 6)), run_onnx(model, x=random_rows(7, 6)), "fp16")


def test_constants_in_nodes_become_small_weights():
    constant = helper.make_tensor("c", FLOAT, [6], np.arange(6, dtype=np.float32))
    model = onnx_model(
        [node("Constant", [], ["c"], value=constant), node("Add", ["x", "c"], ["y"])], BATCH, {"y": ["batch", 6]}
    )
    result = lowered(model)
    assert [each.op_type for each in result.graph.node] == ["Cast", "Add", "Cast"]
    assert [tensor.data_type for tensor in result.graph.initializer] == [TensorProto.FLOAT16]
    np.testing.assert_array_equal(run_onnx(result, x=np.ones((2, 6), np.float32))[1], np.arange(6) + 1)


def test_integer_constants_and_weights_stay_what_they_are():
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 3])
    model = onnx_model(
        [
            node("Constant", [], ["shape"], value=shape),
            node("Reshape", ["x", "shape"], ["a"]),
            node("Relu", ["a"], ["y"]),
        ],
        BATCH,
        {"y": ["rows", 3]},
    )
    result = lowered(model)
    assert element_types(result)["shape"] == TensorProto.INT64
    assert run_onnx(result, x=random_rows(4, 6)).shape == (8, 3)


def test_an_output_that_is_read_inside_keeps_its_name_outside():
    model = onnx_model(
        [node("Relu", ["x"], ["y"]), node("Sigmoid", ["y"], ["z"])], BATCH, {"y": ["batch", 6], "z": ["batch", 6]}
    )
    result = lowered(model)
    assert [each.op_type for each in result.graph.node] == ["Cast", "Relu", "Sigmoid", "Cast", "Cast"]
    assert operands(result, {"Relu", "Sigmoid"}) == {TensorProto.FLOAT16}
    assert_within(run_onnx(result, x=random_rows(4, 6)), np.maximum(random_rows(4, 6), 0), "fp16")


def test_an_output_that_is_made_in_float32_is_not_cast():
    model = onnx_model(
        [node("Relu", ["x"], ["a"]), node("LpNormalization", ["a"], ["y"], axis=1)], BATCH, {"y": ["batch", 6]}
    )
    result = lowered(model)
    assert [each.op_type for each in result.graph.node] == ["Cast", "Relu", "Cast", "LpNormalization"]
    assert_within(run_onnx(result, x=random_rows(4, 6)), run_onnx(model, x=random_rows(4, 6)), "fp16")


def test_a_cast_to_float32_inside_becomes_one_to_the_small_type():
    model = onnx_model(
        [
            node("Shape", ["x"], ["shape"]),
            node("Cast", ["shape"], ["sizes"], to=FLOAT),
            node("ReduceMax", ["sizes"], ["m"], keepdims=0),
            node("Div", ["x", "m"], ["y"]),
        ],
        BATCH,
        {"y": ["batch", 6]},
    )
    result = lowered(model)
    assert_within(run_onnx(result, x=random_rows(4, 6)), random_rows(4, 6) / 6, "fp16")


def test_layer_norm_and_softmax_are_computed_in_float32():
    model = onnx_model(
        [
            node("LayerNormalization", ["x", "s", "b"], ["a"], axis=-1),
            node("Softmax", ["a"], ["c"], axis=1),
            node("MatMul", ["c", "w"], ["y"]),
        ],
        BATCH,
        {"y": ["batch", 4]},
        weights(s=(6,), b=(6,), w=(6, 4)),
    )
    result = lowered(model)
    assert operands(result, {"LayerNormalization", "Softmax"}) == {FLOAT}
    assert operands(result, {"MatMul"}) == {TensorProto.FLOAT16}
    x = random_rows(9, 6) * 300  # whose squares float16 does not hold
    assert_within(run_onnx(result, x=x), run_onnx(model, x=x), "fp16")


def test_a_convolution_in_bf16_gets_the_opset_that_has_it():
    model = onnx_model(
        [node("Conv", ["image", "w"], ["a"]), node("GlobalAveragePool", ["a"], ["b"]), node("Flatten", ["b"], ["y"])],
        {"image": ["batch", 3, 8, 8]},
        {"y": ["batch", 4]},
        weights(w=(4, 3, 3, 3)),
        opset=20,
    )
    result = lowered(model, "bf16")
    assert result.opset_import[0].version == 22
    assert operands(result, {"Conv"}) == {TensorProto.BFLOAT16}
    assert lowered(model, "fp16").opset_import[0].version == 20


def test_control_flow_is_refused_and_the_node_named():
    then = helper.make_graph(
        [node("Relu", ["x"], ["t"])], "then", [], [helper.make_tensor_value_info("t", FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", FLOAT, None)]
    )
    model = onnx_model(
        [node("If", ["yes"], ["y"], name="gate", then_branch=then, else_branch=other)],
        BATCH,
        {"y": ["batch", 6]},
        {"yes": np.array(True)},
    )
    with pytest.raises(UnsupportedError, match=r"node 'gate' \(If\) holds a graph of its own"):
        lower(model, "fp16")


def test_a_node_whose_type_cannot_be_told_is_named():
    model = onnx_model(
        [node("Strange", ["x"], ["a"], domain="their.own"), node("Relu", ["a"], ["y"])],
        BATCH,
        {"y": ["batch", 6]},
        domains=["their.own"],
    )
    with pytest.raises(UnsupportedError, match=r"the type of 'a' \(Strange\) cannot be told"):
        lower(model, "fp16")
