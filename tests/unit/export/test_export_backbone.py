from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.outputs import assert_within
from support.torch_models import TinyBackbone, exported, outputs, randomized, scripted, traced
from torch import Tensor, nn

from fct_infer import load_embedder
from fct_infer.artifacts.bundle import open_bundle
from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.artifacts.torch_files import load_torch
from fct_infer.errors import ArtifactError, GateError, UnsupportedError, UsageError
from fct_infer.export import Options, export_backbone, export_file

SHAPE = (3, 20, 16)
PREPROCESSING = Preprocessing((20, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.25))
TARGETS = ("onnx", "torchscript", "pt2")
FLOATS = ("fp32", "fp16", "bf16")
BATCHES = (1, 2, 7, 4096)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomized(TinyBackbone())


def images(rows: int, seed: int = 0) -> np.ndarray:
    """Noise over a colour of its own for each image, so that neighbours mean something."""
    rng = np.random.default_rng(seed)
    colours = rng.standard_normal((rows, SHAPE[0], 1, 1), np.float32)
    return colours * 2 + rng.standard_normal((rows, *SHAPE), np.float32)


FORMS = ("eager", "scripted", "traced", "pt2")


@pytest.fixture(scope="module", params=FORMS)
def bundle(request, model, tmp_path_factory):
    """The model as its user has it, in every target and, of one form, in every precision."""
    folder = tmp_path_factory.mktemp("backbone")
    if request.param == "scripted":
        module = load_torch(scripted(model, folder / "model.pt")).module
    elif request.param == "traced":
        module = load_torch(traced(model, folder / "model.pt", torch.zeros(2, *SHAPE))).module
    elif request.param == "pt2":
        module = load_torch(exported(model, folder / "model.pt2", torch.zeros(2, *SHAPE))).module
    else:
        module = model
    precisions = FLOATS if request.param == "eager" else ("fp32",)
    options = Options(TARGETS, precisions)
    export_backbone(
        module, folder / "b", options, image_shape=SHAPE, preprocessing=PREPROCESSING, kind="side-information"
    )
    return open_bundle(folder / "b")


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
@pytest.mark.parametrize("rows", BATCHES)
def test_every_backend_agrees_with_the_module_at_any_batch_size(bundle, model, backend, rows):
    batch = images(rows)
    for precision in dict.fromkeys(file.precision for file in bundle.manifest.files):
        if (backend, precision) == ("onnxruntime", "bf16"):
            with pytest.raises(UnsupportedError, match="no bf16 on the CPU"):
                load_embedder(bundle.path, precision, backend=backend)
            continue
        embed = load_embedder(bundle.path, precision, 1, backend, trust=True)
        assert (embed.backend, embed.device, embed.precision) == (backend, "cpu", precision)
        assert_within(embed(batch), outputs(model, batch), precision)


def test_plain_runtimes_agree_with_the_module(bundle, model):
    """By the contract of the files alone: no code of this project."""
    batch = images(33)
    session = onnxruntime.InferenceSession(str(bundle.path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = [session.run(["embedding"], {"image": batch})[0]]
    found += [outputs(load_torch(bundle.path / name).module, batch) for name in ("model.pt", "model.pt2")]
    for each in found:
        assert_within(each, outputs(model, batch), "fp32")


def test_the_onnx_file_keeps_its_contract(bundle):
    proto = onnx.load(str(bundle.path / "model.onnx"))
    onnx.checker.check_model(proto, full_check=True)
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert dims == {"image": ["batch", *SHAPE], "embedding": ["batch", 24]}
    metadata = {item.key: item.value for item in proto.metadata_props}
    assert (metadata["kind"], metadata["model_version"]) == ("side-information", bundle.manifest.model_version)


def test_the_manifest_tells_what_the_model_needs(bundle):
    manifest = bundle.manifest
    assert (manifest.kind, manifest.inputs, manifest.output_dim) == ("side-information", {"image": SHAPE}, 24)
    assert manifest.preprocessing == PREPROCESSING
    assert manifest.program is None
    assert {file.parity.rows for file in manifest.files} == {1 + 2 + 7 + 64}


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bit_files_keep_the_neighbours_of_real_images(tmp_path, model, precision):
    options = Options(("onnx",), (precision,), calibration={"image": images(100, seed=5)})
    report = export_backbone(model, tmp_path / "b", options, image_shape=SHAPE)
    (file,) = report.manifest.files
    assert file.parity.real_rows == 100
    embed = load_embedder(tmp_path / "b", precision)
    assert embed.precision == precision
    for rows in (1, 2, 7):
        batch = images(rows)
        assert_within(embed(batch), outputs(model, batch), precision)


def test_a_bundle_is_converted_onward_through_its_onnx_file(tmp_path, bundle, model):
    report = export_file(bundle.path, tmp_path / "again", Options(precisions=("fp32", "fp16"), targets=("onnx",)))
    assert (report.manifest.kind, report.manifest.preprocessing) == ("side-information", PREPROCESSING)
    assert report.manifest.source.name == bundle.path.name
    batch = images(5)
    for precision in ("fp32", "fp16"):
        assert_within(load_embedder(tmp_path / "again", precision)(batch), outputs(model, batch), precision)
    with pytest.raises(UnsupportedError, match=r"target torchscript, fp32: .* cannot be made a PyTorch model"):
        export_file(bundle.path, tmp_path / "torch", Options(("torchscript",)))


def test_the_module_is_left_as_it_was(tmp_path):
    model = TinyBackbone().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_backbone(model, tmp_path / "b", Options(("torchscript", "onnx")), image_shape=SHAPE)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_equal_weights_have_equal_digests(tmp_path, model):
    options = Options(("onnx",))
    reports = [export_backbone(model, tmp_path / name, options, image_shape=SHAPE) for name in "ab"]
    other = export_backbone(randomized(TinyBackbone(), 1), tmp_path / "c", options, image_shape=SHAPE)
    digests = [report.manifest.source.sha256 for report in (*reports, other)]
    assert digests[0] == digests[1] != digests[2]


class BatchSizeBakedIn(nn.Module):
    """Right for the batch it is traced with only."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3)) * (2.0 if image.shape[0] == 2 else 1.0)


@pytest.mark.parametrize("target", ["onnx", "torchscript"])
def test_a_batch_size_baked_into_the_file_is_noticed(tmp_path, target):
    with pytest.raises(GateError, match=f"target {target}"):
        export_backbone(BatchSizeBakedIn(), tmp_path / "b", Options((target,)), image_shape=SHAPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"Conv2d: makes \(2, 4, 18, 14\) of 2 rows, wanted \(n, d\)"),
        (nn.Conv2d(4, 4, 3), "Conv2d: does not run on inputs of shape 3x20x16"),
        (nn.Sequential(nn.Flatten(), nn.Flatten(0)), r"Sequential: makes \(1920,\) of 2 rows"),
    ],
)
def test_what_makes_no_embeddings_is_refused(tmp_path, module, message):
    with pytest.raises(ArtifactError, match=message):
        export_backbone(module, tmp_path / "b", image_shape=SHAPE)


def test_what_does_not_fit_together_is_refused(tmp_path, model):
    with pytest.raises(UsageError, match=r"Preprocessing\(size=\(20, 16\).* does not fit a model whose inputs are"):
        export_backbone(model, tmp_path / "b", image_shape=(3, 32, 32), preprocessing=PREPROCESSING)
    with pytest.raises(UsageError, match="use export_transformation"):
        export_backbone(model, tmp_path / "b", image_shape=SHAPE, kind="transformation")
    with pytest.raises(UsageError, match="'core' is for transformations that a program can hold; leave it out"):
        export_backbone(model, tmp_path / "b", Options(("core",)), image_shape=SHAPE)
