"""Models as users have them: inputs in any order, optional ones, wrappers, weights elsewhere, errors of their own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.programs import random_rows
from torch import nn

from fct_infer import load_transformation, upgrade_gallery
from fct_infer.errors import ArtifactError, FctError, GateError, UsageError
from fct_infer.export import Options, export_transformation
from fct_infer.export.user_files import export_file
from fct_infer.upgrade.plan import Settings

CORE = Options(targets=("core",))
ROWS = random_rows(40, 8), random_rows(40, 8, seed=1)


class Both(nn.Module):
    """Of two inputs of one width, in the order side, old."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, side_information, old_embedding):
        return self.a(side_information) + self.b(old_embedding)


def rows_of(module, *arrays):
    with torch.no_grad():
        return module(*map(torch.from_numpy, arrays)).numpy()


def onnx_file(path, nodes, inputs, weights=(), **options):
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "g",
        [helper.make_tensor_value_info(name, 1, ["n", width]) for name, width in inputs.items()],
        [helper.make_tensor_value_info("y", 1, ["n", 8])],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path, **options)
    return path


@pytest.mark.parametrize("form", ["eager", "scripted", "pt2"])
def test_inputs_in_the_other_order_are_told_by_their_names(tmp_path, form):
    module, (old, side) = Both().eval(), ROWS
    if form == "eager":
        report = export_transformation(module, tmp_path / "h", CORE)
    else:
        path = tmp_path / ("m.pt2" if form == "pt2" else "m.pt")
        if form == "pt2":
            batch = torch.export.Dim("batch")
            example = torch.zeros(3, 8), torch.zeros(3, 8)
            torch.export.save(torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch})), path)
        else:
            torch.jit.script(module).save(path)
        report = export_file(path, tmp_path / "h", CORE)
    assert "inputs: side_information -> side, old_embedding -> old" in report.notes
    np.testing.assert_allclose(
        load_transformation(tmp_path / "h")(old, side), rows_of(module, side, old), rtol=1e-4, atol=1e-5
    )


def test_what_names_do_not_tell_has_to_be_said(tmp_path):
    weights = {"w": np.concatenate([np.eye(8), 3 * np.eye(8)], axis=1).astype(np.float32)}
    nodes = [("Concat", ["a", "b"], ["c"], {"axis": 1}), ("Gemm", ["c", "w"], ["y"], {"transB": 1})]
    path = onnx_file(tmp_path / "m.onnx", nodes, {"a": 8, "b": 8}, weights)
    with pytest.raises(ArtifactError, match=r"nothing tells .* fct-export --inputs a,b"):
        export_file(path, tmp_path / "h", CORE)
    old, side = ROWS
    for names, wanted in ((("a", "b"), old + 3 * side), (("b", "a"), side + 3 * old)):
        report = export_file(path, tmp_path / "".join(names), Options(("core", "onnx")), old_first=names)
        assert report.notes[0].startswith("inputs: ")
        for backend in ("core", "onnxruntime"):
            h = load_transformation(tmp_path / "".join(names), backend=backend)
            np.testing.assert_allclose(h(old, side), wanted, rtol=1e-5, atol=1e-5)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(4, 6)

    def forward(self, old, side: torch.Tensor | None = None):
        return self.a(old) if side is None else self.a(old) + self.b(side)


def test_an_optional_input_is_never_dropped_unsaid(tmp_path):
    module = Optional().eval()
    report = export_transformation(module, tmp_path / "a", CORE)
    assert set(report.manifest.inputs) == {"old"} and any("optional input side" in note for note in report.notes)
    report = export_transformation(module, tmp_path / "b", CORE, input_widths=(8, 4))
    assert set(report.manifest.inputs) == {"old", "side"}
    old, side = random_rows(5, 8), random_rows(5, 4)
    found = load_transformation(tmp_path / "b")(old, side)
    np.testing.assert_allclose(found, rows_of(module, old, side), rtol=1e-4, atol=1e-5)


def test_wrappers_are_taken_off(tmp_path):
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)).eval()
    for name, module in (("compiled", torch.compile(plain)), ("parallel", nn.DataParallel(plain))):
        export_transformation(module, tmp_path / name, Options(("core", "onnx")))
        found = load_transformation(tmp_path / name)(ROWS[0])
        np.testing.assert_allclose(found, rows_of(plain, ROWS[0]), rtol=1e-4, atol=1e-5)


class Attention(nn.Module):
    """In eval mode PyTorch takes a fused operation for it that nothing else has."""

    def __init__(self):
        super().__init__()
        self.encoder, self.out = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 6)

    def forward(self, x):
        return self.out(self.encoder(x[:, None, :])[:, 0])


def test_attention_is_exported_by_its_plain_operations(tmp_path):
    module = Attention().eval()
    before = torch.backends.mha.get_fastpath_enabled()
    export_transformation(module, tmp_path / "h", Options(("onnx", "torchscript", "pt2")), input_widths=(8,))
    for backend in ("onnxruntime", "torch"):
        h = load_transformation(tmp_path / "h", backend=backend, trust=True)
        np.testing.assert_allclose(h(ROWS[0]), rows_of(module, ROWS[0]), rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled() == before


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [KeyError("k"), IndexError("i"), AttributeError("a"), ZeroDivisionError(), OSError()])
def test_what_a_users_module_raises_is_one_line(tmp_path, error):
    with pytest.raises(FctError):
        export_transformation(Raises(error), tmp_path / "h", CORE, input_widths=(8,))


class Permuted(nn.Module):
    """Runs on (n, d), raises IndexError on (n, d, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)
        self.register_buffer("order", torch.arange(7, -1, -1))

    def forward(self, x):
        return self.layer(x[..., self.order])


def test_the_other_rank_is_tried_whatever_the_first_one_raised(tmp_path):
    module = Permuted().eval()
    export_transformation(module, tmp_path / "h", Options(("onnx",)), input_widths=(8,))
    h = load_transformation(tmp_path / "h", backend="onnxruntime")
    np.testing.assert_allclose(h(ROWS[0]), rows_of(module, ROWS[0]), rtol=1e-4, atol=1e-5)


# -- weights in other files --------------------------------------------------------------------------------------------


def with_weights_beside(path, weight):
    beside = {"save_as_external_data": True, "location": path.name + ".data", "size_threshold": 0}
    return onnx_file(path, [("Gemm", ["old", "w"], ["y"], {"transB": 1})], {"old": 8}, {"w": weight}, **beside)


def test_weights_beside_the_file_are_read_and_make_its_identity(tmp_path):
    digests = []
    for number in (2, 3):
        path = with_weights_beside(tmp_path / f"{number}.onnx", number * np.eye(8, dtype=np.float32))
        assert (tmp_path / f"{number}.onnx.data").exists()
        report = export_file(path, tmp_path / f"h{number}", Options(("core", "onnx")))
        for backend in ("core", "onnxruntime"):
            np.testing.assert_allclose(
                load_transformation(report.bundle, backend=backend)(ROWS[0]), number * ROWS[0], rtol=1e-6
            )
        h = load_transformation(path, backend="onnxruntime")
        np.testing.assert_allclose(h(ROWS[0]), number * ROWS[0], rtol=1e-6)
        digests += [h.digest, report.manifest.source.sha256]
    assert len(set(digests)) == 2


# -- rows that depend on their neighbours ------------------------------------------------------------------------------

MIXING = {
    "mean over the batch": [("ReduceMean", ["old"], ["m"], {"axes": [0], "keepdims": 1}), ("Sub", ["old", "m"], ["y"])],
    "softmax over the batch": [("Softmax", ["old"], ["y"], {"axis": 0})],
    "first row": [("Gather", ["old", "zero"], ["m"], {"axis": 0}), ("Add", ["old", "m"], ["y"])],
}


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_rows_is_neither_exported_nor_published(tmp_path, name):
    weights = {"zero": np.array([0], np.int64)} if name == "first row" else {}
    path = onnx_file(tmp_path / "h.onnx", MIXING[name], {"old": 8}, weights)
    with pytest.raises(ArtifactError, match="it mixes the rows of a batch"):
        export_file(path, tmp_path / "b")
    (tmp_path / "g" / "embeddings").mkdir(parents=True)
    np.save(tmp_path / "g" / "embeddings" / "0.npy", ROWS[0] + 3)
    with pytest.raises(GateError, match="to its recomputation is below"):
        upgrade_gallery(tmp_path / "g", load_transformation(path), tmp_path / "new", settings=Settings(index="none"))
    assert not (tmp_path / "new").exists()


def test_batch_norm_without_statistics_is_refused(tmp_path):
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 6)).eval()
    with pytest.raises(ArtifactError):
        export_transformation(module, tmp_path / "h", Options(), input_widths=(8,))


def test_a_path_is_no_transformation(tmp_path):
    with pytest.raises(UsageError, match=r"h is a str, wanted a Transformation: fct_infer\.load_transformation\('h'\)"):
        upgrade_gallery(tmp_path / "g", "h", tmp_path / "new")


@pytest.mark.parametrize("share", [1e-3, 3e-4])
def test_a_small_share_of_the_neighbours_is_noticed_too(tmp_path, share):
    nodes = [
        ("ReduceMean", ["old"], ["m"], {"axes": [0], "keepdims": 1}),
        ("Mul", ["m", "share"], ["part"]),
        ("Add", ["old", "part"], ["y"]),
    ]
    path = onnx_file(tmp_path / "h.onnx", nodes, {"old": 8}, {"share": np.array(share, np.float32)})
    with pytest.raises(ArtifactError, match="it mixes the rows of a batch"):
        export_file(path, tmp_path / "b")
