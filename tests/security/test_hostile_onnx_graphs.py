"""ONNX graphs that never end or take all memory, when they are loaded or when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.hostile import TERA, external, foreign_onnx, good_gallery, graph_of, save_onnx, subgraph, when_positive
from support.promises import Cases, assert_refused

case = Cases()
export_only = Cases()
CONTROL_FLOW = "has control flow"
node = helper.make_node


# Control flow


@case("not an ONNX model|control flow")
def _(folder: Path) -> Path:
    """subgraphs nested 10,000 deep"""
    field = b""
    for _ in range(10_000):  # attribute 5 of a node 1 of a graph in attribute field 6
        for tag in (b"\x0a", b"\x2a", b"\x32"):
            field = tag + _varint(len(field)) + field
    path = folder / "model.onnx"
    path.write_bytes(b"\x08\x09\x3a" + _varint(len(field)) + field)
    return path


@case(CONTROL_FLOW)
def _(folder: Path) -> Path:
    """loop without an end"""
    body = subgraph(
        [node("Identity", ["go"], ["go_on"]), node("Identity", ["x"], ["y"])], ["count", "go", "x"], ["go_on", "y"]
    )
    return save_onnx(foreign_onnx([node("Loop", ["", "", "old"], ["extra"], body=body)]), folder)


@case(CONTROL_FLOW)
def _(folder: Path) -> Path:
    """branch that is taken later"""
    small = subgraph([node("Identity", ["old"], ["out"])], [], ["out"])
    huge = subgraph([node("Expand", ["old", "shape"], ["out"])], [], ["out"], shape=np.array([TERA, 1]))
    return save_onnx(foreign_onnx(when_positive(huge, small)), folder)


@case("defines functions of its own")
def _(folder: Path) -> Path:
    """functions that each call the one before twice"""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    model = foreign_onnx([node("f40", ["old"], ["extra"], domain="mine")])
    model.opset_import.append(opsets[1])
    model.functions.append(helper.make_function("mine", "f0", ["x"], ["y"], [node("Relu", ["x"], ["y"])], opsets))
    for level in range(1, 41):
        calls = [node(f"f{level - 1}", [name], [after], domain="mine") for name, after in (("x", "m"), ("m", "y"))]
        model.functions.append(helper.make_function("mine", f"f{level}", ["x"], ["y"], calls, opsets))
    return save_onnx(model, folder)


@case("a graph of 100,000 nodes or weights")
def _(folder: Path) -> Path:
    """100,000 nodes"""
    nodes = [node("Relu", ["old" if i == 0 else f"x{i}"], [f"x{i + 1}"]) for i in range(100_000)]
    return save_onnx(graph_of(nodes, {}, outputs=["x100000"]), folder)


@case("a graph of 100,000 nodes or weights")
def _(folder: Path) -> Path:
    """100,000 weights"""
    weights = {f"w{i}": TensorProto(name=f"w{i}", data_type=1, dims=[0]) for i in range(99_999)}
    return save_onnx(foreign_onnx(weights=weights), folder)


@case(CONTROL_FLOW)
def _(folder: Path) -> Path:
    """weight elsewhere in a branch"""
    branch = subgraph([node("Identity", ["w"], ["out"])], [], ["out"], w=external("/etc/passwd", "w"))
    return save_onnx(foreign_onnx(when_positive(branch, branch)), folder)


@case("defines functions of its own")
def _(folder: Path) -> Path:
    """weight elsewhere in a function"""
    body = [node("Constant", [], ["y"], value=external("/etc/passwd"))]
    function = helper.make_function("mine", "f", [], ["y"], body, [helper.make_opsetid("", 20)])
    model = foreign_onnx([node("f", [], ["extra"], domain="mine")])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return save_onnx(model, folder)


# Graphs that explode


def _explosion(name: str, nodes: list[onnx.NodeProto], into: Cases = case, **weights: Any) -> None:
    def make(folder: Path) -> Path:
        return save_onnx(foreign_onnx(nodes, weights), folder)

    make.__doc__ = name
    into("cannot run it on 2 rows of zeros|refuses it")(make)


for rows, size in (("4 GB", 10**9), ("4 TB", TERA)):
    _explosion(f"ConstantOfShape of {rows}", [node("ConstantOfShape", ["n"], ["extra"])], n=np.array([size]))
    _explosion(f"Expand to {rows}", [node("Expand", ["one", "n"], ["extra"])], one=np.float32([1]), n=np.array([size]))
    _explosion(f"Tile to {rows}", [node("Tile", ["one", "n"], ["extra"])], one=np.float32([1]), n=np.array([size]))
    _explosion(
        f"Range to {rows}",
        [node("Range", ["zero", "n", "one"], ["range"]), node("Cast", ["range"], ["extra"], to=TensorProto.FLOAT)],
        zero=np.int32(0),
        n=np.int32(min(size, 2**31 - 1)),
        one=np.int32(1),
    )
    _explosion(
        f"Pad to {rows}",
        [node("Pad", ["one", "n"], ["extra"])],
        one=np.float32([1]),
        n=np.array([0, size]),
    )
    _explosion(f"Expand of the rows to {rows}", [node("Expand", ["old", "n"], ["extra"])], n=np.array([size, 1, 1]))
side = np.ones((40_000, 1), np.float32)
_explosion("outer product of 6 GB", [node("MatMul", ["a", "b"], ["extra"])], a=side, b=side.T)
_explosion("broadcast sum of 6 GB", [node("Add", ["a", "b"], ["extra"])], a=side, b=side.T)
_explosion("Reshape to 4 TB", [node("Reshape", ["old", "n"], ["extra"])], n=np.array([10**6, 10**6]))
_explosion(
    "doubling forty times",
    [node("Concat", [f"x{i}"] * 2, [f"x{i + 1}"], axis=0) for i in range(40)] + [node("Identity", ["x40"], ["extra"])],
    x0=np.ones(8, np.float32),
)
_explosion(
    "products without an end in sight",
    [node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(999)] + [node("Identity", ["m999"], ["extra"])],
    export_only,  # not twice: it takes all the seconds that are allowed
    m0=np.ones((1500, 1500), np.float32),
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


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
