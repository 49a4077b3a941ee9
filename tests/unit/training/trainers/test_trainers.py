"""Each trainer on a problem small enough for a test and hard enough to fail on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fct_infer.errors import ArrayError, UsageError
from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.glyphs import render_glyphs
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.features.embedding import embed
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.models.resnet import ResNet
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.trainers.backbone import BackboneConfig, train_backbone
from fct_infer.training.trainers.side_information import SideInformationConfig, train_side_information
from fct_infer.training.trainers.transformation import TransformationConfig, train_transformation

TINY = ModelSpec("resnet", {"embedding_dim": 16, "widths": [8, 16], "blocks": [1, 1], "stem_stride": 2})
BACKBONE = BackboneConfig(TINY, TrainingConfig(epochs=8, learning_rate=0.1, batch_size=16))
VIEWS = Augmentation(rotation=10, shift=0.05, brightness=0.1, contrast=0.2)
SIDE = SideInformationConfig(TINY, TrainingConfig(10, 3e-3, batch_size=40, optimizer="adam"), VIEWS, projection_dim=16)
H = TransformationConfig(
    ModelSpec("paper", {"inner_dim": 64}),
    TrainingConfig(20, 3e-3, batch_size=50, optimizer="adam", freeze_batch_norm_from=0.5),
)


def nearest_is_right(embeddings: np.ndarray, labels: np.ndarray) -> float:
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((labels[distances.argmin(axis=1)] == labels).mean())


def checkerboards(seed: int) -> LabelledImages:
    """Four classes of coarse patterns under strong noise, fixed patterns whatever the seed."""
    patterns = np.kron(np.random.default_rng(0).uniform(80, 180, (4, 4, 4, 3)), np.ones((1, 4, 4, 1)))
    labels = np.repeat(np.arange(4), 40)
    noisy = patterns[labels] + np.random.default_rng(seed).normal(0, 60, (160, 16, 16, 3))
    return LabelledImages(noisy.clip(0, 255).astype(np.uint8), labels, ("a", "b", "c", "d"))


def test_a_backbone_learns_to_find_images_of_a_class():
    test = checkerboards(seed=2)
    trained = train_backbone(checkerboards(seed=1), BACKBONE)
    embeddings = embed(trained.backbone, test.images)
    assert trained.losses[-1] < 0.6 * trained.losses[0]
    assert nearest_is_right(embeddings, test.labels) > 0.9  # chance is 1/4
    assert trained.classifier.weight.shape == (4, 16)


def test_a_backbone_is_judged_on_held_out_images_of_its_classes():
    """The set held out has a class that is not trained, and its classes in another order."""
    test = checkerboards(seed=2)
    held_out = replace(test, labels=(test.labels + 2) % 4, class_names=("c", "d", "a", "b"))
    known = checkerboards(seed=1)
    rows = np.flatnonzero(known.labels < 3)
    trained = train_backbone(known.select(rows, known.labels[rows], ("a", "b", "c")), BACKBONE, validation=held_out)
    kept = test.labels < 3
    with torch.inference_mode():
        logits = trained.classifier(torch.from_numpy(embed(trained.backbone, test.images[kept])))
    labels = torch.from_numpy(test.labels[kept])
    figures = trained.fitted.validation[-1]
    assert figures["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert figures["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert figures["accuracy"] > 0.8 and len(trained.fitted.validation) == 8
    with pytest.raises(UsageError, match="holds no image of the 4 classes"):
        train_backbone(known, BACKBONE, validation=replace(test, class_names=("e", "f", "g", "h")))


def test_one_seed_gives_the_same_backbone():
    data = render_glyphs(3, 20, "train")
    config = replace(BACKBONE, training=replace(BACKBONE.training, epochs=1), augmentation=VIEWS)
    first, again = (train_backbone(data, config).backbone.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_side_information_tells_images_apart_without_labels():
    """An image's other view is found among all others, though no label was seen."""
    images = render_glyphs(4, 40, "train").images
    trained = train_side_information(images, SIDE)
    generator = torch.Generator().manual_seed(3)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        first, second = (
            torch.nn.functional.normalize(trained.backbone(VIEWS(batch, generator)), dim=1) for _ in range(2)
        )
    found = (first @ second.T).argmax(dim=1) == torch.arange(len(batch))
    assert trained.losses[-1] < trained.losses[0] - 0.2
    assert found.float().mean() > 0.05  # chance is 1/160


def synthetic_embeddings(seed: int, rows: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New embeddings depend on the old and, as much, on what only the side-information knows."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((12, 6))
    hidden = rng.standard_normal((rows, 12))
    old, side = hidden[:, :6], hidden[:, 6:]
    return tuple(np.ascontiguousarray(array, np.float32) for array in (old, side, np.maximum(hidden @ mixing, 0)))


def error_of(side_is_old: bool) -> float:
    old, side, new = synthetic_embeddings(seed=0)
    trained = train_transformation(old, old if side_is_old else side, new, H)
    old, side, new = (torch.from_numpy(array) for array in synthetic_embeddings(seed=1))
    with torch.inference_mode():
        transformed = trained.module(old, old if side_is_old else side)
    return float(((transformed - new) ** 2).mean() / new.var())


def test_a_transformation_learns_what_both_inputs_tell():
    with_side, without = error_of(side_is_old=False), error_of(side_is_old=True)
    assert with_side < 0.25
    assert without > 2 * with_side


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("old", np.zeros((100, 4)), "old: got float64"),
        ("side", np.zeros(100, np.float32), r"side: got float32 \(100,\)"),
        ("new", np.zeros((99, 4), np.float32), r"\[99, 100\] rows"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(name, array, message):
    arrays = {each: np.zeros((100, 4), np.float32) for each in ("old", "side", "new")} | {name: array}
    with pytest.raises(ArrayError, match=message):
        train_transformation(**arrays, config=H)


def test_a_backbone_is_no_transformation():
    rows = np.zeros((100, 4), np.float32)
    with pytest.raises(UsageError, match="'resnet'"):
        train_transformation(rows, rows, rows, TransformationConfig(TINY, H.training))


def test_embedding_in_batches_is_embedding_at_once():
    images = render_glyphs(3, 5, "test").images
    model = ResNet(embedding_dim=8, widths=(4,), blocks=(1,))  # in training mode, where batch norm would mix rows
    at_once, in_batches = embed(model, images, batch_size=100), embed(model, images, batch_size=4)
    np.testing.assert_allclose(at_once, in_batches, rtol=1e-5, atol=1e-6)
    assert at_once.dtype == np.float32
    assert at_once.flags.c_contiguous
    assert model.training
