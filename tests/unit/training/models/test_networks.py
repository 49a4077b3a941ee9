"""The papers' networks, and models of other people."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from support.training import DropoutNet
from torch import nn

from fct_infer.errors import ArtifactError, MissingExtraError, UsageError
from fct_infer.training.models.base import Backbone, Standardize, UnitBackbone
from fct_infer.training.models.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.models.registry import ModelSpec


@pytest.mark.parametrize(
    ("name", "dim", "parameters"),
    [  # published sizes, less the 1000-way classifiers of 512, 2048 and 1280 inputs
        ("resnet18", 512, 11_689_512 - 513_000),
        ("resnet34", 512, 21_797_672 - 513_000),
        ("resnet50", 2048, 25_557_032 - 2_049_000),
        ("resnet101", 2048, 44_549_160 - 2_049_000),
        ("mobilenet_v2", 1280, 3_504_872 - 1_281_000),
    ],
)
def test_a_network_has_the_published_number_of_parameters(name, dim, parameters):
    with torch.device("meta"):
        model = ModelSpec(name).build(Backbone)
    assert model.embedding_dim == dim
    assert sum(each.numel() for each in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize(("stem", "size"), [("small", 32), ("imagenet", 64)])
def test_an_embedding_of_any_width_is_the_pooled_last_map_after_relu(name, stem, size):
    torch.manual_seed(0)
    model = ModelSpec(name, {"embedding_dim": 24, "stem": stem}).build(Backbone).eval()
    embeddings = model(torch.rand(2, 3, size, size))
    assert embeddings.shape == (2, model.embedding_dim) == (2, 24)
    assert embeddings.min() >= 0 and embeddings.std() > 0


def test_the_small_stem_keeps_the_resolution():
    sizes = {}
    for stem in ("small", "imagenet"):
        model = ModelSpec("resnet18", {"stem": stem}).build(Backbone).eval()
        model.layer1.register_forward_hook(lambda *args, stem=stem: sizes.update({stem: args[2].shape[2]}))
        model(torch.rand(1, 3, 32, 32))
    assert sizes == {"small": 32, "imagenet": 8}


def test_parameters_carry_torchvisions_names():
    names = ModelSpec("resnet50").build(Backbone).state_dict()
    for name in ("conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight"):
        assert name in names
    assert "standardize.mean" not in names


def test_images_are_standardized_as_imagenets_weights_want():
    grey = (
        torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
        + 0.5 * torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
    )
    assert torch.allclose(Standardize()(grey), torch.full((1, 3, 1, 1), 0.5))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("resnet18", {"stem": "large"}), "stem: got 'large'"),
        (ModelSpec("mobilenet_v2", {"stem": "large"}), "stem: got 'large'"),
        (ModelSpec("resnet20"), r"unknown model 'resnet20'; did you mean 'resnet\d+'"),
        (ModelSpec("resnet", {"embeding_dim": 3}), "unknown argument 'embeding_dim'; did you mean 'embedding_dim'"),
        (
            ModelSpec("resnet", {"embedding_dim": "three"}),
            r"'resnet': embedding_dim: got 'three' \(str\), wanted an int",
        ),
        (ModelSpec("resnet", {"embedding_dim": 3, "widths": [8, "x"]}), r"widths\[1\]: got 'x'"),
        (ModelSpec("support.training:Nothing"), "support.training:Nothing: cannot be imported"),
        (ModelSpec("no_such_module:f"), "no_such_module:f: cannot be imported"),
        (ModelSpec("os:getcwd"), "os:getcwd: returns a str, wanted a torch.nn.Module"),
        (ModelSpec("support.training:DropoutNet", {"dim": 3}), "cannot be built from"),
    ],
)
def test_what_cannot_be_built_is_named(spec, message):
    with pytest.raises(UsageError, match=message):
        spec.build(Backbone)


def test_a_users_function_is_a_backbone_whatever_the_shape_of_its_embeddings():
    spec = ModelSpec("support.training:DropoutNet", {"embedding_dim": 5})
    model = spec.build(Backbone).eval()
    assert isinstance(model.module, DropoutNet)
    assert model.embedding_dim == 5 and model(torch.rand(2, 3, 40, 40)).shape == (2, 5)


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="timm is not installed"):
        ModelSpec("timm/resnet18").build(Backbone)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins with the interfaces of timm and torchvision."""
    timm = types.ModuleType("timm")
    timm.create_model = lambda name, num_classes, width: nn.Sequential(
        nn.Conv2d(3, width, 3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    models = types.ModuleType("torchvision.models")

    class Classified(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(6, 1000)

        def forward(self, images):
            return self.fc(self.body(images))

    models.get_model = lambda name, **arguments: Classified()
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.parametrize(
    ("spec", "dim"), [(ModelSpec("timm/some_net", {"width": 7}), 7), (ModelSpec("torchvision/resnet18"), 6)]
)
def test_models_of_timm_and_torchvision_come_without_their_classifier(libraries, spec, dim):
    model = spec.build(Backbone)
    assert model.training
    assert model.embedding_dim == dim and model(torch.rand(2, 3, 32, 32)).shape == (2, dim)


def test_unit_embeddings_have_length_one_and_come_back_from_a_checkpoint(tmp_path):
    inner = {"name": "resnet", "arguments": {"embedding_dim": 8, "widths": [8], "blocks": [1]}}
    spec = ModelSpec("unit", {"backbone": inner})
    model = spec.build(Backbone).eval()
    assert isinstance(model, UnitBackbone)
    images = torch.rand(3, 3, 16, 16)
    assert torch.allclose(model(images).norm(dim=1), torch.ones(3))
    save_checkpoint(tmp_path / "m", model, spec, {})
    assert torch.equal(load_checkpoint(tmp_path / "m", Backbone)[0](images), model(images))


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_runs_foreign_code_only_when_trusted(tmp_path, nested):
    spec = ModelSpec("support.training:DropoutNet", {"embedding_dim": 5})
    spec = ModelSpec("unit", {"backbone": {"name": spec.name, "arguments": spec.arguments}}) if nested else spec
    save_checkpoint(tmp_path / "m", spec.build(Backbone), spec, {})
    with pytest.raises(UsageError, match=r"m\.json: building .* runs code that is not this project"):
        load_checkpoint(tmp_path / "m", Backbone)
    assert load_checkpoint(tmp_path / "m", Backbone, trust_code=True)[0].embedding_dim == 5


def test_a_checkpoint_of_another_networks_weights_is_refused(tmp_path):
    save_checkpoint(tmp_path / "m", ModelSpec("mobilenet_v2").build(Backbone), ModelSpec("resnet18"), {})
    with pytest.raises(ArtifactError, match="does not fit"):
        load_checkpoint(tmp_path / "m", Backbone)
