from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.galleries import write_gallery
from support.programs import linear_map, random_rows
from support.torch_models import (
    GatedTransformation,
    PublicTransformation,
    TinyBackbone,
    exported,
    randomized,
    scripted,
    traced,
)
from torch import Tensor, nn

from fct_infer.artifacts.loading import load_program
from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.errors import ArtifactError, OutputError, UsageError
from fct_infer.export import Options, export_file, export_transformation
from fct_infer.export.user_files import default_bundle, preprocessing_of
from fct_infer.reference import apply_float64

PREPROCESSING = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


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
    assert report.notes == ("inputs: old_feature -> old, side_info -> side",)
    old, side = random_rows(9, 8), random_rows(9, 5, 1)
    wanted = apply_float64(load_program(h, trust=True), old, side)
    np.testing.assert_allclose(apply_float64(load_program(report.bundle), old, side), wanted)


def test_an_image_model_is_known_by_a_trial_run_and_what_was_assumed_is_said(backbone):
    report = export_file(backbone)
    assert (report.manifest.kind, report.manifest.inputs) == ("backbone", {"image": (3, 224, 224)})
    assert [file.target for file in report.manifest.files] == ["onnx", "torchscript"]
    assert report.next_command == f"fct-embed IMAGES --model {report.bundle} -o GALLERY"
    notes = " ".join(report.notes)
    assert "exported for 3x224x224; --input-shape sets it" in notes
    assert "--kind side-information" in notes
    assert "nothing tells how its images are prepared" in notes


def test_what_is_given_is_not_guessed(backbone, tmp_path):
    report = export_file(
        backbone,
        tmp_path / "b",
        Options(("onnx",)),
        kind="side-information",
        input_shapes=[(3, 32, 32)],
        preprocessing=PREPROCESSING,
    )
    assert (report.manifest.kind, report.manifest.inputs) == ("side-information", {"image": (3, 32, 32)})
    assert report.manifest.preprocessing == PREPROCESSING
    assert not report.notes


def test_a_map_of_the_old_embedding_alone_is_a_transformation(tmp_path):
    path = scripted(nn.Sequential(nn.Linear(6, 4)).eval(), tmp_path / "map.pt")
    assert export_file(path).manifest.inputs == {"old": (6,)}


def test_onnx_files_and_bundles_are_exported_onward(tmp_path):
    export_transformation(linear_map(6, 4), tmp_path / "first")
    for path in (tmp_path / "first", tmp_path / "first" / "model.onnx"):
        report = export_file(path, tmp_path / f"{path.name}.again", Options(("torchscript",)))
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
        ("backbone", [(4, 32, 32)], r"backbone\.pt: does not run on inputs of shape 4x32x32"),
        ("side-information", [(32,)], r"backbone\.pt: does not run on images, wanted a side-information model"),
        ("transformation", [(3, 32, 32)], r"takes rows; give the width of each input"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(backbone, kind, shapes, message):
    with pytest.raises((ArtifactError, UsageError), match=message):
        export_file(backbone, kind=kind, input_shapes=shapes)


def test_an_image_model_forced_to_be_a_transformation_is_one_of_single_pixels_and_says_so(backbone):
    report = export_file(backbone, kind="transformation")
    assert (report.manifest.kind, report.manifest.inputs) == ("transformation", {"old": (3,)})
    assert "convolution with stride [2, 2]" in report.notes[-1]


def test_a_transformation_is_no_backbone(h, tmp_path):
    with pytest.raises(ArtifactError, match=r"h\.pt: does not run on images, wanted a backbone model"):
        export_file(h, kind="backbone")
    bundle = export_file(h).bundle
    for path in (bundle, bundle / "model.onnx"):
        with pytest.raises(ArtifactError, match="takes old, side, which makes it a transformation, not a backbone"):
            export_file(path, tmp_path / "b", kind="backbone")


def test_an_onnx_image_model_tells_its_size_but_not_its_kind(backbone, tmp_path):
    bundle = export_file(backbone, tmp_path / "b", Options(("onnx",)), input_shapes=[(3, 32, 32)]).bundle
    onnx_file = bundle / "model.onnx"
    report = export_file(onnx_file, tmp_path / "again", Options(("onnx",)))
    assert (report.manifest.kind, report.manifest.inputs) == ("backbone", {"image": (3, 32, 32)})
    assert "--kind side-information" in report.notes[0]
    forced = export_file(onnx_file, tmp_path / "side", Options(("onnx",)), kind="side-information")
    assert forced.manifest.kind == "side-information"
    with pytest.raises(ArtifactError, match="takes image, which makes it an image model, not a transformation"):
        export_file(onnx_file, tmp_path / "h", kind="transformation")


def test_an_export_archive_tells_its_size(tmp_path):
    path = exported(randomized(TinyBackbone(7)), tmp_path / "b.pt2", torch.zeros(2, 3, 24, 20))
    report = export_file(path)
    assert report.manifest.inputs == {"image": (3, 24, 20)}
    assert not any("image size" in note for note in report.notes)


def test_a_transformation_outside_of_the_core_says_why(tmp_path):
    path = scripted(GatedTransformation(8, 5, 6).eval(), tmp_path / "h.pt")
    report = export_file(path)
    assert [file.target for file in report.manifest.files] == ["onnx"]
    again = export_file(report.bundle / "model.onnx", tmp_path / "again")
    for note, operations in (
        (report.notes[-1], ("aten.native_layer_norm.default", "aten.sigmoid.default")),
        (again.notes[-1], ("(LayerNormalization)", "(Sigmoid)")),
    ):
        assert note.startswith("no program can hold this transformation, so it gets no file for the core: ")
        for operation in operations:
            assert operation in note


def test_a_bundle_that_cannot_be_converted_onward_says_so(tmp_path):
    path = scripted(GatedTransformation(8, 5, 6).eval(), tmp_path / "h.pt")
    bundle = export_file(path, options=Options(("torchscript",))).bundle
    with pytest.raises(ArtifactError, match=r"h\.bundle: has no ONNX file to convert onward; export from the source"):
        export_file(bundle, tmp_path / "again")


def test_calibration_rows_come_from_a_gallery(h, tmp_path):
    write_gallery(tmp_path / "g", (200, 100), old_dim=8, side_dim=5)
    report = export_file(h, options=Options(("core", "onnx")), calibration=tmp_path / "g", calibration_rows=50)
    assert {file.parity.real_rows for file in report.manifest.files} == {50}


def test_the_default_bundle_lies_beside_the_file():
    for path, bundle in (("a/h.pt", "a/h.bundle"), ("h.onnx", "h.bundle"), ("h.bundle", "h.exported.bundle")):
        assert str(default_bundle(Path(path))) == bundle


IMAGE, ROWS = {"image": (3, 20, 16)}, {"old": (8,)}


@pytest.mark.parametrize(
    ("inputs", "mean", "std", "resize", "message"),
    [
        (ROWS, (0.5,) * 3, (0.2,) * 3, None, "are for models that take images"),
        (IMAGE, (0.5,) * 3, None, None, "go together, 3 numbers each"),
        (IMAGE, None, None, 32, "go together"),
        (IMAGE, (0.5,), (0.2,), None, "go together, 3 numbers each"),
        (IMAGE, (0.5,) * 3, (0.2, 0.2, 0.0), None, "the latter positive"),
        (IMAGE, (0.5,) * 3, (0.2,) * 3, 19, "--image-resize 19 is smaller than the model's images, 20x16"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(inputs, mean, std, resize, message):
    with pytest.raises(UsageError, match=message):
        preprocessing_of(inputs, mean, std, resize)


def test_preprocessing_takes_its_size_from_the_model():
    assert preprocessing_of(IMAGE, None, None) is None
    found = preprocessing_of(IMAGE, (0.5,) * 3, (0.2,) * 3, 24)
    assert found == Preprocessing((20, 16), (0.5,) * 3, (0.2,) * 3, 24)


SAID = ((0.5,) * 3, (0.2,) * 3)


def test_a_crop_fraction_says_the_shorter_side_and_interpolation_is_kept():
    found = preprocessing_of(IMAGE, *SAID, crop_fraction=0.875, interpolation="bicubic")
    assert found == Preprocessing((20, 16), *SAID, 22, "bicubic")
    with pytest.raises(UsageError, match="--image-crop-fraction 0 is no share"):
        preprocessing_of(IMAGE, *SAID, crop_fraction=0)


def test_without_mean_and_std_what_is_known_is_changed_only_where_it_was_said():
    known = Preprocessing((20, 16), *SAID, 24, "lanczos")
    assert preprocessing_of(IMAGE, known=known) == known
    assert preprocessing_of(IMAGE, resize=30, known=known) == replace(known, resize=30)
    assert preprocessing_of(IMAGE, crop_fraction=1.0, known=known) == replace(known, resize=20)
    assert preprocessing_of(IMAGE, interpolation="bicubic", known=known) == replace(known, interpolation="bicubic")
    assert preprocessing_of(IMAGE, *SAID, known=known) == Preprocessing((20, 16), *SAID)
    with pytest.raises(UsageError, match="go together"):
        preprocessing_of(IMAGE, interpolation="bicubic")


def test_the_source_is_not_overwritten(h):
    export_file(h)
    with pytest.raises(OutputError, match="exists already"):
        export_file(h)
    export_file(h, options=Options(force=True))
    with pytest.raises(UsageError, match="is the model"):
        export_file(h, h, Options(force=True))
    with pytest.raises(UsageError, match="holds the model"):
        export_file(h, h.parent, Options(force=True))
    assert load_program(h, trust=True).new_dim == 6
