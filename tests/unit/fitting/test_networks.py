from __future__ import annotations

import re

import numpy as np
import pytest
from support.pairs import curved

from fct_infer import Transformation
from fct_infer.fitting import Pairs, Settings, fit_pairs, network_trial
from fct_infer.fitting.crossfit import CrossFit, Split, statistics_of
from fct_infer.fitting.measures import Search
from fct_infer.fitting.network import Schedule, _initial, train
from fct_infer.maps import Recipe
from fct_infer.reference import apply_float64
from fct_infer.training.models.folding import to_program

RECIPES = [Recipe(alpha=0.1), Recipe(share=0.5, unit_deviation=True), Recipe(share=1), Recipe(side_alpha=1.0)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_network_begins_as_the_closed_form_it_starts_from(recipe):
    pairs = curved(400)
    statistics = statistics_of(pairs, np.arange(400))
    network = _initial((recipe, statistics), Schedule(hidden=16)).eval()
    expected = apply_float64(recipe.fit(statistics), pairs.old, pairs.side)
    np.testing.assert_allclose(
        apply_float64(to_program(network), pairs.old, pairs.side), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_its_program_computes_what_the_module_does(recipe):
    import torch

    pairs = curved(400)
    rows = np.arange(400)
    network = train(pairs, rows, (recipe, statistics_of(pairs, rows)), Schedule(hidden=16, steps=60, stop=60))
    x = torch.from_numpy(pairs.old if not network.side_dim else np.concatenate([pairs.old, pairs.side], axis=1))
    with torch.no_grad():
        expected = network(*torch.split(x, [6, network.side_dim], dim=1)).double().numpy()
    found = apply_float64(to_program(network), pairs.old, pairs.side)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(found - apply_float64(recipe.fit(statistics_of(pairs, rows)), pairs.old, pairs.side)).max() > 0.1


def test_where_rows_bend_a_network_is_chosen_and_beats_the_closed_forms(monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 400)
    pairs, fresh = curved(1200), curved(1000, seed=1)
    found = fit_pairs(pairs, Settings(budget=1e9))
    assert found.chosen.name == network_trial.NAME
    closed = next(trial for trial in found.trials if trial.recipe is not None)
    assert found.chosen.estimate.mean > closed.estimate.mean + 0.1
    assert found.forecast.measured.mean == pytest.approx(found.chosen.estimate.mean, abs=0.1)
    error = {}
    for name, program in (
        ("network", found.program),
        ("closed", closed.recipe.fit(statistics_of(pairs, np.arange(1200)))),
    ):
        h = Transformation(program, "fp32")
        error[name] = np.mean((h(fresh.old, fresh.side if h.side_dim else None) - fresh.new) ** 2)
    assert error["network"] < 0.5 * error["closed"]


def test_where_a_closed_form_is_right_the_network_is_left_out(monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 200)
    rng = np.random.default_rng(0)
    old = rng.standard_normal((1500, 16)).astype(np.float32)
    new = old @ np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32)
    rows = np.arange(1500)
    found = fit_pairs(Pairs(old, new, None, rows), Settings(budget=1e9))
    assert found.chosen.recipe is not None
    assert any("no better than the closed form" in note for note in found.notes)


@pytest.mark.parametrize(
    ("pairs", "budget", "without_torch", "message"),
    [
        (1500, 0.01, False, "takes about"),
        (200, 1e9, False, "that takes 500 pairs"),
        (1500, 1e9, True, r"needs PyTorch \(pip install 'fct-infer\[train\]'\)"),
    ],
)
def test_why_no_network_was_tried_is_said(pairs, budget, without_torch, message, monkeypatch):
    if without_torch:
        monkeypatch.setattr(network_trial, "find_spec", lambda name: None)
    data = curved(pairs)
    cross_fit = CrossFit(data, Split.draw(pairs, None, 0))
    said = network_trial.cross_fit_network(cross_fit, Recipe(), Search("l2"), budget, 0, lambda *_: None)
    assert isinstance(said, str) and re.search(message, said)
