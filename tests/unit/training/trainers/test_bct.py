"""Backward-compatible training: the old classifier made whole, its influence, and what it is for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.training import TINY_MODEL, trained
from torch import nn

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.features.embedding import embed_data
from fct_infer.training.losses.image_losses import classification_loss
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.classifiers import Classifier, CosineClassifier, LinearClassifier
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.trainers.backbone import BackboneConfig, ClassifierConfig, train_backbone
from fct_infer.training.trainers.backbone_run import load_old_model, run_backbone, run_bct
from fct_infer.training.trainers.bct import BctConfig, InfluenceLoss, OldModel, influence_classifier, train_bct

SPEC = ModelSpec("resnet", {"embedding_dim": 16, "widths": [8, 16], "blocks": [1, 1], "stem_stride": 2})


class Corner(Backbone):
    """Embeds an image as the four numbers in its corner."""

    embedding_dim = 4

    def forward(self, images):
        return images[:, 0, 0, :4]


def corners(rows: list[list[int]], labels: list[int], names: str) -> LabelledImages:
    images = np.zeros((len(rows), 4, 4, 3), np.uint8)
    images[:, 0, :, 0] = rows
    return LabelledImages(images, np.array(labels), tuple(names))


def old_model(classifier: Classifier | None = None) -> OldModel:
    return OldModel(Corner(), classifier or LinearClassifier(4, 3), tuple("abc"))


def test_every_class_gets_its_mean_old_embedding():
    old = old_model()
    data = corners([[0, 0, 51, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 51, 0, 0]], [0, 1, 1, 2], "xyb")
    classifier, added = influence_classifier(old, data, equal_norms=False)
    assert added == 2
    assert torch.allclose(classifier.weight, torch.tensor([[0, 0, 0.2, 0], [0.5, 0.5, 0, 0], [0, 0.2, 0, 0]]))


def test_a_completed_classifier_has_means_only_where_the_old_one_lacks_a_class():
    old = old_model()
    data = corners([[0, 0, 51, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 51, 0, 0]], [0, 1, 1, 2], "xyb")
    classifier, added = influence_classifier(old, data, "completed", equal_norms=False)
    trained_weight = old.classifier.weight.detach()
    assert added == 2
    assert torch.allclose(classifier.weight[:2], torch.tensor([[0, 0, 0.2, 0], [0.5, 0.5, 0, 0]]))
    assert torch.equal(classifier.weight[2], trained_weight[1])
    assert torch.equal(classifier.weight[3:], trained_weight[[0, 2]])  # what b can still be mistaken for
    assert len(old.classifier.weight) == 3


@pytest.mark.parametrize("kind", ["means", "completed"])
def test_equal_norms_bring_all_weights_to_the_mean_length_of_the_trained(kind):
    old = old_model()
    data = corners([[0, 0, 51, 0], [255, 0, 0, 0]], [0, 1], "xa")
    plain, equal = (influence_classifier(old, data, kind, equal_norms)[0].weight for equal_norms in (False, True))
    assert torch.allclose(equal.norm(dim=1), old.classifier.weight.norm(dim=1).mean().expand(len(equal)))
    assert torch.allclose(F.normalize(equal), F.normalize(plain))


def test_an_old_classifier_keeps_its_kind_scale_and_margin():
    old = old_model(CosineClassifier(4, 3, 30.0, 0.2))
    classifier, added = influence_classifier(old, corners([[255, 0, 0, 0]], [0], "a"))
    assert isinstance(classifier, CosineClassifier) and added == 0
    assert (classifier.scale, classifier.margin) == (30.0, 0.2)


def test_an_old_model_of_other_classes_altogether_has_means_of_the_new_ones():
    classifier, added = influence_classifier(old_model(), corners([[51, 0, 0, 0]], [0], "x"), equal_norms=False)
    assert added == 1 and torch.allclose(classifier.weight, torch.tensor([[0.2, 0, 0, 0]]))


@pytest.mark.parametrize("kind", ["means", "completed"])
def test_a_class_without_images_is_named(kind):
    with pytest.raises(UsageError, match="class 'x' has no image"):
        influence_classifier(old_model(), corners([[1, 0, 0, 0]], [0], "ax"), kind)


def test_trained_weights_of_other_classes_altogether_are_refused():
    with pytest.raises(UsageError, match="knows none of the 1 classes, such as 'x'"):
        influence_classifier(old_model(), corners([[1, 0, 0, 0]], [0], "x"), "completed")


@pytest.mark.parametrize("new_dim", [3, 4, 6])
def test_the_old_classifier_sees_a_shorter_vector_padded_with_zeros(new_dim):
    classifier = LinearClassifier(4, 3)
    embeddings, labels = torch.randn(5, new_dim, requires_grad=True), torch.tensor([0, 1, 2, 0, 1])
    shared = min(new_dim, 4)
    logits = embeddings[:, :shared] @ classifier.weight[:, :shared].T
    expected = 0.5 * F.cross_entropy(logits, labels, label_smoothing=0.1)
    loss = InfluenceLoss(classifier, 0.5, 0.1)(embeddings, labels)
    assert torch.allclose(loss, expected)
    loss.backward()
    assert classifier.weight.grad is None
    assert (embeddings.grad[:, shared:] == 0).all() and (embeddings.grad[:, :shared] != 0).any()


def waves(rows, columns, frequency, phase):
    """Fixed numbers that everybody can compute."""
    return torch.sin(frequency * torch.arange(rows * columns, dtype=torch.float64) + phase).reshape(rows, columns)


def test_the_loss_is_that_of_the_public_code_on_the_same_tensors():
    """The cross entropies by the new and the old classifier, without smoothing, and their sum, of its first author."""
    embeddings, labels = 2 * waves(6, 4, 1.3, 0.2), torch.tensor([0, 3, 1, 4, 2, 2])
    new, old = LinearClassifier(4, 5).double(), LinearClassifier(4, 5).double()
    new.weight.data, old.weight.data = waves(5, 4, 0.7, 1.0), waves(5, 4, 2.1, 0.5)
    by_new = classification_loss(new(embeddings), labels, 0.0)
    by_old = InfluenceLoss(old, 1.0, 0.0)(embeddings, labels)
    assert by_new.item() == pytest.approx(3.351831050, rel=1e-8)
    assert by_old.item() == pytest.approx(2.899119481, rel=1e-8)
    assert (by_new + by_old).item() == pytest.approx(6.250950531, rel=1e-8)


def checkerboards(classes: int, seed: int) -> LabelledImages:
    """Coarse patterns under strong noise, the same patterns whatever the seed."""
    patterns = np.kron(np.random.default_rng(0).uniform(80, 180, (8, 4, 4, 3)), np.ones((1, 4, 4, 1)))
    labels = np.repeat(np.arange(classes), 40)
    noisy = patterns[labels] + np.random.default_rng(seed).normal(0, 60, (len(labels), 16, 16, 3))
    return LabelledImages(noisy.clip(0, 255).astype(np.uint8), labels, tuple("abcdefgh"[:classes]))


def test_only_means_classify_old_embeddings_of_old_and_new_classes():
    """Why "means" is the default: weights trained by a linear classifier and means do not go together."""
    few, all_classes = checkerboards(5, seed=1), checkerboards(8, seed=1)
    trained = train_backbone(few, BackboneConfig(SPEC, TrainingConfig(8, 0.1, batch_size=16)))
    old = OldModel(trained.backbone, trained.classifier, few.class_names)
    embeddings = torch.from_numpy(embed_data(trained.backbone, all_classes)[0])
    is_old = all_classes.labels < 5

    def share_right(kind):
        classifier, _ = influence_classifier(old, all_classes, kind)
        with torch.no_grad():
            right = classifier(embeddings).argmax(dim=1).numpy() == all_classes.labels
        return right[is_old].mean()

    assert share_right("means") > 0.9
    assert share_right("completed") < 0.5


def nearest_class_mean_is_right(
    queries: np.ndarray, wanted: np.ndarray, gallery: np.ndarray, labels: np.ndarray
) -> float:
    means = np.stack([gallery[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    nearest = np.linalg.norm(queries[:, None] - means[None], axis=2).argmin(axis=1)
    return float((nearest == wanted).mean())


def test_new_embeddings_are_found_in_the_old_gallery_only_with_the_influence():
    """The point of it all: new/old is broken by independent training, and works with BCT."""
    few, all_classes, test = checkerboards(5, seed=1), checkerboards(8, seed=1), checkerboards(5, seed=2)
    old = train_backbone(few, BackboneConfig(SPEC, TrainingConfig(8, 0.1, batch_size=16)))
    config = BctConfig(SPEC, TrainingConfig(8, 0.1, batch_size=16, seed=1))
    bct = train_bct(all_classes, OldModel(old.backbone, old.classifier, few.class_names), config)
    independent = train_backbone(all_classes, config)
    gallery, _ = embed_data(old.backbone, few)
    hits = {
        name: nearest_class_mean_is_right(embed_data(model, test)[0], test.labels, gallery, few.labels)
        for name, model in (("bct", bct.backbone.backbone), ("independent", independent.backbone))
    }
    assert bct.added_classes == 3
    assert hits["bct"] > 0.8 and hits["independent"] < 0.5, hits  # chance is 1/5


def run_config(**changes):
    return {
        "data": {"source": "support.training:NoisyDataset"},
        "model": TINY_MODEL,
        "training": {"epochs": 1, "learning_rate": 0.1, "batch_size": 20},
    } | changes


def test_runs_follow_each_other_and_say_what_they_did(tmp_path):
    first = run_config(classifier={"kind": "arcface"}, embeddings="unit")
    first["data"] = {**first["data"], "classes": "first 50 %"}
    trained(run_backbone, first, tmp_path / "old")
    old = load_old_model(tmp_path / "old")
    assert old.class_names == ("a", "b") and isinstance(old.classifier, CosineClassifier)
    assert old.backbone(torch.rand(2, 3, 16, 16)).norm(dim=1).tolist() == pytest.approx([1, 1])

    wider = {"name": "resnet", "arguments": {**TINY_MODEL["arguments"], "embedding_dim": 20}}
    result = trained(run_bct, run_config(old=str(tmp_path / "old"), model=wider), tmp_path / "bct")
    assert result["classes_the_old_model_lacked"] == 2 and result["classes"] == 4
    assert result["old_classifier_saw"] == "of the 20-d new embedding its first components, to the old 12-d"
    assert load_old_model(tmp_path / "bct").class_names == ("a", "b", "c", "d")  # a chain can go on from here
    described = json.loads((tmp_path / "bct" / "checkpoint.json").read_text())["config"]
    assert described["image_shape"] == [3, 16, 16] and described["influence"] == 1.0


def test_an_old_run_that_is_not_finished_or_not_understood_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere/checkpoint\.json: no such file"):
        trained(run_bct, run_config(old=str(tmp_path / "nowhere")), tmp_path / "bct")
    trained(run_backbone, run_config(), tmp_path / "old")
    description = tmp_path / "old" / "classifier.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"config": {"class_names": ["a"]}}))
    with pytest.raises(ArtifactError, match=r"classifier\.json: does not name its 4 classes"):
        load_old_model(tmp_path / "old")


def test_an_old_model_of_the_users_own_code_must_be_trusted(tmp_path):
    own = {"name": "support.training:DropoutNet", "arguments": {"embedding_dim": 6}}
    trained(run_backbone, run_config(model=own), tmp_path / "old")
    config = run_config(old=str(tmp_path / "old"))
    with pytest.raises(UsageError, match="trust_code: true"):
        trained(run_bct, config, tmp_path / "bct")
    assert trained(run_bct, config | {"trust_code": True}, tmp_path / "trusted")["classes_the_old_model_lacked"] == 0


def test_every_classifier_can_be_asked_for():
    kinds = {
        kind: ClassifierConfig(kind, 10, 0.3).model(4, 3).build(nn.Module) for kind in ("linear", "cosine", "arcface")
    }
    assert isinstance(kinds["linear"], LinearClassifier)
    assert (kinds["cosine"].scale, kinds["cosine"].margin, kinds["arcface"].margin) == (10, 0.0, 0.3)
