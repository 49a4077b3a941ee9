from __future__ import annotations

import numpy as np
import pytest
import torch
from support.programs import linear_map, random_rows
from support.torch_models import PublicTransformation, TinyBackbone, randomized, scripted, traced
from torch import Tensor, nn

from fct_infer.artifacts.loading import load_program
from fct_infer.errors import ArtifactError, OutputError, UsageError
from fct_infer.export.exporting import export_transformation
from fct_infer.export.user_files import export_file
from fct_infer.reference import apply_float64


class FixedSize(nn.Module):
    """Runs on 28x28 images with one channel only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(28 * 28, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image.flatten(1))


@pytest.fixture
def h(tmp_path):
    return scripted(randomized(PublicTransformation(8, 5, 6, 20)), tmp_path / "h.pt")


@pytest.fixture
def backbone(tmp_path):
    return traced(randomized(TinyBackbone(7)), tmp_path / "backbone.pt", torch.zeros(2, 3, 32, 32))


def test_a_transformation_is_known_by_its_two_inputs(h, tmp_path):
    report = export_file(h)
    assert report.bundle == tmp_path / "h.bundle"
    assert report.manifest.kind == "transformation"
    assert report.manifest.inputs == {"old": (8,), "side": (5,)}
    assert report.manifest.source.name == "h.pt"
    assert [file.target for file in report.manifest.files] == ["core", "onnx"]
    assert not report.notes
    old, side = random_rows(9, 8), random_rows(9, 5, 1)
    wanted = apply_float64(load_program(h, trust=True), old, side)
    np.testing.assert_allclose(apply_float64(load_program(report.bundle), old, side), wanted)


def test_an_image_model_is_known_by_a_trial_run_and_what_was_assumed_is_said(backbone):
    report = export_file(backbone)
    assert (report.manifest.kind, report.manifest.inputs) == ("backbone", {"image": (3, 224, 224)})
    assert [file.target for file in report.manifest.files] == ["onnx", "torchscript"]
    assert report.next_command is None
    notes = " ".join(report.notes)
    assert "exported for 3x224x224; --input-shape sets it" in notes
    assert "--kind side-information" in notes
    assert "no preprocessing" in notes


def test_what_is_given_is_not_guessed(backbone, tmp_path):
    report = export_file(
        backbone, tmp_path / "b", kind="side-information", input_shapes=[(3, 32, 32)], targets=["onnx"]
    )
    assert (report.manifest.kind, report.manifest.inputs) == ("side-information", {"image": (3, 32, 32)})
    assert len(report.notes) == 1


def test_a_map_of_the_old_embedding_alone_is_a_transformation(tmp_path):
    path = scripted(nn.Sequential(nn.Linear(6, 4)).eval(), tmp_path / "map.pt")
    assert export_file(path).manifest.inputs == {"old": (6,)}


def test_onnx_files_and_bundles_are_exported_onward(tmp_path):
    export_transformation(linear_map(6, 4), tmp_path / "first")
    for path in (tmp_path / "first", tmp_path / "first" / "model.onnx"):
        report = export_file(path, tmp_path / f"{path.name}.again", targets=["torchscript"])
        assert (report.manifest.kind, report.manifest.output_dim) == ("transformation", 4)


def test_widths_the_file_cannot_tell_are_taken_from_the_user(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 4)

        def forward(self, old: Tensor, side: Tensor) -> Tensor:
            return self.layer(torch.cat([old, side], 1))

    path = scripted(Model().eval(), tmp_path / "h.pt")
    with pytest.raises(UsageError, match="--input-shape 128 --input-shape 64"):
        export_file(path)
    assert export_file(path, input_shapes=[(7,), (3,)]).manifest.inputs == {"old": (7,), "side": (3,)}
    with pytest.raises(UsageError, match="give the width of each input"):
        export_file(path, tmp_path / "b", input_shapes=[(3, 32, 32)])


def test_a_model_of_neither_kind_is_refused_with_both_reasons(tmp_path):
    path = scripted(FixedSize(), tmp_path / "model.pt")
    assert export_file(path, tmp_path / "b", input_shapes=[(1, 28, 28)]).manifest.output_dim == 5
    path = scripted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), tmp_path / "map.pt")
    with pytest.raises(UsageError, match=r"map\.pt: .*Nor does it make embeddings of images of a usual size"):
        export_file(path)


@pytest.mark.parametrize(
    ("kind", "shapes", "message"),
    [
        ("transformation", (), r"backbone\.pt: operation .*convolution"),
        ("backbone", [(4, 32, 32)], r"backbone\.pt: the model does not run on images 4x32x32"),
        ("backbone", [(32,)], r"backbone\.pt: does not run on images, wanted a backbone model"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(backbone, kind, shapes, message):
    with pytest.raises((ArtifactError, UsageError), match=message):
        export_file(backbone, kind=kind, input_shapes=shapes)


def test_a_transformation_is_no_backbone(h):
    with pytest.raises(ArtifactError, match=r"h\.pt: does not run on images, wanted a backbone model"):
        export_file(h, kind="backbone")


def test_the_source_is_not_overwritten(h):
    export_file(h)
    with pytest.raises(OutputError, match="exists already"):
        export_file(h)
    export_file(h, force=True)
    with pytest.raises(OutputError, match="is not a bundle"):
        export_file(h, h, force=True)
    assert load_program(h, trust=True).new_dim == 6
