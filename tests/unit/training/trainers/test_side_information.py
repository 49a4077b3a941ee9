"""The kinds of side-information."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training import TINY_MODEL, trained

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.training.data.sources import DataConfig, open_data
from fct_infer.training.features.embedding import embed_data
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.checkpoints import load_checkpoint
from fct_infer.training.models.decoder import Decoder
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.trainers.autoencoder import AutoencoderConfig, train_autoencoder
from fct_infer.training.trainers.side_information_run import run_side_information


def config(kind: str | None, **changes):
    values = {
        "data": {"source": "support.training:NoisyDataset"},
        "model": TINY_MODEL,
        "augmentation": {"noise": 0.1},
        "training": {"epochs": 2, "learning_rate": 0.01, "batch_size": 20, "optimizer": "adam"},
    } | changes
    return values if kind is None else values | {"kind": kind}


@pytest.mark.parametrize("size", [(16, 16), (20, 12), (33, 33)])
def test_a_decoder_returns_images_of_the_size_asked_for(size):
    assert Decoder(5, size, 32)(torch.rand(3, 5)).shape == (3, 3, *size)


def test_an_autoencoders_embedding_tells_the_colour_of_the_image():
    """A linear map from embeddings finds the mean colour, which no label tells."""
    data = open_data(DataConfig("glyphs", arguments={"classes": 4, "images_per_class": 50}))
    model = ModelSpec("resnet", {"embedding_dim": 16, "widths": [8, 16], "blocks": [1, 1], "stem_stride": 2})
    training = TrainingConfig(8, 5e-3, batch_size=20, optimizer="adam")
    done = train_autoencoder(data, AutoencoderConfig(model, training, decoder_channels=32))
    assert done.losses[-1] < 0.5 * done.losses[0]
    embeddings, _ = embed_data(done.backbone, data)
    colours = data.images.mean(axis=(1, 2)) / 255
    inputs = np.hstack([embeddings, np.ones((len(embeddings), 1), np.float32)])
    weights = np.linalg.lstsq(inputs[::2], colours[::2], rcond=None)[0]
    errors = ((inputs[1::2] @ weights - colours[1::2]) ** 2).mean() / colours[1::2].var()
    assert errors < 0.2


@pytest.mark.parametrize("kind", [None, "simclr", "autoencoder", "classifier"])
def test_every_kind_leaves_a_checkpoint_that_embeds(kind, tmp_path):
    result = trained(run_side_information, config(kind), tmp_path / "run")
    model, checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint", Backbone)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, result["embedding_dim"])
    assert checkpoint.config["image_shape"] == [3, 16, 16]
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("# fct-train side-information\n")


def test_none_is_the_old_model_itself(tmp_path):
    trained(run_side_information, config("classifier"), tmp_path / "old")
    none = {"kind": "none", "old": str(tmp_path / "old")}
    trained(run_side_information, none, tmp_path / "side")
    assert (tmp_path / "side" / "checkpoint.safetensors").read_bytes() == (
        tmp_path / "old" / "checkpoint.safetensors"
    ).read_bytes()
    assert isinstance(load_checkpoint(tmp_path / "side" / "checkpoint", Backbone)[0], Backbone)
    with pytest.raises(
        ArtifactError, match=r"checkpoint\.safetensors: no such file; is the old model's run finished\?"
    ):
        trained(run_side_information, {"kind": "none", "old": str(tmp_path)}, tmp_path / "other")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (config("byol"), "kind: got 'byol', wanted 'simclr'"),
        (config("autoencoder", temperature=1), "temperature: unknown key"),
        (config("simclr", temprature=1), "temprature: unknown key; did you mean 'temperature'"),
        ({"kind": "none"}, "old: missing"),
        ({"kind": "simclr"}, "model, training, augmentation, data: missing"),
    ],
)
def test_each_kind_has_its_own_keys(values, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        trained(run_side_information, values, tmp_path / "run")
    assert not (tmp_path / "run").exists()
