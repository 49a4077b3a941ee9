from __future__ import annotations

import json

import pytest
import torch

from fct_infer.errors import ArtifactError
from fct_infer.training.models.base import Backbone, TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.models.registry import ModelSpec

SPEC = ModelSpec("resnet", {"embedding_dim": 8, "widths": [4], "blocks": [1]})


@pytest.fixture
def saved(tmp_path):
    module = SPEC.build(Backbone)
    module(torch.rand(4, 3, 8, 8))  # moves the running statistics, which must be kept too
    save_checkpoint(tmp_path / "v1.0", module, SPEC, {"epochs": 3})
    return tmp_path / "v1.0", module.eval()


def test_a_model_comes_back_as_it_was(saved):
    path, module = saved
    loaded, checkpoint = load_checkpoint(path, Backbone)
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(loaded(images), module(images))
    assert not loaded.training
    assert checkpoint.model == SPEC
    assert checkpoint.config == {"epochs": 3}


def test_two_files_are_written_beside_each_other(saved):
    path, _ = saved
    assert sorted(file.name for file in path.parent.iterdir()) == ["v1.0.json", "v1.0.safetensors"]


def test_damaged_weights_are_noticed(saved):
    path, _ = saved
    file = path.with_name("v1.0.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"v1\.0\.safetensors: does not match the sha256"):
        load_checkpoint(path, Backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2"),
        ({"model": {"name": "resnet", "arguments": {"embedding_dim": 9}}}, "does not fit"),
        ({"model": {"name": "resnet"}}, "not a checkpoint description"),
        ({"model": {"name": "unknown", "arguments": {}}}, "unknown model"),
        ({"model": 3}, "not a checkpoint description"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved, change, message):
    path, _ = saved
    file = path.with_name("v1.0.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        load_checkpoint(path, Backbone)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_a_description_that_is_no_json_object_is_refused(saved, text):
    path, _ = saved
    path.with_name("v1.0.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"v1\.0\.json"):
        load_checkpoint(path, Backbone)


def test_a_model_of_another_kind_is_refused(saved):
    path, _ = saved
    with pytest.raises(ArtifactError, match="wanted a TransformationModule"):
        load_checkpoint(path, TransformationModule)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.json: no such file"):
        load_checkpoint(tmp_path / "none", Backbone)
