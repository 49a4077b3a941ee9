from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.onnx_models import onnx_model, run_onnx, saved, weights
from support.outputs import assert_within
from support.programs import random_rows

from fct_infer import load_embedder, load_transformation
from fct_infer.errors import ArtifactError, UnsupportedError, UsageError
from fct_infer.export import Options, export_file

node = helper.make_node


def gated(names=("features", "extra"), output="result", tail=(), opset=17):
    """Sigmoid gates, which no program has; ``tail`` is how rows are laid out: () or (1, 1)."""
    a, b = names
    flat = [node("Flatten", [name], [f"flat.{name}"]) for name in names] if tail else []
    read = [f"flat.{name}" if tail else name for name in names]
    nodes = [
        *flat,
        node("MatMul", [read[0], "w"], ["product"]),
        node("MatMul", [read[1], "v"], ["gate"]),
        node("Sigmoid", ["gate"], ["open"]),
        node("Mul", ["product", "open"], [output if not tail else "rows"]),
        *([node("Unsqueeze", ["rows", "axes"], [output])] if tail else []),
    ]
    constants = weights(w=(8, 6), v=(5, 6)) | ({"axes": np.array([2, 3])} if tail else {})
    inputs = {a: ["N", 8, *tail], b: ["N", 5, *tail]}
    return onnx_model(nodes, inputs, {output: ["N", 6, *tail]}, constants, opset=opset)


def wanted(model, old, side, tail=()):
    names = [value.name for value in model.graph.input]
    rows = [array.reshape(len(array), -1, *tail) for array in (old, side)]
    return run_onnx(model, **dict(zip(names, rows, strict=True))).reshape(len(old), -1)


@pytest.mark.parametrize("tail", [(), (1, 1)])
@pytest.mark.parametrize(
    ("names", "output"),
    [
        (("features", "extra"), "result"),
        (("old", "side"), "embedding"),
        (("side", "old"), "out"),  # ours, the other way round: by name, not by place
        (("embedding", "batch"), "old"),  # ours, for other things
        (("model/old", "old/reshape"), "embedding/flatten"),
    ],
)
def test_names_and_layout_become_ours(tmp_path, names, output, tail):
    model = gated(names, output, tail)
    report = export_file(saved(model, tmp_path / "h.onnx"), options=Options(("onnx",), ("fp32", "fp16")))
    swapped = names == ("side", "old")
    dims = (8, 5) if not swapped else (5, 8)
    assert report.manifest.inputs == {"old": (dims[0],), "side": (dims[1],)}
    written = onnx.load(str(report.bundle / "model.onnx"))
    assert sorted(value.name for value in written.graph.input) == ["old", "side"]
    assert [value.name for value in written.graph.output] == ["embedding"]
    old, side = (random_rows(7, dim, seed) for seed, dim in enumerate(dims))
    expected = wanted(model, *((side, old) if swapped else (old, side)), tail)
    for precision in ("fp32", "fp16"):
        assert_within(load_transformation(report.bundle, precision)(old, side), expected, precision)
    assert_within(load_transformation(tmp_path / "h.onnx")(old, side), expected, "fp32")


@pytest.mark.parametrize("opset", [13, 17, 19, 20, 21, 22, 23])
def test_any_opset_becomes_ours_or_stays_above_it(tmp_path, opset):
    model = gated(opset=opset)
    report = export_file(saved(model, tmp_path / "h.onnx"))
    written = onnx.load(str(report.bundle / "model.onnx"))
    onnx.checker.check_model(written, full_check=True)
    assert [entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx")] == [max(20, opset)]
    old, side = random_rows(7, 8), random_rows(7, 5, 1)
    assert_within(load_transformation(report.bundle)(old, side), wanted(model, old, side), "fp32")


def test_an_operator_that_newer_opsets_took_apart_is_refused_or_equal(tmp_path):
    """Axes as an attribute, which opset 13 moved to an input."""
    model = onnx_model(
        [node("Unsqueeze", ["x"], ["a"], axes=[2]), node("Sigmoid", ["a"], ["b"]), node("Flatten", ["b"], ["y"])],
        {"x": ["N", 8]},
        {"y": ["N", 8]},
        opset=11,
    )
    report = export_file(saved(model, tmp_path / "h.onnx"))
    old = random_rows(7, 8)
    assert_within(load_transformation(report.bundle)(old), run_onnx(model, x=old), "fp32")


def test_an_image_model_of_other_people(tmp_path):
    model = onnx_model(
        [
            node("Conv", ["pixels", "w"], ["a"], strides=[2, 2]),
            node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"]),
            node("HardSwish", ["c"], ["d"]),
            node("GlobalAveragePool", ["d"], ["embedding"]),
        ],
        {"pixels": ["N", 3, 12, 10]},
        {"embedding": ["N", 4, 1, 1]},
        weights(w=(4, 3, 3, 3), s=(4,), b=(4,), m=(4,)) | {"v": np.full(4, 1.5, np.float32)},
    )
    report = export_file(saved(model, tmp_path / "b.onnx"), options=Options(("onnx",), ("fp32", "fp16", "bf16")))
    images = np.random.default_rng(0).standard_normal((7, 3, 12, 10), np.float32)
    expected = run_onnx(model, pixels=images).reshape(7, 4)
    for precision in ("fp32", "fp16"):
        assert_within(load_embedder(report.bundle, precision)(images), expected, precision)
    assert load_embedder(tmp_path / "b.onnx").image_shape == (3, 12, 10)


@pytest.mark.parametrize("target", ["torchscript", "pt2", "core"])
def test_what_it_cannot_become_is_said(tmp_path, target):
    path = saved(gated(), tmp_path / "h.onnx")
    with pytest.raises(UsageError, match=r"cannot be made a PyTorch model|a program can hold"):
        export_file(path, tmp_path / "b", Options((target,)))
    assert not (tmp_path / "b").exists()


def test_operators_of_another_domain_are_named(tmp_path):
    model = onnx_model(
        [node("FusedGemm", ["x", "w", "b"], ["y"], domain="com.microsoft", activation="Sigmoid")],
        {"x": ["N", 8]},
        {"y": ["N", 6]},
        weights(w=(8, 6), b=(6,)),
        domains=["com.microsoft"],
    )
    path = saved(model, tmp_path / "h.onnx")
    with pytest.raises(UnsupportedError, match=r"uses operators of com\.microsoft, which only their author's runtime"):
        export_file(path)
    unknown = onnx_model(
        [node("Secret", ["x"], ["y"], domain="their.own")], {"x": ["N", 8]}, {"y": ["N", 8]}, domains=["their.own"]
    )
    with pytest.raises(ArtifactError, match=r"h\.onnx: ONNX Runtime refuses it: .*Secret"):
        export_file(saved(unknown, path))
    assert [found.name for found in tmp_path.iterdir()] == ["h.onnx"]


def test_every_offending_node_is_named(tmp_path):
    *_, note = export_file(saved(gated(), tmp_path / "h.onnx")).notes
    assert "'open' (Sigmoid): no transformation program has this" in note
    double = onnx_model(
        [node("Tanh", ["x"], ["a"], name="first"), node("MatMul", ["a", "w"], ["b"]), node("Softplus", ["b"], ["c"]),
         node("MatMul", ["x", "w"], ["d"]), node("Tanh", ["d"], ["e"], name="second"), node("Add", ["c", "e"], ["y"])],
        {"x": ["N", 8]}, {"y": ["N", 6]}, weights(w=(8, 6)),
    )  # fmt: skip
    *_, note = export_file(saved(double, tmp_path / "g.onnx")).notes
    for name in ("'first' (Tanh)", "'c' (Softplus)", "'second' (Tanh)"):
        assert name in note


def test_more_than_one_output_is_refused(tmp_path):
    model = gated()
    model.graph.output.append(helper.make_tensor_value_info("open", TensorProto.FLOAT, ["N", 6]))
    with pytest.raises(ArtifactError, match="has 2 inputs and 2 outputs, wanted an image, or old and maybe side"):
        export_file(saved(model, tmp_path / "h.onnx"))
