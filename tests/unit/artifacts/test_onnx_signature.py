from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.onnx_models import onnx_model, weights

from fct_infer.artifacts.onnx_signature import OnnxInput, read_signature
from fct_infer.errors import ArtifactError

PATH = Path("m.onnx")


def identity(inputs, outputs=1):
    nodes = [helper.make_node("Identity", [name], [f"y{place}"]) for place, name in enumerate(inputs)]
    results = {f"y{place}": next(iter(inputs.values())) for place in range(outputs)}
    return onnx_model(nodes, inputs, results)


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ({"a": ["N", 8]}, {"old": ("a", (8,))}),
        ({"a": ["N", 8], "b": ["N", 5]}, {"old": ("a", (8,)), "side": ("b", (5,))}),
        ({"side": ["N", 8], "old": ["N", 5]}, {"side": ("side", (8,)), "old": ("old", (5,))}),
        ({"side": ["N", 8], "b": ["N", 5]}, {"side": ("side", (8,)), "old": ("b", (5,))}),
        ({"x": ["N", 8], "OLD_Embedding": ["N", 8]}, {"side": ("x", (8,)), "old": ("OLD_Embedding", (8,))}),
        ({"psi": ["N", 8], "phi": ["N", 8]}, {"side": ("psi", (8,)), "old": ("phi", (8,))}),
        ({"a": ["N", 8, 1, 1]}, {"old": ("a", (8, 1, 1))}),
        ({"a": ["N", 3, 32, 24]}, {"image": ("a", (3, 32, 24))}),
        ({"old": ["N", 3, 1, 24]}, {"image": ("old", (3, 1, 24))}),
    ],
)
def test_inputs_get_our_names(inputs, wanted):
    found = read_signature(identity(inputs), PATH)
    assert found == {name: OnnxInput(*each) for name, each in wanted.items()}


def test_equal_inputs_whose_names_do_not_tell_are_not_guessed():
    model = identity({"a": ["N", 8], "b": ["N", 8]})
    with pytest.raises(ArtifactError, match=r"nothing tells which of its inputs a and b .* fct-export --inputs a,b"):
        read_signature(model, PATH)
    assert read_signature(model, PATH, ("b", "a")) == {"side": OnnxInput("a", (8,)), "old": OnnxInput("b", (8,))}
    with pytest.raises(ArtifactError, match="its inputs are a, b, not a, c"):
        read_signature(model, PATH, ("a", "c"))


def test_weights_that_old_files_list_among_the_inputs_are_no_inputs():
    model = onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ["N", 4], "w": [4, 3]},
        {"y": ["N", 3]},
        weights(w=(4, 3)),
    )
    assert read_signature(model, PATH) == {"old": OnnxInput("x", (4,))}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": ["N", 3, 8, 8], "b": ["N", 5]}, "takes images and another input"),
        ({"a": ["N", 8], "b": ["N", 8], "c": ["N", 8]}, "has 3 inputs and 1 outputs"),
        ({"a": ["N", 8, 2]}, "input 'a' is not float32 with 2 or 4 axes"),
        ({"a": ["N"]}, "input 'a' is not float32 with 2 or 4 axes"),
        ({"a": [16, 8]}, r"'a' takes only batches of exactly 16; .*dynamic_axes={'a': {0: 'batch'}}"),
        ({"a": ["N", "d"]}, "'a' has free axes beside the batch"),
        ({"a": ["N", 3, "h", "w"]}, "'a' has free axes beside the batch"),
    ],
)
def test_inputs_of_no_model_of_ours_are_refused(inputs, message):
    with pytest.raises(ArtifactError, match=rf"m\.onnx: .*{message}"):
        read_signature(identity(inputs), PATH)


def test_other_types_and_outputs_are_refused():
    model = identity({"a": ["N", 8]})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(ArtifactError, match="input 'a' is not float32"):
        read_signature(model, PATH)
    with pytest.raises(ArtifactError, match="has 2 inputs and 2 outputs"):
        read_signature(identity({"a": ["N", 8], "b": ["N", 8]}, outputs=2), PATH)


def outside(name="w"):
    tensor = helper.make_tensor(name, TensorProto.FLOAT, [1], np.zeros(1, np.float32))
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return tensor


def in_initializer(model):
    model.graph.initializer.append(outside())


def in_sparse_initializer(model):
    model.graph.sparse_initializer.add().values.CopyFrom(outside())


def in_constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside()))


def in_subgraph(model):
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["t"])], "branch", [], [value])
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch))


def test_control_flow_is_refused():
    model = identity({"a": ["N", 8]})
    in_subgraph(model)
    with pytest.raises(ArtifactError, match=r"m\.onnx: has control flow \(attribute 'else_branch' is a graph\)"):
        read_signature(model, PATH)


@pytest.mark.parametrize("place", [in_initializer, in_sparse_initializer, in_constant])
def test_weights_outside_of_the_file_are_found_wherever_they_hide(place):
    model = identity({"a": ["N", 8]})
    assert read_signature(model, PATH)
    place(model)
    with pytest.raises(ArtifactError, match=r"m\.onnx: weight 'w' lies in another file; wanted one self-contained"):
        read_signature(model, PATH)
