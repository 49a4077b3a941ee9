from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.torch_models import TinyBackbone, randomized, scripted, traced
from torch import Tensor, nn

from fct_infer.artifacts.bundle import open_bundle
from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.artifacts.torchscript import load_torchscript
from fct_infer.errors import ArtifactError, GateError, UsageError
from fct_infer.export.exporting import export_backbone

SHAPE = (3, 20, 16)
PREPROCESSING = Preprocessing((20, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.25))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomized(TinyBackbone())


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, *SHAPE), np.float32)


def run(model: nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(batch)).flatten(1).numpy()


@pytest.fixture(scope="module", params=["eager", "scripted", "traced"])
def bundle(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    if request.param == "scripted":
        module = load_torchscript(scripted(model, folder / "model.pt"))
    elif request.param == "traced":
        module = load_torchscript(traced(model, folder / "model.pt", torch.zeros(2, *SHAPE)))
    else:
        module = model
    export_backbone(module, folder / "b", image_shape=SHAPE, preprocessing=PREPROCESSING, kind="side-information")
    return open_bundle(folder / "b")


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_both_files_agree_with_the_module_at_any_batch_size(bundle, model, rows):
    batch = images(rows)
    wanted = run(model, batch)
    session = onnxruntime.InferenceSession(str(bundle.file("onnx")), providers=["CPUExecutionProvider"])
    for found in (
        session.run(["embedding"], {"image": batch})[0],
        run(load_torchscript(bundle.file("torchscript")), batch),
    ):
        assert found.shape == (rows, 24)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_onnx_file_keeps_its_contract(bundle):
    graph = onnx.load(str(bundle.file("onnx"))).graph
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert dims == {"image": ["batch", *SHAPE], "embedding": ["batch", 24]}


def test_the_manifest_tells_what_the_model_needs(bundle):
    manifest = bundle.manifest
    assert (manifest.kind, manifest.inputs, manifest.output_dim) == ("side-information", {"image": SHAPE}, 24)
    assert manifest.preprocessing == PREPROCESSING
    assert manifest.program is None
    assert [file.parity.rows for file in manifest.files] == [10, 10]


def test_the_module_is_left_as_it_was(tmp_path):
    model = TinyBackbone().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_backbone(model, tmp_path / "b", image_shape=SHAPE, targets=("torchscript",))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_equal_weights_have_equal_digests(tmp_path, model):
    reports = [export_backbone(model, tmp_path / name, image_shape=SHAPE, targets=("onnx",)) for name in "ab"]
    other = export_backbone(randomized(TinyBackbone(), 1), tmp_path / "c", image_shape=SHAPE, targets=("onnx",))
    digests = [report.manifest.source.sha256 for report in (*reports, other)]
    assert digests[0] == digests[1] != digests[2]


class BatchSizeBakedIn(nn.Module):
    """Right for the batch it is traced with only."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3)) * (2.0 if image.shape[0] == 2 else 1.0)


@pytest.mark.parametrize("target", ["onnx", "torchscript"])
def test_a_batch_size_baked_into_the_file_is_noticed(tmp_path, target):
    with pytest.raises(GateError, match=f"target {target}"):
        export_backbone(BatchSizeBakedIn(), tmp_path / "b", image_shape=SHAPE, targets=(target,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"makes \(2, 4, 18, 14\) of 2 images, wanted \(n, d\)"),
        (nn.Conv2d(4, 4, 3), "does not run on images 3x20x16"),
        (nn.Sequential(nn.Flatten(), nn.Flatten(0)), r"makes \(1920,\) of 2 images"),
    ],
)
def test_what_makes_no_embeddings_is_refused(tmp_path, module, message):
    with pytest.raises(ArtifactError, match=message):
        export_backbone(module, tmp_path / "b", image_shape=SHAPE)


def test_what_does_not_fit_together_is_refused(tmp_path, model):
    with pytest.raises(UsageError, match="does not make images of shape"):
        export_backbone(model, tmp_path / "b", image_shape=(3, 32, 32), preprocessing=PREPROCESSING)
    with pytest.raises(UsageError, match="use export_transformation"):
        export_backbone(model, tmp_path / "b", image_shape=SHAPE, kind="transformation")
    with pytest.raises(UsageError, match="'core' does not exist for this kind of model; there is onnx, torchscript"):
        export_backbone(model, tmp_path / "b", image_shape=SHAPE, targets=("core",))
