from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fct_infer import Transformation
from fct_infer.maps import Statistics
from fct_infer.reference import apply_float64
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.trainers.transformation import TransformationConfig, train_transformation
from fct_infer.training.trainers.transformation_run import run_transformation

MODELS = {
    "paper": {"inner_dim": 16},
    "mlp": {"hidden_dims": [12]},
    "residual_mlp": {"width": 8, "inner_dim": 8},
    "linear": {},
}


def unit_rows(rows, seed=0):
    """Items seen by two models that both give rows of length 1, as most text models do."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    items = rng.standard_normal((rows, 20))
    seen = [items @ fixed.standard_normal((20, dim)) / 5 + 2 * fixed.standard_normal(dim) for dim in (24, 32)]
    return [(each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float32) for each in seen]


@pytest.mark.parametrize("side_dim", [0, 3])
@pytest.mark.parametrize("name", MODELS)
def test_scales_go_into_the_layers_of_the_program(name, side_dim):
    rng = np.random.default_rng(0)
    columns = {"old": 5 + 0.01 * rng.standard_normal((200, 6)), "new": 300 * rng.standard_normal((200, 4)) - 7}
    if side_dim:
        columns["side"] = 40 * rng.standard_normal((200, 3)) + 1
    columns = {key: column.astype(np.float32) for key, column in columns.items()}
    inner = {"name": name, "arguments": {"old_dim": 6, "side_dim": side_dim, "new_dim": 4, **MODELS[name]}}
    torch.manual_seed(0)
    module = ModelSpec("standardized", {"model": inner, "uncertainty": True}).build(TransformationModule)
    module.begin_from(Statistics.of_block(columns))
    old, side = (torch.from_numpy(columns[key]) if key in columns else None for key in ("old", "side"))
    module.train()
    module(old, side)  # so that batch norm has seen something
    module.eval()
    with torch.no_grad():
        rows = [None if each is None else each.double() for each in (old, side)]
        expected, log_variance = module.double().with_uncertainty(*rows)
    module.float()
    found = apply_float64(to_program(module), columns["old"], columns.get("side"))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=0.05)
    scores = apply_float64(to_uncertainty_program(module), columns["old"], columns.get("side"))
    np.testing.assert_allclose(scores[:, 0], log_variance.numpy(), rtol=1e-3, atol=0.05)
    assert len(to_program(module).steps) == len(to_program(ModelSpec(**inner).build(TransformationModule).eval()).steps)


def test_short_rows_are_learnt_where_the_paper_as_it_stands_learns_the_mean():
    old, new = unit_rows(1500)
    fresh_old, fresh_new = unit_rows(500, seed=1)
    variance = np.mean((fresh_new - new.mean(0)) ** 2)
    error = {}
    for standardize in (False, True):
        training = TrainingConfig(30, 5e-4, batch_size=128, optimizer="adam", freeze_batch_norm_from=0.5)
        config = TransformationConfig(ModelSpec("paper", {"inner_dim": 64}), training, standardize=standardize)
        trained = train_transformation(old, None, new, config)
        h = Transformation(to_program(trained.module), "fp32")
        error[standardize] = np.mean((h(fresh_old) - fresh_new) ** 2) / variance
    assert error[True] < 0.5
    assert error[False] > 0.9


@pytest.fixture
def features(tmp_path):
    for name, rows in zip(("old", "new"), unit_rows(700), strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    return {"old": str(tmp_path / "old.npy"), "new": str(tmp_path / "new.npy")}


def run(folder, config):
    with RunFolder(folder) as opened:
        return run_transformation(config, opened)


def test_few_rows_are_taken_in_smaller_batches(features, tmp_path):
    """The paper's 1,024 would be refused, and fifty steps learn nothing."""
    config = {"data": features, "model": {"name": "paper", "arguments": {"inner_dim": 32}}, "validation": 0.2}
    result = run(tmp_path / "h", config | {"training": {"epochs": 30}})
    assert result["validation_cosine"] > 0.96 and "the mean" not in result.get("warning", "")
    assert json.loads((tmp_path / "h" / "checkpoint.json").read_text())["config"]["training"]["batch_size"] == 32


def test_a_map_worse_than_one_that_needs_no_training_is_not_silent(features, tmp_path):
    config = {"data": features, "standardize": False, "validation": 0.2}
    config |= {"model": {"name": "paper", "arguments": {"inner_dim": 32}}, "training": {"epochs": 1, "batch_size": 256}}
    warning = run(tmp_path / "h", config)["warning"]
    assert warning.startswith("on held-out rows h is worse than the mean of the new rows, for every row and Procrustes")
    assert "warning" not in run(tmp_path / "ridge", {"data": features, "model": {"name": "ridge"}, "validation": 0.2})


@pytest.mark.parametrize("loss", ["mse", "l1", "cosine"])
def test_the_unit_of_the_new_rows_changes_nothing(loss):
    """Neither the step of the optimizer nor weight decay may depend on it."""
    old, new = unit_rows(300)
    training = TrainingConfig(3, 1e-3, batch_size=64, optimizer="adam", weight_decay=1e-3)
    config = TransformationConfig(ModelSpec("paper", {"inner_dim": 16}), training, loss=loss)
    found = []
    for unit in (1.0, 2.0**-10):
        h = Transformation(to_program(train_transformation(old, None, np.float32(unit) * new, config).module), "fp32")
        found.append(h(old) / unit)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)
