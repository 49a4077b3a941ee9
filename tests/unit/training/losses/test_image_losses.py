from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_infer.training.losses.image_losses import classification_loss, nt_xent_loss


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 6), dim=st.integers(2, 5), temperature=st.floats(0.1, 2), seed=st.integers(0, 100))
def test_nt_xent_is_the_papers_formula(count, dim, temperature, seed):
    """NT-Xent (arXiv 2002.05709), pair by pair."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, dim, dtype=torch.float64, generator=generator) for _ in range(2))
    views = [*first, *second]
    losses = []
    for i, view in enumerate(views):
        similarity = [math.exp(float(torch.cosine_similarity(view, other, dim=0)) / temperature) for other in views]
        losses.append(-math.log(similarity[(i + count) % (2 * count)] / (sum(similarity) - similarity[i])))
    expected = sum(losses) / len(losses)
    assert float(nt_xent_loss(first, second, temperature)) == pytest.approx(expected, rel=1e-6)


def test_nt_xent_prefers_views_of_one_image_together():
    rows = torch.eye(4)
    assert nt_xent_loss(rows, rows) < nt_xent_loss(rows, rows.roll(1, dims=0))


def test_label_smoothing_mixes_in_the_mean_over_classes():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    log_probabilities = torch.log_softmax(logits, dim=1)[0]
    expected = -(0.9 * log_probabilities[0] + 0.1 * log_probabilities.mean())
    assert float(classification_loss(logits, labels, 0.1)) == pytest.approx(float(expected))
