from __future__ import annotations

import numpy as np
import pytest
import torch

from fct_infer.errors import UsageError
from fct_infer.training.losses.alignment import alignment_loss, measure_alignment, transformation_loss

TRANSFORMED, NEW = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])


@pytest.mark.parametrize(("name", "expected"), [("mse", 21 / 4), ("l1", 7 / 4), ("cosine", 1 - 0.6 / 2)])
def test_losses(name, expected):
    assert alignment_loss(name)(TRANSFORMED, NEW).item() == pytest.approx(expected)


def test_an_unknown_loss_is_refused():
    with pytest.raises(UsageError, match="unknown loss 'huber'"):
        alignment_loss("huber")


def test_the_alignment_of_blocks_is_that_of_all_rows():
    rng = np.random.default_rng(0)
    old, new = rng.standard_normal((2, 50, 4)).astype(np.float32)
    blocks = [{"old": old[a:b], "new": new[a:b]} for a, b in ((0, 20), (20, 20), (20, 50))]
    found = measure_alignment(lambda old, side: 2 * old, blocks)
    assert found.rows == 50
    assert found.mse == pytest.approx(np.mean((2 * old - new) ** 2), rel=1e-6)
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    assert found.cosine == pytest.approx(np.mean(np.sum(old * new, axis=1) / norms), rel=1e-6)


def test_nothing_is_no_alignment():
    with pytest.raises(UsageError, match="no rows"):
        measure_alignment(lambda old, side: old, [])


def test_the_transformations_loss_is_the_mean_square_over_rows_and_features():
    transformed, new = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert float(transformation_loss(transformed, new)) == pytest.approx((4 + 9) / 4)
