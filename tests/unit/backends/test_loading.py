from __future__ import annotations

import copy
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import torch
from support.bundles import core_bundle
from support.outputs import assert_within, reference, rows_for
from support.programs import linear_map, plain_mlp, random_rows
from support.torch_models import GatedTransformation, TinyBackbone, exported, outputs, randomized, scripted, traced

from fct_infer import load_embedder, load_transformation
from fct_infer.errors import ArtifactError, MissingExtraError, UnsupportedError, UsageError
from fct_infer.export import Options, export_backbone, export_transformation

PROGRAM = plain_mlp(24, 8, 32, hidden=(40,))
DIMS = {"old": 24, "side": 8}
SHAPE = (3, 12, 10)
NO_DEVICE = pytest.mark.skipif(
    torch.cuda.is_available() or "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="there is a device",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bundles: ``h`` and ``b`` with all there is, ``gated`` that no program holds, and some with one file."""
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(0)
    every = ("onnx", "torchscript", "pt2"), ("fp32", "fp16", "bf16", "int8")
    gated, backbone = GatedTransformation(24, 8, 32).eval(), randomized(TinyBackbone(12))
    export_transformation(PROGRAM, folder / "h", Options(("core", *every[0]), every[1], rows_for(DIMS, 100)))
    export_transformation(PROGRAM, folder / "core", Options(("core",)))
    export_transformation(PROGRAM, folder / "onnx", Options(("onnx",)))
    export_transformation(PROGRAM, folder / "int8", Options(("onnx",), ("int8",), rows_for(DIMS, 100)))
    export_transformation(PROGRAM, folder / "torch", Options(("torchscript",)))
    export_transformation(gated, folder / "gated", Options(*every[:1], ("fp32", "fp16")))
    export_backbone(backbone, folder / "b", Options(every[0], ("fp32", "fp16")), image_shape=SHAPE)
    export_backbone(backbone, folder / "b.torch", Options(("torchscript", "pt2")), image_shape=SHAPE)
    batch = torch.zeros(2, 24), torch.zeros(2, 8)
    scripted(gated, folder / "gated.pt")
    exported(gated, folder / "gated.pt2", *batch)
    traced(backbone, folder / "b.pt", torch.zeros(2, *SHAPE))
    exported(backbone, folder / "b.pt2", torch.zeros(2, *SHAPE))
    torch.save((gated, backbone), folder / "modules")
    return folder


@pytest.fixture(scope="module")
def modules(folder):
    return torch.load(folder / "modules", weights_only=False)


ROWS = rows_for(DIMS, 33)


@pytest.mark.parametrize(
    ("backend", "precision", "found"),
    [
        ("core", "fp32", "fp32"),
        ("onnxruntime", "auto", "fp32"),
        ("onnxruntime", "fp16", "fp16"),
        ("onnxruntime", "int8", "int8"),
        ("torch", "auto", "fp32"),
        ("torch", "fp16", "fp16"),
        ("torch", "bf16", "bf16"),
    ],
)
def test_every_backend_is_what_it_says_and_equals_the_core(folder, backend, precision, found):
    h = load_transformation(folder / "h", precision, 1, backend, trust=backend == "torch")
    assert (h.backend, h.device, h.precision, h.threads) == (backend, "cpu", found, 1)
    assert_within(h(*ROWS.values()), reference(PROGRAM, ROWS), found)
    assert h.program.digest == PROGRAM.digest


@pytest.mark.parametrize(
    ("name", "trust", "backend"),
    [
        ("h", False, "core"),
        ("core", False, "core"),
        ("onnx", False, "core"),
        ("h/model.onnx", False, "core"),
        ("int8", False, "onnxruntime"),
        ("gated", False, "onnxruntime"),
        ("gated/model.onnx", False, "onnxruntime"),
        ("torch", True, "torch"),
        ("gated.pt", True, "torch"),
        ("gated.pt2", True, "torch"),
    ],
)
def test_auto_takes_the_core_then_data_then_code(folder, modules, name, trust, backend):
    h = load_transformation(folder / name, "fp32" if backend == "core" else "auto", trust=trust)
    assert (h.backend, h.device) == (backend, "cpu")
    wanted = outputs(modules[0], *ROWS.values()) if "gated" in name else reference(PROGRAM, ROWS)
    assert_within(h(*ROWS.values()), wanted, h.precision)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(("name", "trust"), [("int8", False), ("torch", True)])
def test_what_another_runtime_computes_travels_by_its_file(folder, tmp_path, name, trust, copied):
    shutil.copytree(folder / name, tmp_path / "h")
    h = load_transformation(tmp_path / "h", "auto", trust=trust, normalize=True)
    other = copied(h)
    assert (other.backend, other.precision, other.digest) == (h.backend, h.precision, h.digest)
    np.testing.assert_array_equal(other(*ROWS.values()), h(*ROWS.values()))


def test_a_file_that_changed_meanwhile_is_refused(folder, tmp_path):
    shutil.copytree(folder / "onnx", tmp_path / "h")
    packed = pickle.dumps(load_transformation(tmp_path / "h", backend="onnxruntime"))
    shutil.rmtree(tmp_path / "h")
    export_transformation(plain_mlp(24, 8, 32, hidden=(4,)), tmp_path / "h", Options(("onnx",)))
    with pytest.raises(ArtifactError, match="pickled or copied has changed since"):
        pickle.loads(packed)


@pytest.mark.parametrize("name", ["torch", "gated.pt", "gated.pt2"])
def test_code_is_not_run_unless_trusted(folder, name):
    with pytest.raises(UsageError, match=r"holds code that runs when it is loaded; pass trust=True"):
        load_transformation(folder / name)
    with pytest.raises(UsageError, match="pass trust=True"):
        load_transformation(folder / name, backend="torch")


def test_code_is_never_taken_where_data_would_do(folder):
    """``trust`` allows code, it does not ask for it."""
    assert load_transformation(folder / "gated", trust=True).backend == "onnxruntime"
    assert load_embedder(folder / "b", trust=True).backend == "onnxruntime"


@NO_DEVICE
@pytest.mark.parametrize("backend", ["core", "onnxruntime", "torch", "auto"])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_device_that_is_not_there_is_never_replaced_by_the_cpu(folder, backend, device):
    with pytest.raises(UnsupportedError, match=f"device {device}"):
        load_transformation(folder / "h", "fp32", backend=backend, device=device, trust=True)
    if backend != "core":
        with pytest.raises(UnsupportedError, match=f"device {device}"):
            load_embedder(folder / "b", "fp32", backend=backend, device=device, trust=True)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("h", {"backend": "openvino"}, UnsupportedError, "'openvino' does not exist; there is auto, core, onnx"),
        ("h", {"backend": ""}, UnsupportedError, "backend '' does not exist"),
        ("h", {"precision": "fp64"}, UnsupportedError, "precision 'fp64' does not exist; there is auto, fp32"),
        ("h", {"device": "gpu"}, UsageError, "device 'gpu' does not exist"),
        ("h", {"threads": 0}, UsageError, "threads is 0"),
        ("h", {"backend": "onnxruntime", "threads": -1}, UsageError, "threads is -1"),
        ("h", {"backend": "onnxruntime", "precision": "fp8"}, ArtifactError, "in fp32, fp16, bf16, int8, not in"),
        ("h", {"backend": "onnxruntime", "precision": "bf16"}, UnsupportedError, "no bf16 on the CPU"),
        ("h", {"backend": "tensorrt", "trust": True}, ArtifactError, "has no file for 'tensorrt', only for core, onnx"),
        ("core", {"backend": "onnxruntime"}, ArtifactError, "has no file for 'onnx', only for core"),
        ("onnx", {"backend": "torch", "trust": True}, ArtifactError, "has no file for 'pt2', only for onnx"),
        ("gated", {"backend": "core"}, ArtifactError, "the bundle holds no program, only files for onnx"),
        ("int8", {"backend": "core"}, ArtifactError, "the bundle holds no program, only files for onnx"),
        ("gated/model.onnx", {"backend": "core"}, ArtifactError, r"\(LayerNormalization\).*\(Sigmoid\)"),
        ("gated/model.onnx", {"backend": "torch", "trust": True}, UsageError, "backend torch does not run this kind"),
        ("gated/model.onnx", {"precision": "fp16"}, UsageError, "a bare file is run as fp32"),
        ("gated.pt", {"backend": "onnxruntime", "trust": True}, UsageError, "onnxruntime does not run this kind"),
        ("b", {}, ArtifactError, "holds a backbone model, wanted a transformation"),
        ("b/model.onnx", {}, ArtifactError, r"rows of shape \(3, 12, 10\), wanted \(d,\) or \(d, 1, 1\)"),
        ("nowhere", {}, ArtifactError, "nowhere: no such file or bundle"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_named(folder, name, options, error, message):
    with pytest.raises(error, match=message):
        load_transformation(folder / name, **options)


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("auto", "auto"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("torch", "auto"), ("torch", "fp16")],
)
def test_embedders_of_every_backend_equal_the_module(folder, modules, backend, precision):
    embed = load_embedder(folder / "b", precision, 1, backend, trust=backend == "torch")
    assert embed.backend == ("onnxruntime" if backend == "auto" else backend)
    assert (embed.kind, embed.device, embed.image_shape, embed.embedding_dim) == ("backbone", "cpu", SHAPE, 12)
    images = random_rows(7, 360).reshape(7, *SHAPE)
    assert_within(embed(images), outputs(modules[1], images), embed.precision)


@pytest.mark.parametrize(("name", "trust"), [("b/model.onnx", False), ("b.pt2", True), ("b.torch", True)])
def test_embedders_of_bare_files_and_of_code(folder, modules, name, trust):
    embed = load_embedder(folder / name, trust=trust)
    images = random_rows(7, 360).reshape(7, *SHAPE)
    assert_within(embed(images), outputs(modules[1], images), "fp32")
    assert embed.preprocessing is None
    if trust:
        with pytest.raises(UsageError, match="pass trust=True"):
            load_embedder(folder / name)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("b", {"backend": "core"}, UnsupportedError, "backend core runs transformations"),
        ("b", {"backend": "tensorrt", "trust": True}, ArtifactError, "has no file for 'tensorrt'"),
        ("b", {"precision": "int8"}, ArtifactError, "has 'onnx' in fp32, fp16, not in int8"),
        ("h", {}, ArtifactError, "holds a transformation, wanted a backbone or side-information model"),
        ("h/model.onnx", {}, ArtifactError, "takes old, side, wanted images"),
        ("b.pt", {"trust": True}, ArtifactError, "takes old, wanted images"),  # TorchScript does not tell their size
        ("nowhere", {}, ArtifactError, "nowhere"),
    ],
)
def test_embedders_that_cannot_be_had(folder, name, options, error, message):
    with pytest.raises(error, match=message):
        load_embedder(folder / name, **options)


@pytest.mark.parametrize("backend", ["core", "onnxruntime", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_many_threads_share_one_transformation(folder, backend, dtype):
    h = load_transformation(folder / "h", "fp32", 1, backend, trust=True)
    inputs = [tuple(each.astype(dtype) for each in rows_for(DIMS, 40, seed).values()) for seed in range(16)]
    expected = [h(*each) for each in inputs]
    with ThreadPoolExecutor(6) as pool:
        for found, wanted in zip(pool.map(lambda each: h(*each), inputs), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_models_are_told_apart_by_their_digest(folder):
    digests = {
        load_transformation(folder / "h", precision, backend=backend, trust=True).digest
        for backend, precision in (
            ("core", "fp32"),
            ("onnxruntime", "fp32"),
            ("onnxruntime", "fp16"),
            ("torch", "fp32"),
        )
    }
    assert len(digests) == 4


def test_without_onnx_and_torch_a_core_bundle_still_loads(tmp_path, monkeypatch):
    path = core_bundle(linear_map(6, 4), tmp_path / "h")
    for package in ("torch", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    assert load_transformation(path)(random_rows(3, 6)).shape == (3, 4)


@pytest.mark.parametrize(
    ("name", "missing", "backend"),
    [("h", "onnxruntime", "onnxruntime"), ("torch", "torch", "torch"), ("gated/model.onnx", "onnx", "auto")],
)
def test_a_missing_package_is_named(folder, monkeypatch, name, missing, backend):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=f"{missing} is not installed; run: pip install"):
        load_transformation(folder / name, backend=backend, trust=True)
