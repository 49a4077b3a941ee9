"""This project's own checkpoints through ``fct-export``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.outputs import assert_within, rows_for
from support.torch_models import outputs, randomized

from fct_infer import load_embedder, load_transformation
from fct_infer.artifacts.bundle import open_bundle
from fct_infer.cli.export import command
from fct_infer.errors import ArtifactError, FctError, UsageError
from fct_infer.export.checkpoints import open_named
from fct_infer.training.models.base import Backbone, TransformationModule
from fct_infer.training.models.checkpoints import save_checkpoint
from fct_infer.training.models.registry import ModelSpec

RESNET = ModelSpec("resnet", {"embedding_dim": 8, "widths": [4], "blocks": [1]})
PAPER = ModelSpec("paper", {"old_dim": 8, "side_dim": 5, "new_dim": 6})


def fct_export(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The modules, and their checkpoints ``backbone``, ``untold`` and ``h``."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    backbone, h = randomized(RESNET.build(Backbone)), randomized(PAPER.build(TransformationModule))
    save_checkpoint(folder / "backbone", backbone, RESNET, {"image_shape": [3, 16, 12]})
    save_checkpoint(folder / "untold", backbone, RESNET, {})
    save_checkpoint(folder / "h", h, PAPER, {"epochs": 1})
    return backbone, h, folder


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_transformation(models, tmp_path, suffix):
    _, h, folder = models
    done = fct_export(folder / f"h{suffix}", "-o", tmp_path / "h", "--targets", "core,onnx")
    assert done.exit_code == 0, done.output
    assert "code" not in done.stderr  # weights are data
    rows = rows_for({"old": 8, "side": 5}, 9)
    for backend in ("core", "onnxruntime"):
        found = load_transformation(tmp_path / "h", "fp32", backend=backend)(*rows.values())
        assert_within(found, outputs(h, *rows.values()), "fp32")
    sha256 = json.loads((folder / "h.json").read_text())["sha256"]
    source = open_bundle(tmp_path / "h").manifest.source
    assert (source.name, source.sha256) == (f"h{suffix}", sha256)


@pytest.mark.parametrize(("name", "extra"), [("backbone", ()), ("untold", ("--input-shape", "3x16x12"))])
def test_a_backbone_and_how_its_images_are_prepared(models, tmp_path, name, extra):
    backbone, _, folder = models
    done = fct_export(folder / f"{name}.safetensors", "-o", tmp_path / "b", "--targets", "onnx", *extra)
    assert done.exit_code == 0, done.output
    embed = load_embedder(tmp_path / "b")
    assert (embed.kind, embed.image_shape, embed.embedding_dim) == ("backbone", (3, 16, 12), 8)
    assert (embed.preprocessing.size, embed.preprocessing.mean, embed.preprocessing.std) == (
        (16, 12), (0.0,) * 3, (1.0,) * 3,
    )  # fmt: skip
    images = np.random.default_rng(0).random((5, 3, 16, 12), np.float32)
    assert_within(embed(images), outputs(backbone, images), "fp32")


@pytest.mark.parametrize(
    ("config", "resize", "interpolation"),
    [
        ({"data": {"source": "folder"}}, 18, "bilinear"),  # as runs from before these were settings say it
        ({"data": {"source": "folder", "interpolation": "bicubic", "crop_fraction": 1.0}}, 16, "bicubic"),
        ({"data": {"source": "folder"}, "validation": {"source": "folder", "crop_fraction": 0.5}}, 32, "bilinear"),
        ({"data": {"source": "glyphs", "crop_fraction": 0.5}, "validation": 0.1}, None, "bilinear"),
    ],
)
def test_images_are_prepared_as_they_were_when_the_model_was_judged(models, tmp_path, config, resize, interpolation):
    backbone, _, _ = models
    save_checkpoint(tmp_path / "m", backbone, RESNET, {"image_shape": [3, 16, 16]} | config)
    found = open_named(tmp_path / "m.safetensors", None, []).preprocessing
    assert (found.resize, found.interpolation) == (resize, interpolation)


def test_settings_of_images_that_do_not_exist_are_named(models, tmp_path):
    backbone, _, _ = models
    data = {"source": "folder", "interpolation": "nearest"}
    save_checkpoint(tmp_path / "m", backbone, RESNET, {"image_shape": [3, 16, 16], "data": data})
    with pytest.raises(UsageError, match=r"data\.interpolation: got 'nearest'"):
        open_named(tmp_path / "m.safetensors", None, [])


def test_its_kind_can_be_forced(models, tmp_path):
    _, _, folder = models
    done = fct_export(
        folder / "backbone.safetensors", "-o", tmp_path / "b", "--kind", "side-information", "--targets", "onnx"
    )
    assert done.exit_code == 0, done.output
    assert open_bundle(tmp_path / "b").manifest.kind == "side-information"


@pytest.mark.parametrize(
    ("name", "kind", "shapes", "error", "message"),
    [
        ("untold.safetensors", None, [], UsageError, r"does not tell its image size; give --input-shape 3x32x32"),
        ("untold.json", None, [(32,)], UsageError, "does not tell its image size"),
        ("h.safetensors", "backbone", [], ArtifactError, r"h\.safetensors: is a PaperTransformation, not a backbone"),
        ("backbone.json", "transformation", [], ArtifactError, "is a ResNet, not a transformation"),
        ("missing.safetensors", None, [], ArtifactError, "missing"),
    ],
)
def test_what_does_not_fit_is_refused(models, name, kind, shapes, error, message):
    _, _, folder = models
    with pytest.raises(error, match=message):
        open_named(folder / name, kind, shapes)


def test_a_safetensors_file_without_its_description_is_refused(models, tmp_path: Path):
    _, _, folder = models
    (tmp_path / "lonely.safetensors").write_bytes((folder / "h.safetensors").read_bytes())
    with pytest.raises(FctError, match=r"lonely\.json is not beside it"):
        open_named(tmp_path / "lonely.safetensors", None, [])


def test_the_folder_of_a_run_stands_for_its_model(models, tmp_path):
    _, _, folder = models
    for suffix in (".safetensors", ".json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / f"checkpoint{suffix}").write_bytes((folder / f"h{suffix}").read_bytes())
    done = fct_export(tmp_path / "run", "--targets", "core")
    assert done.exit_code == 0, done.output
    digests = [open_named(path, None, []).model.program.digest for path in (tmp_path / "run", folder / "h.json")]
    assert digests[0] == digests[1] == load_transformation(tmp_path / "run.bundle").digest


def test_a_model_of_other_peoples_code_is_built_only_if_it_is_trusted(tmp_path):
    spec = ModelSpec("support.training:DropoutNet", {"embedding_dim": 6})
    save_checkpoint(tmp_path / "theirs", spec.build(Backbone), spec, {"image_shape": [3, 16, 16]})
    line = (tmp_path / "theirs.safetensors", "-o", tmp_path / "b", "--targets", "onnx")
    with pytest.raises(UsageError, match=r"support\.training:DropoutNet.*--trust-code"):
        CliRunner().invoke(command, [*map(str, line)], catch_exceptions=False)
    done = fct_export(*line, "--trust-code")
    assert done.exit_code == 0, done.output
    assert load_embedder(tmp_path / "b").embedding_dim == 6
