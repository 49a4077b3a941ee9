"""From images to cached embeddings: the same views for every model, nothing computed twice, nothing mixed up."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import NoisyDataset, in_child, trained

from fct_infer.errors import ArtifactError, FctError, InputError, OutputError, UsageError
from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.data.sources import DataConfig, open_data
from fct_infer.training.features import from_images
from fct_infer.training.features.embedding import embed
from fct_infer.training.features.from_images import ImageFeatures, Views
from fct_infer.training.features.image_models import ImageModel, open_image_model
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.checkpoints import save_checkpoint
from fct_infer.training.models.classifiers import LinearClassifier
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.trainers.transformation_run import run_transformation

COUNT, PLAIN = 50, Views()
GLYPHS = {"source": "glyphs", "arguments": {"classes": 4, "images_per_class": 15}}


def pixels(name: str = "pixels", sha256: str = "1", scale: float = 1.0) -> ImageModel:
    """A model whose embedding is the image, so that a test sees what it was shown."""

    def embed_batch(images: torch.Tensor) -> np.ndarray:
        assert images.dtype == torch.float32
        return scale * images[:, :, ::4, ::4].flatten(1).numpy()

    return ImageModel(name, sha256, embed_batch)


@pytest.fixture
def images() -> LabelledImages:
    rng = np.random.default_rng(0)
    return LabelledImages(rng.integers(0, 256, (COUNT, 16, 16, 3), np.uint8), np.arange(COUNT) % 3, ("a", "b", "c"))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(from_images, "IMAGES_PER_SHARD", 20)
    monkeypatch.setattr(from_images, "BATCH_SIZE", 8)


def columns_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        each.name: np.concatenate([np.load(file) for file in sorted(each.iterdir())])
        for each in folder.iterdir()
        if each.is_dir()
    }


def computed(folder: Path, data, models=None, views=PLAIN, on_images=None) -> dict[str, np.ndarray]:
    features = ImageFeatures(folder, data, models or {"old": [pixels()], "new": [pixels()]}, views, 0, {"of": "a test"})
    features.begin()
    features.compute(on_images)
    return columns_of(folder)


def test_without_views_the_images_themselves_are_embedded(tmp_path, images):
    told = []
    columns = computed(tmp_path / "f", images, on_images=lambda done, whole: told.append((done, whole)))
    expected = images.images[:, ::4, ::4].transpose(0, 3, 1, 2).reshape(COUNT, -1) / 255
    np.testing.assert_allclose(columns["old"], expected, rtol=1e-6)
    np.testing.assert_array_equal(columns["labels"], images.labels)
    np.testing.assert_array_equal(columns["groups"], np.arange(COUNT))
    assert told == sorted(told) and told[-1] == (COUNT, COUNT)


@pytest.mark.parametrize("source", ["in memory", "loaded"])
def test_all_models_see_the_same_views_and_every_view_is_another(tmp_path, images, source):
    data = images if source == "in memory" else open_data(DataConfig("support.training:NoisyDataset"))
    views = Views(
        views=3, augmentation=Augmentation(rotation=20, brightness=0.1) if source == "in memory" else Augmentation()
    )
    models = {"old": [pixels()], "side": [pixels(), pixels(scale=2.0)], "new": [pixels()]}
    columns, whole = computed(tmp_path / "f", data, models, views), len(data.labels)
    np.testing.assert_array_equal(columns["old"], columns["new"])
    np.testing.assert_array_equal(columns["side"], np.hstack([columns["old"], 2 * columns["old"]]))
    np.testing.assert_array_equal(np.bincount(columns["groups"]), [3] * whole)
    np.testing.assert_array_equal(columns["labels"], data.labels[columns["groups"]])
    assert len(np.unique(columns["old"], axis=0)) == 3 * whole


def test_what_is_done_is_not_repeated_and_the_rest_is_the_same(tmp_path, images):
    views, calls = Views(views=2, augmentation=Augmentation(noise=0.1)), [0]
    whole = computed(tmp_path / "whole", images, views=views)
    sound = pixels()

    def failing(batch):
        calls[0] += 1
        if calls[0] == 10:  # in the second shard
            raise KeyboardInterrupt
        return sound.embed(batch)

    models = {"old": [ImageModel("failing", "1", failing)], "new": [sound]}
    with pytest.raises(KeyboardInterrupt):
        computed(tmp_path / "f", images, models, views)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "f").rglob("*.npy")}
    assert len(kept) == 4
    again = computed(tmp_path / "f", images, views=views)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for name, column in whole.items():
        np.testing.assert_array_equal(again[name], column)


def test_several_processes_share_the_shards(tmp_path, images):
    views = Views(views=2, augmentation=Augmentation(noise=0.1))
    whole = computed(tmp_path / "whole", images, views=views)
    for rank in range(2):
        each = ImageFeatures(tmp_path / "f", images, {"old": [pixels()], "new": [pixels()]}, views, 0, {"of": "a test"})
        each.begin()
        each.compute(rank=rank, processes=2)
    for name, column in columns_of(tmp_path / "f").items():
        np.testing.assert_array_equal(column, whole[name])


def test_features_of_another_model_are_dropped(tmp_path, images):
    computed(tmp_path / "f", images)
    columns = computed(tmp_path / "f", images, {"old": [pixels(sha256="2", scale=3.0)], "new": [pixels()]})
    np.testing.assert_allclose(columns["old"], 3 * columns["new"], rtol=1e-6)


def test_a_broken_image_is_left_out_of_every_column(tmp_path, monkeypatch):
    def broken(self, row):
        if row in (3, 21):
            raise InputError(f"image {row} is broken")
        return torch.full((3, 16, 16), row / 100), 0

    monkeypatch.setattr(NoisyDataset, "__getitem__", broken)
    columns = computed(tmp_path / "f", open_data(DataConfig("support.training:NoisyDataset", on_error="skip")))
    rows = [row for row in range(40) if row not in (3, 21)]
    np.testing.assert_array_equal(columns["groups"], rows)
    np.testing.assert_array_equal(columns["labels"], [row % 4 for row in rows])
    np.testing.assert_allclose(columns["new"][:, 0] * 100, rows, atol=1e-4)


def test_what_does_not_fit_float16_is_named(tmp_path, images):
    models = {"old": [pixels("runs/old", scale=1e6)], "new": [pixels()]}
    with pytest.raises(InputError, match=r"runs/old: the float16 embedding of image 0 holds NaN or infinity"):
        computed(tmp_path / "f", images, models, Views(dtype="float16"))


def backbone(folder: Path, dim: int, seed: int, classes: tuple[str, ...] = ()) -> str:
    spec = ModelSpec("resnet", {"embedding_dim": dim, "widths": [4], "blocks": [1]})
    torch.manual_seed(seed)
    save_checkpoint(folder / "checkpoint", spec.build(Backbone), spec, {"image_shape": [3, 32, 32]})
    classifier = ModelSpec("linear_classifier", {"dim": dim, "classes": 4})
    save_checkpoint(folder / "classifier", classifier.build(LinearClassifier), classifier, {"class_names": classes})
    return str(folder)


@pytest.fixture
def models(tmp_path) -> dict[str, str | list[str]]:
    names = list(open_data(DataConfig(**GLYPHS)).class_names)
    found = {name: backbone(tmp_path / name, 6, seed, names) for seed, name in enumerate(("old", "s1", "s2", "new"))}
    return {"old": found["old"], "side": [found["s1"], found["s2"]], "new": found["new"]}


def config(models, **changes) -> dict:
    return {
        "data": {"images": GLYPHS, "views": 2, "augmentation": {"rotation": 8}},
        "models": models,
        "model": {"name": "paper", "arguments": {"inner_dim": 8}},
        "training": {"epochs": 2, "batch_size": 16, "warmup_epochs": 0},
        "validation": 0.2,
    } | changes


def test_a_run_embeds_its_images_and_holds_out_whole_images(tmp_path, models):
    told = []
    result = trained(
        lambda values, run: run_transformation(values, run, None, lambda *each: told.append(each)),
        config(models),
        tmp_path / "h",
    )
    assert told[-1] == (60, 60)
    assert (result["training_rows"], result["validation_rows"]) == (96, 24)
    assert columns_of(tmp_path / "h" / "features")["side"].shape == (120, 12)
    described = json.loads((tmp_path / "h" / "checkpoint.json").read_text())
    assert described["model"]["arguments"]["model"]["arguments"]["side_dim"] == 12
    # The same again from what it cached.
    folder = tmp_path / "h" / "features"
    cached = {name: str(folder / name) for name in ("old", "side", "new", "groups")}
    values = config(models, data=cached)
    del values["models"]
    again = trained(run_transformation, values, tmp_path / "again")
    assert {**again, "checkpoint": ""} == {**result, "checkpoint": ""}


def test_a_run_killed_while_it_embeds_goes_on(tmp_path, models):
    whole = trained(run_transformation, config(models), tmp_path / "whole")

    def die(done: int, _whole: int) -> None:
        if done > 30:
            import os

            os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        trained(lambda values, run: run_transformation(values, run, None, die), config(models), tmp_path / "h")

    assert in_child(killed) == signal.SIGKILL
    assert len(list((tmp_path / "h" / "features" / "new").iterdir())) == 1
    again = trained(run_transformation, config(models), tmp_path / "h")
    assert {**again, "checkpoint": ""} == {**whole, "checkpoint": ""}


def test_a_model_replaced_while_a_run_is_unfinished_is_noticed(tmp_path, models):
    def stop(progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(lambda values, run: run_transformation(values, run, stop), config(models), tmp_path / "h")
    backbone(Path(models["old"]), 6, seed=77)
    with pytest.raises(OutputError, match="of other images or models"):
        trained(run_transformation, config(models), tmp_path / "h")
    assert trained(run_transformation, config(models), tmp_path / "h", restart=True)["training_rows"] == 96


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": {"old": "nowhere", "new": "nowhere"}}, ArtifactError, "nowhere"),
        ({"models": {"new": "nowhere"}}, UsageError, r"models\.old: missing"),
        ({"models": None}, UsageError, "models: got None"),
        ({"data": {"images": {"source": "folder", "path": "nowhere"}}}, UsageError, "nowhere: no such folder"),
        ({"data": {"images": GLYPHS, "view": 2}}, UsageError, r"data\.view: unknown key; did you mean 'views'"),
        ({"data": {"old": "x.npy", "new": "y.npy"}}, UsageError, r"models: they embed data\.images"),
        ({"data": {"images": GLYPHS, "views": -1}}, UsageError, r"data\.views: got -1"),
        (
            {"data": {"images": GLYPHS, "augmentation": {"flip": 0.5}}},
            UsageError,
            r"data\.augmentation: changes nothing",
        ),
    ],
)
def test_mistakes_are_named_and_leave_no_folder(tmp_path, models, change, error, message):
    with pytest.raises(error, match=message):
        trained(run_transformation, config(models) | change, tmp_path / "h")
    assert not (tmp_path / "h").exists()


def test_fastfills_labels_are_the_classifiers(tmp_path, models):
    fastfill = {"loss": "fastfill", "classifier": models["new"]}
    assert trained(run_transformation, config(models, **fastfill), tmp_path / "h")["best_epoch"] in (1, 2)
    others = backbone(tmp_path / "others", 6, 5, ("x", "y", "z", "w"))
    with pytest.raises(UsageError, match=r"has other classes than data\.images"):
        trained(run_transformation, config(models, **fastfill | {"classifier": others}), tmp_path / "other")


def test_a_bundle_embeds_as_the_checkpoint_it_was_made_of(tmp_path, models):
    from fct_infer.export.checkpoints import open_named
    from fct_infer.export.options import Options
    from fct_infer.export.user_files import export_opened

    path = Path(models["old"]) / "checkpoint.safetensors"
    export_opened(open_named(path, None, []), path, tmp_path / "b", Options(targets=("onnx",)))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    module, bundle = open_image_model(path), open_image_model(tmp_path / "b")
    expected = embed(module.embed._module, images)
    for model in (module, bundle):
        np.testing.assert_allclose(model.embed(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(FctError, match=r"takes images of 3x32x32, data\.images gives 3x16x16"):
        bundle.embed(torch.from_numpy(np.ascontiguousarray(images[:, :16, :16])))
    with pytest.raises(ArtifactError, match="missing"):
        open_image_model(tmp_path / "missing")
