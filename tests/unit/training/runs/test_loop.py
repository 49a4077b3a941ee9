from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fct_infer.errors import GateError, UsageError
from fct_infer.training.data.batches import TensorBatches
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import Progress, TrainingConfig, fit, learning_rate_at, learning_rate_of_epoch, seeded


def line_problem(seed: int = 0) -> tuple[nn.Module, TensorBatches]:
    """y = 3 x - 1, and a model that can say so."""
    x = torch.linspace(-1, 1, 64)[:, None]
    with seeded(seed):
        model = nn.Linear(1, 1)
    return model, TensorBatches(x, 3 * x - 1, batch_size=16, seed=seed)


def fit_line(config: TrainingConfig, **options) -> tuple[nn.Module, list[float]]:
    model, batches = line_problem(config.seed)
    fitted = fit(model, batches, lambda batch: nn.functional.mse_loss(model(batch[0]), batch[1]), config, **options)
    return model, fitted.losses


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 0.1), ("adamw", 0.1)])
def test_a_line_is_found(optimizer, rate):
    model, losses = fit_line(TrainingConfig(epochs=40, learning_rate=rate, optimizer=optimizer, weight_decay=0))
    assert model.weight.item() == pytest.approx(3, abs=0.02)
    assert model.bias.item() == pytest.approx(-1, abs=0.02)
    assert losses[-1] < 1e-3 < losses[0]
    assert not model.training


def test_one_seed_gives_the_same_weights():
    first, again, other = (fit_line(TrainingConfig(3, 0.05, seed=seed))[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_line(TrainingConfig(1, 0.05, seed=9))
    assert torch.equal(torch.rand(3), expected)


def test_the_learning_rate_warms_up_then_falls_to_zero():
    rates = [learning_rate_at(step, warmup_steps=10, steps=110) for step in range(111)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)


def test_by_epoch_the_learning_rate_is_that_of_the_public_code():
    rates = [learning_rate_of_epoch(epoch, warmup_epochs=5, epochs=80) for epoch in range(80)]
    np.testing.assert_allclose(rates[:6], [0.2, 0.4, 0.6, 0.8, 1, 1])
    np.testing.assert_allclose(rates[5:], 0.5 * (1 + np.cos(np.pi * np.arange(75) / 75)))
    assert rates[-1] > 0
    assert learning_rate_of_epoch(0, warmup_epochs=0.5, epochs=3) == 1


@pytest.mark.parametrize(("schedule", "changes"), [("step", 8), ("epoch", 2)])
def test_the_learning_rate_changes_by_step_or_by_epoch(tmp_path, schedule, changes):
    config = TrainingConfig(2, 0.05, warmup_epochs=1, schedule=schedule, log_every=1)
    with RunFolder(tmp_path / "run") as run:
        run.open("a test", config, config)
        fit_line(config, run=run)
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("learning_rate")
    rates = [float(line.split(",")[column]) for line in lines[1:]]
    assert len(rates) == 8 and len(set(rates)) == (changes if schedule == "step" else 1)
    assert schedule == "step" or set(rates) == {0.05}  # warm-up done after one epoch, and the cosine begins at its peak


def test_progress_is_told_after_every_step():
    seen: list[Progress] = []
    _, losses = fit_line(TrainingConfig(epochs=2, learning_rate=0.01), on_progress=seen.append)
    assert [(each.step, each.steps, each.epoch, each.epochs) for each in seen] == [
        (step, 8, 1 + (step - 1) // 4, 2) for step in range(1, 9)
    ]
    assert [seen[3].loss, seen[7].loss] == losses


def test_a_diverging_training_stops_and_names_the_step():
    model, batches = line_problem()
    calls = iter(range(100))

    def loss_of(batch):
        scale = float("nan") if next(calls) == 5 else 1.0
        return scale * nn.functional.mse_loss(model(batch[0]), batch[1])

    with pytest.raises(GateError, match="nan at step 6 of 8, epoch 2"):
        fit(model, batches, loss_of, TrainingConfig(epochs=2, learning_rate=0.01))


def test_batch_norm_is_frozen_from_the_share_of_epochs_asked_for():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    rows = torch.linspace(0, 4, 32)[:, None]
    modes, means = [], []

    def loss_of(batch):
        modes.append((model[0].training, model[1].training))
        means.append(model[0].running_mean.item())
        return model(batch[0]).square().mean()

    batches = TensorBatches(rows, batch_size=16, seed=0)
    fit(model, batches, loss_of, TrainingConfig(4, 0.01, freeze_batch_norm_from=0.5))
    assert modes == [(True, True)] * 4 + [(False, True)] * 4
    assert len(set(means[:5])) == 5
    assert len(set(means[4:])) == 1


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UsageError, match="'lion'"):
        fit_line(TrainingConfig(1, 0.1, optimizer="lion"))


def judged_line(folder, result: str, figures: list[float], stop_at: int | None = None):
    """Four epochs whose validation losses are ``figures``; return what was fitted and the weight after each epoch."""
    config = TrainingConfig(4, 0.05, result=result)
    model, batches = line_problem()
    weights: list[float] = []

    def judge():
        assert not model.training and torch.is_inference_mode_enabled()
        weights.append(model.weight.item())
        return {"loss": figures[round(step[0] / 4) - 1], "cosine": 0.5}

    step = [0]

    def on_progress(progress):
        step[0] = progress.step
        if progress.step == stop_at:
            raise KeyboardInterrupt

    def loss_of(batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    with RunFolder(folder) as run:
        run.open("a test", config, config)
        return fit(model, batches, loss_of, config, on_progress, run=run, validate=judge), weights


@pytest.mark.parametrize("result", ["last", "best"])
def test_the_best_epoch_is_kept_beside_the_last(tmp_path, result):
    fitted, weights = judged_line(tmp_path / "run", result, [0.5, 0.3, 0.4, 0.3])
    best, last = weights[1], weights[3]
    assert best != last
    assert fitted.module.weight.item() == (last if result == "last" else best)
    saved = {}
    fitted.save(tmp_path, lambda folder: saved.update({folder: fitted.module.weight.item()}))
    assert saved == (
        {tmp_path: last, tmp_path / "best": best} if result == "last" else {tmp_path: best, tmp_path / "last": last}
    )
    assert fitted.figures["best_epoch"] == 2
    assert fitted.figures["validation_loss"] == 0.3
    written = (tmp_path / "run" / "validation.csv").read_text()
    assert written == "epoch,loss,cosine\n1,0.5,0.5\n2,0.3,0.5\n3,0.4,0.5\n4,0.3,0.5\n"


@pytest.mark.parametrize("stop_at", [5, 10, 16])
def test_an_interrupted_run_keeps_the_same_best_epoch(tmp_path, stop_at):
    figures = [0.5, 0.2, 0.4, 0.3]
    whole, _ = judged_line(tmp_path / "whole", "best", figures)
    with pytest.raises(KeyboardInterrupt):
        judged_line(tmp_path / "run", "best", figures, stop_at)
    resumed, _ = judged_line(tmp_path / "run", "best", figures)
    assert torch.equal(resumed.module.weight, whole.module.weight)
    assert torch.equal(resumed.other["weight"], whole.other["weight"])
    assert resumed.validation == whole.validation
    files = [(tmp_path / name / "validation.csv").read_bytes() for name in ("run", "whole")]
    assert files[0] == files[1]


def test_validation_is_shown_by_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    judged_line(tmp_path / "run", "last", [0.5, 0.25, 0.5, 0.75])
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("validation/loss")]
    assert shown == [(4, 0.5), (8, 0.25), (12, 0.5), (16, 0.75)]


def test_a_validation_loss_that_is_no_number_stops_the_training(tmp_path):
    with pytest.raises(GateError, match="validation loss is nan after epoch 2"):
        judged_line(tmp_path / "run", "last", [0.5, float("nan"), 0.4, 0.3])


def test_the_best_epoch_needs_validation():
    with pytest.raises(UsageError, match="nothing is held out"):
        fit_line(TrainingConfig(1, 0.05, result="best"))
