from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.onnx_models import element_types, onnx_model, run_onnx, weights
from support.outputs import assert_within, reference, rows_for
from support.programs import examples, linear_map, random_rows

from fct_infer.backends.runner import split_batch
from fct_infer.errors import ArtifactError
from fct_infer.export.graphs.quantization import quantize
from fct_infer.export.models import ProgramModel
from fct_infer.transformation import Linear

LARGEST = {"int8": 127, "fp8": 448}
KINDS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
PRODUCTS = ("Gemm", "MatMul", "Conv")


@pytest.fixture(scope="module", params=[(each, name) for each in KINDS for name in ("paper_h", "residual_mlp")])
def quantized(request):
    """Precision, program, and its graph with Q/DQ pairs."""
    precision, name = request.param
    program = examples()[name]
    return precision, program, quantize(ProgramModel(program).to_onnx(), precision, rows_for(program.dims, 300, 7))


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_every_product_reads_eight_bit_numbers_through_float32(quantized):
    precision, _, model = quantized
    onnx.checker.check_model(model, full_check=True)
    makers = {output: each for each in model.graph.node for output in each.output}
    types, products = element_types(model), [each for each in model.graph.node if each.op_type in PRODUCTS]
    assert products
    for product in products:
        for name in product.input[:2]:
            maker = makers[name]
            assert maker.op_type == "DequantizeLinear"
            assert types[maker.input[0]] == KINDS[precision]
            assert types[name] == TensorProto.FLOAT


def test_weights_have_a_scale_per_channel_and_zero_points_are_zero(quantized):
    _, _, model = quantized
    found, makers = constants(model), {output: each for each in model.graph.node for output in each.output}
    for product in (each for each in model.graph.node if each.op_type in PRODUCTS):
        rows, weight = (makers[name] for name in product.input[:2])
        channels = found[weight.input[0]].shape[0]  # of Gemm with transB
        assert found[weight.input[1]].shape == (channels,)
        assert helper.get_node_attr_value(weight, "axis") == 0
        assert len(np.unique(found[weight.input[1]])) > 1
        assert found[rows.input[1]].shape == ()
        for pair in (rows, weight):
            assert (found[pair.input[1]] > 0).all()
            assert not found[pair.input[2]].astype(np.float32).any()


def test_biases_stay_float32_and_nothing_is_a_32_bit_integer(quantized):
    _, program, model = quantized
    types = element_types(model)
    assert TensorProto.INT32 not in types.values()
    for product in (each for each in model.graph.node if each.op_type == "Gemm"):
        assert types[product.input[2]] == TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert {value.name for value in model.graph.input} == set(program.dims)


def test_only_products_are_quantized(quantized):
    _, _, model = quantized
    made = {each.output[0] for each in model.graph.node if each.op_type == "DequantizeLinear"}
    assert {each.op_type for each in model.graph.node if made & {*each.input}} <= set(PRODUCTS)


def weight_of(model, product):
    """The 8-bit weight of a product as float32, and its scales."""
    found, makers = constants(model), {output: each for each in model.graph.node for output in each.output}
    numbers, scales, _ = (found[name] for name in makers[product.input[1]].input)
    return numbers.astype(np.float32), scales


def rows_scale(model, product):
    makers = {output: each for each in model.graph.node for output in each.output}
    return constants(model)[makers[product.input[0]].input[1]]


def test_weights_are_the_nearest_numbers_on_their_scale(quantized):
    precision, program, model = quantized
    layers = [step for step in program.steps if isinstance(step, Linear)]
    products = [each for each in model.graph.node if each.op_type == "Gemm"]
    for layer, product in zip(layers, products, strict=True):
        numbers, scales = weight_of(model, product)
        np.testing.assert_allclose(scales, np.abs(layer.weight).max(axis=1) / LARGEST[precision], rtol=1e-6)
        exact = layer.weight / scales[:, None]
        wanted = np.rint(exact) if precision == "int8" else exact.astype(ml_dtypes.float8_e4m3fn)
        np.testing.assert_array_equal(numbers, wanted.astype(np.float32))


@pytest.mark.parametrize("count", [1, 2, 7, 4096])
def test_the_program_is_computed_at_any_batch_size(quantized, count):
    precision, program, model = quantized
    rows = rows_for(program.dims, count)
    assert_within(run_onnx(model, **rows), reference(program, rows), precision)


@pytest.mark.parametrize("precision", KINDS)
def test_rows_are_rounded_as_numpy_does(precision):
    program = examples()["linear_map"]
    model = quantize(ProgramModel(program).to_onnx(), precision, rows_for(program.dims, 512))
    (product,) = (each for each in model.graph.node if each.op_type == "Gemm")
    (numbers, scales), scale, old = (
        weight_of(model, product),
        rows_scale(model, product),
        rows_for(program.dims, 64)["old"],
    )
    exact = np.clip(old / scale, -LARGEST[precision], LARGEST[precision])
    rounded = np.rint(exact) if precision == "int8" else exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    wanted = (rounded * scale).astype(np.float64) @ (numbers * scales[:, None]).T + program.tensors()["map.bias"]
    np.testing.assert_allclose(run_onnx(model, old=old), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 600])
def test_the_scale_covers_the_largest_value_of_any_row(precision, count):
    program = examples()["paper_h"]
    rows = rows_for(program.dims, count)
    for place in {0, count // 2, count - 1}:
        spiked = {name: array.copy() for name, array in rows.items()}
        spiked["old"][place, 5] = -50
        model = quantize(ProgramModel(program).to_onnx(), precision, spiked)
        products = [each for each in model.graph.node if each.op_type == "Gemm"]
        assert rows_scale(model, products[0]) == pytest.approx(50 / LARGEST[precision])
        step = program.steps[0]
        hidden = np.maximum(spiked["old"] @ step.weight.T + step.bias, 0)
        assert rows_scale(model, products[1]) == pytest.approx(hidden.max() / LARGEST[precision], rel=1e-4)


def test_the_graph_given_is_left_as_it_is_and_nothing_is_printed(capfd):
    program = examples()["plain_mlp"]
    model = ProgramModel(program).to_onnx()
    before = model.SerializeToString()
    for precision in KINDS:
        quantize(model, precision, rows_for(program.dims, 40))
    assert model.SerializeToString() == before
    assert capfd.readouterr().out == ""


def test_rows_and_channels_of_zeros_have_a_scale():
    program = linear_map(6, 4)
    program.steps[0].weight[2] = 0
    model = quantize(ProgramModel(program).to_onnx(), "fp8", {"old": np.zeros((3, 6), np.float32)})
    old = np.zeros((2, 6), np.float32)
    np.testing.assert_allclose(run_onnx(model, old=old), reference(program, {"old": old}), atol=1e-6)


@pytest.mark.parametrize("precision", KINDS)
def test_products_of_other_people(precision):
    """MatMul and Gemm with the weight's rows first or last, a weight that two share, a product without a weight."""
    node = helper.make_node
    model = onnx_model(
        [
            node("MatMul", ["x", "w"], ["a"]),
            node("Gemm", ["a", "w", "b"], ["c"]),
            node("Gemm", ["c", "w"], ["d"], transB=1),
            node("Transpose", ["d"], ["t"], perm=[1, 0]),
            node("MatMul", ["d", "t"], ["square"]),
            node("MatMul", ["square", "d"], ["e"]),
            node("Add", ["e", "x"], ["y"]),
        ],
        {"x": ["batch", 32]},
        {"y": ["batch", 32]},
        weights(w=(32, 32), b=(32,)),
        opset=20,
    )
    x = random_rows(40, 32)
    result = quantize(model, precision, {"x": x})
    onnx.checker.check_model(result, full_check=True)
    assert_within(run_onnx(result, x=x), run_onnx(model, x=x), precision)
    assert len([each for each in result.graph.initializer if each.data_type == KINDS[precision] and each.dims]) == 4
    assert sum(each.op_type == "QuantizeLinear" for each in result.graph.node) == 3  # of x, a and c


def test_an_output_that_is_read_inside():
    node = helper.make_node
    model = onnx_model(
        [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["y", "w"], ["unused"])],
        {"x": ["batch", 32]},
        {"y": ["batch", 32]},
        weights(w=(32, 32)),
        opset=20,
    )
    x = random_rows(40, 32)
    assert_within(run_onnx(quantize(model, "int8", {"x": x}), x=x), run_onnx(model, x=x), "int8")


def test_a_graph_without_products_is_refused():
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 5]}, {"y": ["batch", 5]})
    with pytest.raises(ArtifactError, match="no product of a constant weight, so nothing to quantize"):
        quantize(model, "int8", {"x": random_rows(3, 5)})


def test_batches_are_cut_in_order():
    rows = {"old": np.arange(10).reshape(5, 2), "side": np.arange(5).reshape(5, 1)}
    cut = list(split_batch(rows, 2))
    assert [len(batch["old"]) for batch in cut] == [2, 2, 1]
    for name, array in rows.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in cut]), array)
