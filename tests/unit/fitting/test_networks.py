from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from support.pairs import curved, families

from fct_infer import Transformation
from fct_infer.fitting import Pairs, Queries, Settings, Stored, fit_pairs, network_trial
from fct_infer.fitting import budget as budgets
from fct_infer.fitting.budget import Budget
from fct_infer.fitting.crossfit import CrossFit, statistics_of
from fct_infer.fitting.fit import _judge
from fct_infer.fitting.measures import ByLabels, ByTruth, Overlap, Search
from fct_infer.fitting.network import Schedule, _initial, train
from fct_infer.fitting.network_trial import Network, Screen
from fct_infer.fitting.splits import Split
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

    monkeypatch.setattr(network, "PAPER_WIDTHS", (32, 16))
    monkeypatch.setattr(network, "paper_steps", lambda rows: (300, 64))


def screen_of(pairs, recipe, *, seed=0):
    """Networks that start from a recipe are judged in the first fold, by the neighbours of its rows."""
    fold = CrossFit(pairs, Split.draw(len(pairs), None, seed).first_fold())
    return Screen(fold, recipe, Overlap(pairs.new[fold.split.judged], "l2"), Search("l2"))


def quiet(done, steps):
    """Progress that nobody watches."""


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


def test_the_papers_h_is_trained_outside_the_fold_and_then_on_all_pairs(monkeypatch):
    from fct_infer.fitting import network

    trained = []
    monkeypatch.setattr(network, "STEPS", 150)
    monkeypatch.setattr(
        network, "train", lambda pairs, rows, *rest, **by: trained.append(rows) or train(pairs, rows, *rest, **by)
    )
    screen = screen_of(curved(1000), Recipe(share=1, side_alpha=1.0))
    found = network_trial.screen_network(screen, Budget(1e9), 0, quiet, "paper")
    assert isinstance(found, Network)
    assert (found.schedule.model, found.schedule.hidden) == ("paper", 32)
    assert found.share in network_trial.SHARES and found.trial.name.startswith("the paper's h")
    assert network_trial.is_better(found, screen.closed_form)
    np.testing.assert_array_equal(found.transformed, screen.fold.apply(found.program, screen.fold.split.judged))
    program = network_trial.final_network(screen, found, quiet)
    assert program.structure() == found.program.structure()
    outside, everything = trained[-2:]
    assert not np.isin(outside, screen.fold.split.judged).any() and len(outside) == 800
    assert len(everything) == 1000


def test_the_same_seed_gives_the_same_network(monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 40)
    screen = screen_of(curved(1000), Recipe(share=1, side_alpha=1.0))
    one, again, other = (network_trial.screen_network(screen, Budget(1e9), seed, quiet) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.transformed, again.transformed)
    assert one.schedule == again.schedule and np.any(one.transformed != other.transformed)


@pytest.mark.parametrize(("budget", "hidden"), [(33, 32), (17, 16), (15, None)])
def test_the_papers_h_is_as_wide_as_the_budget_allows(budget, hidden, monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 20)
    monkeypatch.setattr(network_trial, "_seconds", lambda screen, rows, schedule: schedule.hidden)
    monkeypatch.setattr(budgets, "monotonic", lambda: 0.0)
    screen = screen_of(curved(1000), Recipe(side_alpha=1.0))
    found = network_trial.screen_network(screen, Budget(budget, began=0), 0, quiet, "paper")
    if hidden is None:
        assert found == "the paper's h: not tried, it takes about 16 s, 15 s are left; --budget 1m would do"
    else:
        assert found.schedule.hidden == found.expected_seconds == hidden
        assert found.trial.name.startswith("the paper's h" + (", 16 instead of 32 wide" if hidden == 16 else ""))


def test_seconds_are_those_of_both_trainings_and_of_looking_at_the_fold(monkeypatch):
    from fct_infer.fitting import network

    screen = screen_of(curved(1000), Recipe(side_alpha=1.0))
    rows = np.flatnonzero(screen.fold.split.folds != 0)
    schedule = Schedule(8, 3000, 3000)
    clock = iter(np.arange(100.0))  # a second passes whenever it is looked at
    monkeypatch.setattr(network.time, "monotonic", lambda: next(clock))
    assert network_trial._seconds(screen, rows, schedule) == 2 * 3000 * 1 + network.CHECKS * 1


@pytest.mark.parametrize("error", [0.1, 0.3])
def test_the_better_of_both_networks_is_chosen(error, monkeypatch):
    """Neither is trained: one is wrong by 0.2 of the spread of the new rows, the other by more or less than that."""
    from fct_infer.fitting import fit as fit_module

    pairs = curved(1000)
    program = Recipe(alpha=0.1, side_alpha=1.0).fit(statistics_of(pairs, np.arange(1000)))
    budgets = []
    noise = np.random.default_rng(0).standard_normal(pairs.new.shape).astype(np.float32) * pairs.new.std()

    def stand_in(screen, budget, seed, progress, model):
        budgets.append(budget.left)
        wrong = error if model == "paper" else 0.2
        rows = (pairs.new + wrong * noise)[screen.fold.split.judged]
        trial = screen.trial(network_trial.NAMES[model], rows, 10)
        return Network(trial, rows, program, Schedule(4, model=model), 1.0, 1.0)

    monkeypatch.setattr(fit_module, "screen_network", stand_in)
    monkeypatch.setattr(fit_module, "final_network", lambda *_: program)
    found = fit_pairs(pairs)
    assert found.chosen.name == network_trial.NAMES["paper" if error < 0.2 else "residual"]
    assert found.network[1].model == ("paper" if error < 0.2 else "residual")
    assert [network.trial.name for network in found.screened.networks] == list(network_trial.NAMES.values())
    assert found.screened.rows == found.forecast.gallery_rows == 200
    document = found.as_dict()["networks"]
    gains = {each["name"]: each["difference"]["mean"] for each in document["networks"]}
    assert gains[found.chosen.name] == max(gains.values()) > 0
    assert document["queries"] == (200 - found.forecast.queries) // 2  # half of those that do not report
    assert 0 < budgets[1] < budgets[0] < 300


def test_a_network_that_a_user_s_queries_cannot_tell_from_the_closed_form_is_left_out(monkeypatch):
    """Rows would take it: they see an advantage that the queries, which look for labels of their own, do not."""
    from fct_infer.fitting import fit as fit_module

    pairs = curved(1000)
    monkeypatch.setattr(fit_module, "final_network", lambda *_: pytest.fail("trained"))

    def stand_in(screen, budget, seed, progress, model):
        assert isinstance(screen.measure, ByTruth) and len(screen.comparing) == 67
        (program,) = screen.fold.programs(screen.recipe)
        rows = screen.fold.transformed([program])
        return Network(screen.trial("a network", rows, 10), rows, program, Schedule(4, model=model), 1.0, 1.0)

    monkeypatch.setattr(fit_module, "screen_network", stand_in)
    sought = np.random.default_rng(1).choice(1000, 100, replace=False)
    found = fit_pairs(pairs, queries=Queries(pairs.new[sought], sought))
    assert found.chosen.recipe is not None and found.screened.rows == 200
    assert "a network: tried, and no better than the best closed form" in found.notes


def test_where_rows_bend_a_network_is_chosen_and_beats_the_closed_forms(monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 400)
    monkeypatch.setattr(network, "PAPER_WIDTHS", (64,))  # it is not the one that is chosen
    pairs, fresh = curved(1200), curved(1000, seed=1)
    found = fit_pairs(pairs, Settings(budget=1e9))
    assert found.chosen.name == network_trial.NAMES["residual"]
    closed = found.screened.closed_form
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


@pytest.mark.parametrize(
    ("noise", "said"), [(0.0, "the best closed form finds all"), (0.1, "no better than the best closed form")]
)
def test_where_a_closed_form_is_right_the_network_is_left_out(noise, said, monkeypatch):
    from fct_infer.fitting import network

    monkeypatch.setattr(network, "STEPS", 200)
    monkeypatch.setattr(network, "PAPER_WIDTHS", (64,))
    rng = np.random.default_rng(0)
    old = rng.standard_normal((1500, 16)).astype(np.float32)
    new = old @ np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32)
    new += np.float32(noise) * rng.standard_normal((1500, 16)).astype(np.float32)
    rows = np.arange(1500)
    found = fit_pairs(Pairs(old, new, None, rows), Settings(budget=1e9))
    assert found.chosen.recipe is not None
    assert any(said in note for note in found.notes) and (found.screened is None) == (noise == 0)


@pytest.mark.parametrize(
    ("pairs", "budget", "without_torch", "message"),
    [
        (1500, 0.01, False, "takes about"),
        (500, 1e9, False, "that takes 750 pairs"),
        (1500, 1e9, True, r"needs PyTorch \(pip install 'fct-infer\[train\]'\)"),
    ],
)
def test_why_no_network_was_tried_is_said(pairs, budget, without_torch, message, monkeypatch):
    if without_torch:
        monkeypatch.setattr(network_trial, "find_spec", lambda name: None)
    said = network_trial.screen_network(screen_of(curved(pairs), Recipe()), Budget(budget), 0, quiet)
    assert isinstance(said, str) and re.search(message, said)


def test_with_few_queries_no_network_is_tried():
    pairs = curved(1000)
    sought = np.arange(60)
    fold = CrossFit(pairs, Split.draw(1000, 60, 0, kept=sought).first_fold(sought[:, None]))
    measure = ByTruth(pairs.new[sought], np.searchsorted(fold.split.judged, sought)[:, None], "l2")
    said = network_trial.screen_network(Screen(fold, Recipe(), measure, Search("l2")), Budget(1e9), 0, quiet)
    assert said.endswith("that takes 50 queries that look for rows held out from it and do not report; there are 40")


@pytest.mark.parametrize("size", [2, 3])
def test_in_the_fold_labels_that_few_rows_share_say_what_fresh_rows_find(size):
    """Else most rows would be alone in it and find nothing, whatever the map: no network could show what it gains."""
    old, new, labels = families(3000, size)
    split = Split.draw(3000, None, 0, labels=labels).first_fold()
    fold, rows = CrossFit(Pairs(old, new, None, np.arange(3000), labels), split), len(split.judged)
    closed = Screen(fold, Recipe(), ByLabels(new[split.judged], labels[split.judged], "l2"), Search("l2")).closed_form
    h, true = Transformation(fold.programs(Recipe())[0], "fp32"), []
    for seed in range(1, 5):
        old, new, labels = families(rows, size, seed)
        true.append(ByLabels(new, labels, "l2").scores(h(old), np.arange(rows)).mean())
    assert len(closed.scores) > 190 and rows == pytest.approx(600, abs=size)
    assert closed.estimate.mean == pytest.approx(np.mean(true), abs=3 * closed.estimate.standard_error)


def test_labels_that_hardly_any_rows_of_the_fold_share_judge_neither_networks_nor_small_maps():
    pairs = curved(3000)
    labels = np.where(np.arange(3000) < 300, np.arange(3000) // 2, 3000 + np.arange(3000))
    fold = CrossFit(replace(pairs, labels=labels), Split.draw(3000, None, 0, labels=labels).first_fold())
    judged = fold.split.judged
    screen = Screen(fold, Recipe(), ByLabels(pairs.new[judged], labels[judged], "l2"), Search("l2"))
    said = network_trial.screen_network(screen, Budget(1e9), 0, quiet)
    assert "that takes 750 pairs that share their label with others" in said
    judge = _judge(screen, Search("l2"))
    assert isinstance(judge.measure, Overlap) and len(judge.queries) == len(judge.rows) == 600


def test_the_budget_that_would_do_counts_what_comes_first(monkeypatch):
    """Closed forms took 200 of 300 seconds; what was refused before would be done with a larger budget."""
    now = [0.0]
    monkeypatch.setattr(budgets, "monotonic", lambda: now[0])
    budget = Budget(300, began=0)
    now[0] = 200
    assert budget.left == 100 and replace(budget, share=0.5).left == 50
    assert budget.refuse(340) == "it takes about 340 s, 100 s are left; --budget 10m would do"
    now[0] = 400
    assert replace(budget, share=0.5).refuse(160) == "it takes about 160 s, 0 s are left; --budget 20m would do"


@pytest.mark.parametrize("has_students", [False, True])
def test_with_the_budget_that_was_said_to_do_a_network_is_tried(has_students, monkeypatch):
    """Closed forms take 1,000 seconds by this clock, each network 300; half of what is left is for students."""
    from fct_infer.fitting import fit as fit_module

    now, tried = [0.0], []
    monkeypatch.setattr(budgets, "monotonic", lambda: now[0])
    monkeypatch.setattr(network_trial, "_seconds", lambda *_: 300.0)

    class TrainedError(Exception):
        """A training began, which takes half of what both take."""

    def train(pairs, rows, start, schedule, check, progress):
        tried.append(schedule.model)
        now[0] += 150
        raise TrainedError

    def screen_network(*args):
        try:
            return network_trial.screen_network(*args)
        except TrainedError:
            return "tried"

    monkeypatch.setattr("fct_infer.fitting.network.train", train)
    monkeypatch.setattr(fit_module, "screen_network", screen_network)
    screen = screen_of(curved(1000), Recipe(side_alpha=1.0))
    settings = Settings(compress=Stored(screen.fold.pairs.old) if has_students else None)

    def said(seconds):
        now[0] = 1000.0
        return fit_module._networks(screen, settings, Budget(seconds, began=0), lambda *_: None)[2]

    minutes = [int(re.search(r"--budget (\d+)m would do", note)[1]) for note in said(300)]
    assert not tried and len(minutes) == 2
    said(60 * minutes[0])
    assert tried[0] == "residual"
    tried.clear()
    said(60 * minutes[1])
    assert tried == ["residual", "paper"]
