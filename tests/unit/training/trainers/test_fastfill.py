from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.features import make_columns
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer.errors import ArrayError, UsageError
from fct_infer.gallery import Gallery
from fct_infer.reference import apply_float64
from fct_infer.training.losses.fastfill import fastfill_loss
from fct_infer.training.models.classifiers import LinearClassifier
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.trainers.scores import write_scores
from fct_infer.training.trainers.transformation import TransformationConfig, train_transformation

CONFIG = TransformationConfig(
    ModelSpec("paper", {"inner_dim": 64}),
    TrainingConfig(25, 3e-3, batch_size=100, optimizer="adam", freeze_batch_norm_from=0.5),
    loss="fastfill",
)


def test_the_loss_is_the_papers_formula_row_by_row():
    generator = torch.Generator().manual_seed(0)
    transformed, new = torch.randn(2, 6, 4, generator=generator)
    s, logits = torch.randn(6, generator=generator), torch.randn(6, 3, generator=generator)
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    expected = 0.0
    for row in range(6):
        log_p = torch.log_softmax(logits[row], dim=0)
        entropy = -(0.9 * log_p[labels[row]] + 0.1 * log_p.mean())
        loss = ((transformed[row] - new[row]) ** 2).mean() + entropy
        expected += float(0.5 * math.exp(-s[row]) * loss + 0.5 * s[row]) / 6
    assert fastfill_loss(transformed, s, new, logits, labels).item() == pytest.approx(expected, rel=1e-5)


def waves(rows: int, columns: int, frequency: float, phase: float) -> torch.Tensor:
    """Fixed numbers that everybody can compute."""
    return torch.sin(frequency * torch.arange(rows * columns, dtype=torch.float64) + phase).reshape(rows, columns)


def test_the_loss_is_that_of_the_public_lines_on_the_same_tensors():
    """Mean over rows of 0.5 exp(-s) (MSE + CE with smoothing 0.1) + 0.5 s by PyTorch's own criteria, in float64."""
    transformed, new, s = 2 * waves(6, 4, 1.3, 0.2), waves(6, 4, 0.9, 0.1), waves(6, 1, 1.7, 0.3)[:, 0]
    logits, labels = transformed @ waves(5, 4, 0.7, 1.0).T, torch.tensor([0, 3, 1, 4, 2, 2])
    assert fastfill_loss(transformed, s, new, logits, labels).item() == pytest.approx(2.781975399, rel=1e-6)
    rows = [1.9061560, 8.6367312, 7.3937800, 3.3700879, 6.0815470, 8.0376791]
    arguments = transformed, s, new, logits, labels
    alone = [fastfill_loss(*(argument[row : row + 1] for argument in arguments)) for row in range(6)]
    weighed = [0.5 * math.exp(-s[row]) * rows[row] + 0.5 * s[row].item() for row in range(6)]
    assert [loss.item() for loss in alone] == pytest.approx(weighed, rel=1e-6)


def classifier_of(weight: np.ndarray) -> LinearClassifier:
    classifier = LinearClassifier(weight.shape[1], len(weight))
    classifier.weight.data = torch.from_numpy(weight.astype(np.float32))
    return classifier


def uncertain_columns(rows: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Half of the rows, told by their side-information, have a new embedding that nothing predicts."""
    columns, rng = make_columns(rows, seed=seed), np.random.default_rng(seed)
    is_noisy = rng.random(rows) < 0.5
    columns["side"][:, 0] = np.where(is_noisy, 4, -4)
    columns["new"] += (is_noisy[:, None] * 4 * rng.standard_normal(columns["new"].shape)).astype(np.float32)
    return columns, is_noisy


@pytest.fixture(scope="module")
def trained():
    columns, _ = uncertain_columns(1000, seed=0)
    classifier = classifier_of(np.random.default_rng(5).standard_normal((5, 8)))
    columns["labels"] = classifier(torch.from_numpy(columns["new"])).argmax(dim=1).numpy()
    before = classifier.weight.detach().clone()
    result = train_transformation(**columns, config=CONFIG, classifier=classifier)
    assert torch.equal(classifier.weight, before)
    return result


def test_the_uncertainty_is_large_where_h_is_wrong(trained):
    columns, is_noisy = uncertain_columns(500, seed=1)
    old, side = columns["old"], columns["side"]
    uncertainty = apply_float64(to_uncertainty_program(trained.module), old, side)[:, 0]
    error = ((apply_float64(to_program(trained.module), old, side) - columns["new"]) ** 2).mean(axis=1)
    assert trained.losses[-1] < trained.losses[0]
    assert trained.model.arguments["uncertainty"] is True
    assert np.mean(uncertainty[is_noisy]) > np.mean(uncertainty[~is_noisy]) + 0.5
    assert spearmanr(uncertainty, error).statistic > 0.5


def test_scores_are_the_uncertainties_in_the_gallerys_order(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("fct_infer.training.trainers.scores._BLOCK_ROWS", 100)
    arrays = write_gallery(tmp_path / "gallery", (250, 3, 100), old_dim=6, side_dim=6)
    program = to_uncertainty_program(trained.module)
    write_scores(Gallery.open(tmp_path / "gallery"), program, tmp_path / "scores.npy")
    scores = np.load(tmp_path / "scores.npy")
    assert (scores.shape, scores.dtype) == ((353,), np.float32)
    expected = apply_float64(program, arrays["old"], arrays["side"])[:, 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_scores_without_side_information_take_the_old_embedding_in_its_place(trained, tmp_path):
    arrays = write_gallery(tmp_path / "gallery", (20,), old_dim=6, side_dim=None)
    program = to_uncertainty_program(trained.module)
    write_scores(Gallery.open(tmp_path / "gallery"), program, tmp_path / "scores.npy")
    expected = apply_float64(program, arrays["old"])[:, 0]
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=1e-4, atol=1e-4)


def test_a_gallery_that_does_not_fit_leaves_no_scores(trained, tmp_path):
    write_gallery(tmp_path / "gallery", (20,), old_dim=5, side_dim=6)
    with pytest.raises(ArrayError, match="old"):
        write_scores(Gallery.open(tmp_path / "gallery"), to_uncertainty_program(trained.module), tmp_path / "s.npy")
    with pytest.raises(UsageError, match="16 numbers a row"):
        write_scores(Gallery.open(tmp_path / "gallery"), linear_map(5, 16), tmp_path / "s.npy")
    assert not list(tmp_path.glob("s.npy*"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": None}, UsageError, "needs labels"),
        ({"classifier": None}, UsageError, "needs labels, the new model's classifier"),
        (
            {"classifier": classifier_of(np.zeros((5, 7)))},
            ArrayError,
            r"classifier: weight is \(5, 7\), wanted \(classes, 8\)",
        ),
        (
            {"classifier": classifier_of(np.zeros((2, 8)))},
            ArrayError,
            r"labels: row \d+ is \d, the classifier knows 0 to",
        ),
    ],
)
def test_fastfill_says_what_it_lacks(change, error, message):
    arguments = make_columns(100) | {"classifier": classifier_of(np.zeros((5, 8)))} | change
    with pytest.raises(error, match=message):
        train_transformation(**arguments, config=CONFIG)
