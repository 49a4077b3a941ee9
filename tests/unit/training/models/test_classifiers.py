from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fct_infer.training.models.classifiers import CosineClassifier, LinearClassifier


@settings(max_examples=25, deadline=None)
@given(margin=st.floats(0, 1), scale=st.floats(1, 64), seed=st.integers(0, 1000))
@torch.no_grad()
def test_arcface_is_the_papers_formula(margin, scale, seed):
    """Equation 3 of arXiv 1801.07698, class by class, where the angle and the margin stay below pi."""
    torch.manual_seed(seed)
    classifier = CosineClassifier(4, 3, scale, margin).double()
    embeddings, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    logits = classifier(embeddings, labels)
    for row, label in enumerate(labels.tolist()):
        for column in range(3):
            cosine = float(F.cosine_similarity(embeddings[row], classifier.weight[column], dim=0))
            angle = math.acos(cosine) + (margin if column == label else 0)
            if angle < math.pi:
                assert float(logits[row, column]) == pytest.approx(scale * math.cos(angle), abs=2e-4 * scale)


def test_without_labels_there_is_no_margin():
    torch.manual_seed(0)
    with_margin = CosineClassifier(4, 3, 10, 0.5)
    embeddings = torch.randn(5, 4)
    expected = 10 * F.normalize(embeddings) @ F.normalize(with_margin.weight).T
    assert torch.allclose(with_margin(embeddings), expected, atol=1e-5)


def test_a_larger_angle_never_scores_better_beyond_pi_either():
    classifier = CosineClassifier(2, 1, 1.0, 0.5)
    classifier.weight.data = torch.tensor([[1.0, 0.0]])
    angles = torch.linspace(0.001, math.pi - 0.001, 200)
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    scores = classifier(embeddings, torch.zeros(200, dtype=torch.int64))[:, 0]
    assert (scores.diff() < 0).all()


@pytest.mark.parametrize("target", [[1.0, 0.0], [-1.0, 0.0]], ids=["on the weight", "opposite to it"])
def test_gradients_are_finite_at_the_ends_of_the_angle(target):
    classifier = CosineClassifier(2, 2, 64.0, 0.5)
    classifier.weight.data = torch.eye(2)
    embedding = torch.tensor([target], requires_grad=True)
    F.cross_entropy(classifier(embedding, torch.tensor([0])), torch.tensor([0])).backward()
    assert embedding.grad.isfinite().all() and classifier.weight.grad.isfinite().all()


def test_the_angle_keeps_its_digits_under_autocast():
    torch.manual_seed(0)
    classifier = CosineClassifier(16, 5, 64.0, 0.5)
    embeddings, labels = torch.randn(8, 16), torch.arange(8) % 5
    with torch.autocast("cpu", torch.bfloat16):
        inside = classifier(embeddings, labels)
    assert torch.equal(inside, classifier(embeddings, labels))


def test_a_linear_classifier_is_torchs_without_bias_same_draws_included():
    torch.manual_seed(3)
    ours = LinearClassifier(6, 4)
    torch.manual_seed(3)
    theirs = nn.Linear(6, 4, bias=False)
    rows = torch.randn(7, 6)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours(rows, torch.zeros(7, dtype=torch.int64)), theirs(rows))
