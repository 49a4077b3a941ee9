"""ONNX files: weights elsewhere, numbers that lie, graphs that explode. Each as h for both commands that take one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.hostile import (
    NEW_DIM,
    OLD_DIM,
    TERA,
    external,
    foreign_onnx,
    good_gallery,
    graph_of,
    linear_onnx,
    matrix,
    save_onnx,
)
from support.promises import Case, Cases, assert_accepted, assert_refused

case = Cases()
export_only = Cases()  # what an upgrade finds with the first row it transforms, or need not mind
ELSEWHERE = "weight .*(lies in|lies behind|has .* bytes)"
_truncated = Case(Path, "not an ONNX model|malformed|reads|refuses|outputs")
node = helper.make_node


# Weights in other files


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight in ../"""
    (folder.parent / "secret").write_bytes(bytes(4 * OLD_DIM * NEW_DIM))
    return save_onnx(linear_onnx(external("../secret")), folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight at an absolute path"""
    (folder / "secret").write_bytes(bytes(4 * OLD_DIM * NEW_DIM))
    return save_onnx(linear_onnx(external(str(folder / "secret"))), folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight in /etc/passwd"""
    return save_onnx(linear_onnx(external("/etc/passwd")), folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight behind a link"""
    (folder / "weights").symlink_to("/etc/passwd")
    return save_onnx(linear_onnx(external("weights")), folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight behind a link to a folder"""
    (folder.parent / "weights").write_bytes(bytes(4 * OLD_DIM * NEW_DIM))
    (folder / "inner").symlink_to(folder.parent)
    return save_onnx(linear_onnx(external("inner/weights")), folder)


@case("weight 'weight': says twice where it lies")
def _(folder: Path) -> Path:
    """weight in two places"""
    for name in ("weights", "others"):
        (folder / name).write_bytes(bytes(4 * OLD_DIM * NEW_DIM))
    tensor = external("weights")
    tensor.external_data.add(key="location", value="others")
    return save_onnx(linear_onnx(tensor), folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight beside the file, which is too short"""
    (folder / "weights").write_bytes(bytes(4 * OLD_DIM * NEW_DIM - 1))
    return save_onnx(linear_onnx(external("weights")), folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight on /dev/zero"""
    return save_onnx(linear_onnx(external("/dev/zero")), folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight elsewhere in a Constant"""
    constant = node("Constant", [], ["extra"], value=external("/etc/passwd"))
    return save_onnx(foreign_onnx([constant]), folder)


@case(f"{ELSEWHERE}|sparse")
def _(folder: Path) -> Path:
    """weight elsewhere in a sparse initializer"""
    model = foreign_onnx()
    model.graph.sparse_initializer.add(values=external("/etc/passwd", shape=[3]), dims=[5])
    return save_onnx(model, folder)


@case(ELSEWHERE)
def _(folder: Path) -> Path:
    """weight elsewhere in a sparse Constant"""
    sparse = onnx.SparseTensorProto(values=external("/etc/passwd", shape=[3]), dims=[5])
    attribute = onnx.AttributeProto(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    constant = node("Constant", [], ["extra"])
    constant.attribute.append(attribute)
    return save_onnx(foreign_onnx([constant]), folder)


# Numbers that lie


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """length field of 2 GB"""
    path = folder / "model.onnx"
    path.write_bytes(b"\x08\x09\x3a\xff\xff\xff\xff\x07" + bytes(100))  # ir_version 9, a graph of 2^31 - 1 bytes
    return path


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """length field of 2^64"""
    path = folder / "model.onnx"
    path.write_bytes(b"\x08\x09\x3a" + b"\xff" * 9 + b"\x01" + bytes(100))
    return path


@case("wanted at most")
def _(folder: Path) -> Path:
    """file of 100 GB"""
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(100 << 30)
    return folder / "model.onnx"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated(share, folder):
    path = save_onnx(linear_onnx(), folder)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused(_truncated, "export", path, path)


@case("malformed")
def _(folder: Path) -> Path:
    """weight of 10^12 numbers without any"""
    return save_onnx(linear_onnx(TensorProto(name="weight", data_type=1, dims=[OLD_DIM, TERA])), folder)


@case("malformed")
def _(folder: Path) -> Path:
    """weight of negative dims"""
    return save_onnx(linear_onnx(_tensor([-8, -6])), folder)


@case("malformed")
def _(folder: Path) -> Path:
    """weight of dims whose product overflows"""
    return save_onnx(linear_onnx(_tensor([2**62, 2**62, 48])), folder)


@case("malformed")
def _(folder: Path) -> Path:
    """weight whose dims do not fit its numbers"""
    return save_onnx(linear_onnx(_tensor([OLD_DIM, NEW_DIM + 1])), folder)


@case("malformed|ONNX Runtime refuses it: .*Type Error")
def _(folder: Path) -> Path:
    """weight of an unknown type"""
    return save_onnx(linear_onnx(_tensor([OLD_DIM, NEW_DIM], data_type=99)), folder)


@case("ONNX Runtime refuses it: .*Type Error")
def _(folder: Path) -> Path:
    """weight of strings"""
    strings = helper.make_tensor("weight", TensorProto.STRING, [OLD_DIM, NEW_DIM], [b"1"] * OLD_DIM * NEW_DIM)
    return save_onnx(linear_onnx(strings), folder)


@case("ONNX Runtime refuses it: .*Type Error")
def _(folder: Path) -> Path:
    """weight of complex numbers"""
    return save_onnx(linear_onnx(matrix().astype(np.complex64)), folder)


@case("ONNX Runtime refuses it|NaN|float64|overflow|finite")
def _(folder: Path) -> Path:
    """float64 weight too large for float32"""
    return save_onnx(linear_onnx(np.full((OLD_DIM, NEW_DIM), 1e300)), folder)


@case("NaN|finite")
def _(folder: Path) -> Path:
    """NaN weight"""
    return save_onnx(linear_onnx(np.full((OLD_DIM, NEW_DIM), np.nan, np.float32)), folder)


@case("NaN|finite")
def _(folder: Path) -> Path:
    """infinite weight"""
    return save_onnx(linear_onnx(np.full((OLD_DIM, NEW_DIM), np.inf, np.float32)), folder)


@export_only("NaN or infinity")
def _(folder: Path) -> Path:
    """NaN weight in a graph no program holds"""
    return save_onnx(foreign_onnx(weights={"weight": np.full((OLD_DIM, NEW_DIM), np.nan, np.float32)}), folder)


# Graphs that make no sense


@case("reads 'b', which nothing before it produces")
def _(folder: Path) -> Path:
    """cycle"""
    nodes = [node("Add", ["old", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Identity", ["b"], ["new"])]
    return save_onnx(graph_of(nodes, {}), folder)


@case("reads 'missing', which nothing before it produces")
def _(folder: Path) -> Path:
    """missing input"""
    return save_onnx(graph_of([node("Add", ["old", "missing"], ["new"])], {}), folder)


@case("writes 'new', which exists already")
def _(folder: Path) -> Path:
    """duplicate names"""
    return save_onnx(graph_of([node("Relu", ["old"], ["new"])] * 2, {}), folder)


@case("0 outputs")
def _(folder: Path) -> Path:
    """no outputs"""
    return save_onnx(linear_onnx(outputs=()), folder)


@case("2 outputs")
def _(folder: Path) -> Path:
    """two outputs"""
    return save_onnx(linear_onnx(outputs=("new", "new")), folder)


@case("0 inputs")
def _(folder: Path) -> Path:
    """no inputs"""
    return save_onnx(graph_of([node("Relu", ["w"], ["new"])], {"w": matrix()}, inputs={"w": [8, 6]}), folder)


@case("3 inputs")
def _(folder: Path) -> Path:
    """three inputs"""
    rows = {name: ["batch", OLD_DIM] for name in "abc"}
    return save_onnx(graph_of([node("Sum", ["a", "b", "c"], ["new"])], {}, inputs=rows), folder)


@export_only("takes only batches of exactly 4")
def _(folder: Path) -> Path:
    """fixed batch"""
    return save_onnx(linear_onnx(inputs={"old": [4, OLD_DIM]}), folder)


@case("free axes beside the batch|rows of shape")
def _(folder: Path) -> Path:
    """free feature axis"""
    return save_onnx(graph_of([node("Tanh", ["old"], ["new"])], {}, inputs={"old": ["batch", "width"]}), folder)


@case("numbers a row, at most|rows of shape")
def _(folder: Path) -> Path:
    """rows of 10^12 features"""
    nodes = [node("ReduceSum", ["old", "axes"], ["new"])]
    return save_onnx(graph_of(nodes, {"axes": np.array([1])}, inputs={"old": ["batch", TERA]}), folder)


@case("not float32 with 2 or 4 axes|is not float32")
def _(folder: Path) -> Path:
    """input of integers"""
    model = linear_onnx()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return save_onnx(model, folder)


@case("not float32 with 2 or 4 axes|is not float32")
def _(folder: Path) -> Path:
    """input a sequence"""
    model = linear_onnx()
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("old", TensorProto.FLOAT, None))
    return save_onnx(model, folder)


@case("ONNX Runtime refuses it: .*Dimension mismatch")
def _(folder: Path) -> Path:
    """Gemm whose widths do not fit"""
    return save_onnx(graph_of([node("Gemm", ["old", "weight"], ["new"])], {"weight": matrix(OLD_DIM + 1)}), folder)


@case("ONNX Runtime refuses it")
def _(folder: Path) -> Path:
    """operator of a domain nobody knows"""
    return save_onnx(foreign_onnx([node("Evil", ["old"], ["extra"], domain="com.evil")]), folder)


@case("ONNX Runtime refuses it")
def _(folder: Path) -> Path:
    """operator nobody knows"""
    return save_onnx(foreign_onnx([node("Evil", ["old"], ["extra"])]), folder)


@case("ONNX Runtime refuses it|opset|cannot be raised")
def _(folder: Path) -> Path:
    """opset 999"""
    model = foreign_onnx()
    model.opset_import[0].version = 999
    return save_onnx(model, folder)


@case("ONNX Runtime refuses it|opset|cannot be raised")
def _(folder: Path) -> Path:
    """opset 1"""
    model = foreign_onnx([node("ReduceSum", ["old"], ["extra"])])
    model.opset_import[0].version = 1
    return save_onnx(model, folder)


@case("ONNX Runtime refuses it")
def _(folder: Path) -> Path:
    """IR version 999"""
    model = foreign_onnx()
    model.ir_version = 999
    return save_onnx(model, folder)


@case("ONNX Runtime cannot run it|of 2 rows, wanted")
def _(folder: Path) -> Path:
    """output with another batch"""
    nodes = [node("Tanh", ["old"], ["t"]), node("Reshape", ["t", "shape"], ["new"])]
    return save_onnx(graph_of(nodes, {"shape": np.array([-1, 1])}), folder)


@case("of 2 rows, wanted")
def _(folder: Path) -> Path:
    """output a scalar"""
    return save_onnx(graph_of([node("ReduceSum", ["old"], ["new"], keepdims=0)], {}), folder)


@case("of 2 rows, wanted|ONNX Runtime refuses it|integers")
def _(folder: Path) -> Path:
    """output of integers"""
    model = graph_of([node("ArgMax", ["old"], ["new"], axis=1)], {})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return save_onnx(model, folder)


@case("of 2 rows, wanted")
def _(folder: Path) -> Path:
    """output of ten million columns"""
    nodes = [node("Tile", ["old", "times"], ["new"])]
    return save_onnx(graph_of(nodes, {"times": np.array([1, 10**7])}), folder)


@case("malformed|refuses it")
def _(folder: Path) -> Path:
    """weight of 10^12 numbers without any in a graph no program holds"""
    return save_onnx(
        foreign_onnx(weights={"weight": TensorProto(name="weight", data_type=1, dims=[OLD_DIM, TERA])}), folder
    )


@pytest.mark.parametrize("name", [*case, *export_only])
def test_refused_by_export(name, folder):
    chosen = (case | export_only)[name]
    file = chosen.make(folder)
    assert_refused(chosen, "export", file, file)


@pytest.mark.parametrize("name", case)
def test_refused_by_upgrade(name, folder):
    file = case[name].make(folder)
    assert_refused(case[name], "upgrade-gallery", file, good_gallery(file.parent), "--transformation", file)


@pytest.mark.parametrize("model", [linear_onnx, foreign_onnx])
def test_good_ones_pass(model, folder):
    file = save_onnx(model(), folder)
    assert_accepted("export", file, file)


@pytest.mark.parametrize("model", [linear_onnx, foreign_onnx])
def test_good_ones_upgrade(model, folder):
    file = save_onnx(model(), folder)
    assert_accepted("upgrade-gallery", file, good_gallery(file.parent), "--transformation", file)


def _tensor(dims: list[int], data_type: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name="weight", data_type=data_type, dims=dims, raw_data=matrix().tobytes())
