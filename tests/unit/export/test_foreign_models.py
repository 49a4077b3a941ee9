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
from fct_infer.upgrade.settings import Settings

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
        path = saved(module, form, tmp_path)
        report = export_file(path, tmp_path / "h", CORE)
    assert "inputs: side_information -> side, old_embedding -> old" in report.notes
    np.testing.assert_allclose(
        load_transformation(tmp_path / "h")(old, side), rows_of(module, side, old), rtol=1e-4, atol=1e-5
    )


class Untold(nn.Module):
    """Two inputs that have no telling names; no program holds it with ``tanh``."""

    def __init__(self, widths=(8, 8), tanh=False):
        super().__init__()
        self.a, self.b = (nn.Linear(width, 6) for width in widths)
        self.last = nn.Tanh() if tanh else nn.Identity()

    def forward(self, x, y):
        return self.last(self.a(x) + self.b(y))


def exported(module, widths=(8, 8)):
    batch = torch.export.Dim("batch")
    example = tuple(torch.zeros(3, width) for width in widths)
    return torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch}))


def saved(module, form, folder, widths=(8, 8)):
    """Write an archive of ``module``."""
    path = folder / ("m.pt2" if form == "pt2" else "m.pt")
    if form == "pt2":
        torch.export.save(exported(module, widths), path)
    elif form == "traced":
        torch.jit.trace(module, tuple(torch.zeros(3, width) for width in widths)).save(path)
    else:
        torch.jit.script(module).save(path)
    return path


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("form", ["eager", "scripted", "traced", "pt2"])
def test_two_inputs_of_one_width_without_telling_names_have_to_be_told(tmp_path, form, tanh):
    module, (old, side) = Untold(tanh=tanh).eval(), ROWS
    options = Options(("onnx",))
    path = None if form == "eager" else saved(module, form, tmp_path)

    def export(bundle, old_first=None):
        if path is None:
            return export_transformation(module, bundle, options, input_widths=(8, 8), old_first=old_first)
        return export_file(path, bundle, options, input_shapes=[(8,), (8,)], old_first=old_first)

    with pytest.raises(ArtifactError, match=r"nothing tells which of its inputs x and y .* fct-export --inputs x,y"):
        export(tmp_path / "h")
    with pytest.raises(ArtifactError, match="its inputs are x, y, not x, z"):
        export(tmp_path / "h", ("x", "z"))
    for names, arrays in ((("x", "y"), (old, side)), (("y", "x"), (side, old))):
        report = export(tmp_path / "".join(names), names)
        assert f"{names[0]} -> old" in report.notes[0] and f"{names[1]} -> side" in report.notes[0]
        h = load_transformation(report.bundle, backend="onnxruntime")
        np.testing.assert_allclose(h(old, side), rows_of(module, *arrays), rtol=1e-4, atol=1e-5)
    if path is not None:
        for backend in ("auto", "torch"):
            with pytest.raises(ArtifactError, match="nothing tells which of its inputs x and y"):
                load_transformation(path, backend=backend, trust=True)


def test_inputs_of_two_widths_are_taken_as_old_and_side(tmp_path):
    report = export_transformation(Untold((8, 5)).eval(), tmp_path / "h", CORE)
    assert report.notes == ("inputs: x -> old, y -> side",)
    assert report.manifest.inputs == {"old": (8,), "side": (5,)}


@pytest.mark.parametrize("form", ["scripted", "pt2"])
def test_pytorch_runs_inputs_in_the_other_order_too(tmp_path, form):
    (old, side), module = ROWS, Both().eval()
    h = load_transformation(saved(module, form, tmp_path), backend="torch", trust=True)
    np.testing.assert_allclose(h(old, side), rows_of(module, side, old), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("form", ["scripted", "pt2", "onnx"])
def test_a_bare_file_tells_its_assignment_and_is_not_parsed_for_that(tmp_path, monkeypatch, form, tanh):
    if form == "onnx":
        node = ("Tanh", ["x"], ["y"]) if tanh else ("MatMul", ["x", "w"], ["y"])
        path = onnx_file(tmp_path / "m.onnx", [node], {"x": 8}, {"w": np.eye(8, dtype=np.float32)})
        wanted, backend = "inputs: x -> old", "onnxruntime" if tanh else "core"
    else:
        path = saved(Untold((8, 5), tanh).eval(), form, tmp_path, (8, 5))
        wanted, backend = "inputs: x -> old, y -> side", "torch" if tanh else "core"
    parsed = []
    load = onnx.load_model_from_string
    monkeypatch.setattr(onnx, "load_model_from_string", lambda data: parsed.append(data) or load(data))
    h = load_transformation(path, trust=True)
    assert (h.assignment, h.backend) == (wanted, backend)
    assert len(parsed) == (0 if form != "onnx" else 1 + (backend != "core"))  # once more by the runtime's runner


def test_what_this_project_exports_tells_its_inputs(tmp_path):
    (old, side), module = ROWS, Untold(tanh=True).eval()
    options = Options(("torchscript", "pt2"), ("fp32", "fp16"))
    bundle = export_transformation(module, tmp_path / "h", options, old_first=("x", "y")).bundle
    assert load_transformation(bundle, backend="torch", trust=True).assignment is None
    for name in ("model.pt", "model.pt2"):
        h = load_transformation(bundle / name, backend="torch", trust=True)
        np.testing.assert_allclose(h(old, side), rows_of(module, old, side), rtol=1e-4, atol=1e-5)


def test_an_optional_input_that_is_named_is_exported(tmp_path):
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(5, 6)

        def forward(self, x, y=None):
            return self.a(x) if y is None else self.a(x) + self.b(y)

    report = export_transformation(Optional().eval(), tmp_path / "h", CORE, old_first=("x", "y"))
    assert report.manifest.inputs == {"old": (8,), "side": (5,)}


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


class Centred(nn.Module):
    """Rows less their mean; the weight tells how wide they are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x - x.mean(dim=0)))


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_pytorch_is_asked_for_rows_in_other_company_too(tmp_path, suffix):
    path = tmp_path / f"h{suffix}"
    if suffix == ".pt":
        torch.jit.script(Centred()).save(path)
    else:
        rows = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(Centred(), (torch.zeros(3, 8),), dynamic_shapes=rows), path)
    (tmp_path / "g" / "embeddings").mkdir(parents=True)
    np.save(tmp_path / "g" / "embeddings" / "0.npy", ROWS[0] + 3)
    h = load_transformation(path, backend="torch", trust=True)
    with pytest.raises(GateError, match="to its recomputation is below"):
        upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=Settings(index="none"))
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
