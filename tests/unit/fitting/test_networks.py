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


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    """A paper's h that is trained in a moment."""
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "PAPER_WIDTH", 32)


@pytest.mark.parametrize("has_side", [True, False])
def test_the_papers_h_learns_between_standardised_spaces(has_side):
    import torch

    pairs = curved(1500)
    rows, recipe = np.arange(1200), Recipe(alpha=0.1, side_alpha=1.0 if has_side else None)
    start = recipe, statistics_of(pairs, rows)
    h = train(pairs, rows, start, Schedule(64, 500, 500, model="paper"))
    assert (h.old_dim, h.side_dim) == (6, pairs.side.shape[1] if has_side else 0)
    fresh = slice(1200, None)
    side = pairs.side[fresh] if has_side else None
    found = apply_float64(to_program(h), pairs.old[fresh], side)
    with torch.no_grad():
        expected = h(*(torch.from_numpy(part) for part in (pairs.old[fresh], side) if part is not None))
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-3, atol=1e-3)
    if has_side:  # without it nothing bends that h could see
        ridge = apply_float64(recipe.fit(start[1]), pairs.old[fresh], side)
        assert np.mean((found - pairs.new[fresh]) ** 2) < 0.8 * np.mean((ridge - pairs.new[fresh]) ** 2)


def test_the_papers_h_is_trained_fold_by_fold_if_it_is_better_than_the_closed_form(monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 150)
    pairs = curved(1000)
    cross_fit = CrossFit(pairs, Split.draw(1000, None, 0))
    found = network_trial.cross_fit_network(
        cross_fit, Recipe(share=1, side_alpha=1.0), Search("l2"), 1e9, 0, lambda *_: None, "paper"
    )
    assert isinstance(found, network_trial.Network)
    assert (found.schedule.model, found.schedule.hidden, len(found.programs)) == ("paper", 32, 5)
    program = network_trial.final_network(cross_fit, Recipe(side_alpha=1.0), found, lambda *_: None)
    assert program.structure() == found.programs[0].structure()


@pytest.mark.parametrize("error", [0.1, 0.3])
def test_the_better_of_both_networks_is_chosen(error, monkeypatch):
    """Neither is trained: one is wrong by 0.2 of the spread of the new rows, the other by more or less than that."""
    from fct_infer.fitting import fit as fit_module

    pairs = curved(1000)
    program = Recipe(alpha=0.1, side_alpha=1.0).fit(statistics_of(pairs, np.arange(1000)))
    budgets = []
    noise = np.random.default_rng(0).standard_normal(pairs.new.shape).astype(np.float32) * pairs.new.std()

    def stand_in(cross_fit, recipe, search, budget, seed, progress, model):
        budgets.append(budget)
        wrong = error if model == "paper" else 0.2
        rows = (pairs.new + wrong * noise)[cross_fit.split.judged]
        return network_trial.Network(rows, 10, Schedule(4, model=model), (program,) * 5)

    monkeypatch.setattr(fit_module, "cross_fit_network", stand_in)
    monkeypatch.setattr(fit_module, "final_network", lambda *_: program)
    found = fit_pairs(pairs)
    assert found.chosen.name == network_trial.NAMES["paper" if error < 0.2 else "residual"]
    assert found.network[1].model == ("paper" if error < 0.2 else "residual")
    assert {trial.name for trial in found.trials} > set(network_trial.NAMES.values())
    assert 0 < budgets[1] < budgets[0] < 300


def test_where_rows_bend_a_network_is_chosen_and_beats_the_closed_forms(monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 400)
    pairs, fresh = curved(1200), curved(1000, seed=1)
    found = fit_pairs(pairs, Settings(budget=1e9))
    assert found.chosen.name == network_trial.NAMES["residual"]
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
    assert any("no better than the best closed form" in note for note in found.notes)


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
