from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from support.pairs import clustered, curved

from fct_infer import Transformation
from fct_infer.errors import ArrayError, NonFiniteError, UsageError
from fct_infer.fitting import Settings, Stored, compress, fit_pairs, network_trial
from fct_infer.fitting import fit as fit_module
from fct_infer.fitting.budget import Budget
from fct_infer.fitting.compress import Judge, Teachers, is_as_good
from fct_infer.fitting.crossfit import CrossFit, statistics_of
from fct_infer.fitting.measures import Overlap
from fct_infer.fitting.network import Schedule, train
from fct_infer.fitting.splits import Split
from fct_infer.maps import Recipe
from fct_infer.training.models.folding import to_program


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(compress, "SHAPES", ((0, 0), (32, 2)))
    monkeypatch.setattr(compress, "STEPS", (400,))
    monkeypatch.setattr(compress, "TOLERATED", 0.15)  # what so short a training loses
    monkeypatch.setattr(compress, "rows_per_second", lambda h: 1.0)


def outside_the_first_fold(pairs, seed=0):
    """A cross-fit, what judges in its first fold, and a wide network trained on the others."""
    split = Split.draw(len(pairs), None, seed)
    cross_fit, folds = CrossFit(pairs, split), split.folds[split.judged]
    rows = split.judged[folds == 0]
    judge = Judge(rows, Overlap(pairs.new[rows], "l2"), np.arange(len(rows)))
    others = np.flatnonzero(split.folds != 0)
    start = Recipe(alpha=0.1, side_alpha=0.1), statistics_of(pairs, others)
    return cross_fit, judge, to_program(train(pairs, others, start, Schedule(128, 500, 500)))


def test_a_small_network_learns_from_a_large_one_on_stored_rows(short):
    pairs, stored = curved(800), curved(4000, seed=2)
    cross_fit, judge, teacher = outside_the_first_fold(pairs)
    teachers, rows = Teachers("a network", teacher, teacher), Stored(stored.old, stored.side)
    program, found = compress.compress(cross_fit, judge, teachers, rows, (Budget(1e9), 0), lambda *_: None)
    linear, small = found.students
    assert found.chosen is small and program.flops_per_row == small.flops < 0.25 * teacher.flops_per_row
    assert not is_as_good(linear.scores, found.teacher.scores) and linear.flops == 2 * 12 * 8
    h, large = (Transformation(each, "fp32") for each in (program, teacher))
    fresh = curved(500, seed=3)
    wanted = large(fresh.old, fresh.side)
    assert np.mean((h(fresh.old, fresh.side) - wanted) ** 2) < 0.15 * np.var(wanted)
    assert (found.stored, found.steps) == (4800, 400)
    json.dumps(found.as_dict(), allow_nan=False)


def test_where_no_smaller_map_is_as_good_the_large_one_is_kept(short, monkeypatch):
    monkeypatch.setattr(compress, "SHAPES", ((0, 0),))
    pairs = curved(800)
    cross_fit, judge, teacher = outside_the_first_fold(pairs)
    stored = Stored(pairs.old[:0], pairs.side[:0])
    program, found = compress.compress(
        cross_fit, judge, Teachers("a network", teacher, teacher), stored, (Budget(1e9), 0), lambda *_: None
    )
    assert program is teacher and found.chosen is found.teacher


@pytest.mark.parametrize(
    ("width", "budget", "without_torch", "message"),
    [
        (64, 1e-3, False, r"nothing was compressed: it takes about \d+ s, 0 s are left; --budget \d+m would do"),
        (64, 1e9, True, r"needs PyTorch \(pip install 'fct-infer\[train\]'\)"),
        (2, 1e9, False, "as small as any network"),
    ],
)
def test_why_nothing_was_compressed_is_said(short, width, budget, without_torch, message, monkeypatch):
    if without_torch:
        monkeypatch.setattr(compress, "find_spec", lambda name: None)
    pairs = replace(curved(300), side=None)
    rows = np.arange(300)
    cross_fit = CrossFit(pairs, Split.draw(300, None, 0))
    teacher = to_program(train(pairs, rows, (Recipe(), statistics_of(pairs, rows)), Schedule(64, 20, 20)))
    if width == 2:
        teacher = Recipe().fit(statistics_of(pairs, rows))
    judge = Judge(rows, Overlap(pairs.new, "l2"), rows)
    said = compress.compress(
        cross_fit, judge, Teachers("it", teacher, teacher), Stored(pairs.old), (Budget(budget), 0), lambda *_: None
    )
    assert isinstance(said, str)
    assert re.search(message, said)


def test_as_good_is_within_the_noise_or_half_a_point():
    rng = np.random.default_rng(0)
    teacher = rng.random(1000)
    noise = 0.1 * rng.standard_normal(1000)
    noise -= noise.mean()  # of standard error 0.003
    assert is_as_good(teacher + noise - 0.004, teacher) and is_as_good(teacher + 0.2, teacher)
    assert not is_as_good(teacher + noise - 0.006, teacher)
    assert is_as_good(teacher[:50] + 10 * noise[:50] - 0.05 - 10 * noise[:50].mean(), teacher[:50])


def test_a_fit_is_compressed_and_says_how_small_it_became(short, monkeypatch):
    pairs, stored, fresh = curved(600), curved(2000, seed=2), curved(600, seed=1)

    def no_screening(screen, budget, seed, progress, model):
        """Stands in for a training that this test does not look at; rows of the new model judge as well."""
        program, rows = outside_the_first_fold(pairs)[2], pairs.new[screen.fold.split.judged]
        trial = screen.trial(network_trial.NAMES[model], rows, program.flops_per_row)
        return network_trial.Network(trial, rows, program, Schedule(128, 400, 400), 1.0, 1.0)

    monkeypatch.setattr(fit_module, "screen_network", no_screening)
    found = fit_pairs(pairs, Settings(compress=Stored(stored.old, stored.side)))
    assert found.chosen.name == network_trial.NAMES["residual"]
    assert found.program.flops_per_row == found.compression.chosen.flops < 0.25 * found.chosen.flops
    error = np.mean((Transformation(found.program, "fp32")(fresh.old, fresh.side) - fresh.new) ** 2)
    assert error < 0.3 * np.var(fresh.new)
    assert found.as_dict()["compression"]["stored_rows"] == 2600


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda old: old[:, 1:], ArrayError, r"stored old rows: are float32 \(300, 11\), wanted float32 \(300, 12\)"),
        (lambda old: old.astype(float), ArrayError, "stored old rows: are float64"),
        (lambda old: np.where(np.arange(300)[:, None] == 9, np.nan, old), NonFiniteError, "stored old rows: row 9"),
    ],
)
def test_stored_rows_unlike_those_of_the_pairs_are_refused(change, error, message):
    old, new, _ = clustered(300)
    pairs = replace(curved(300), old=old, new=new, side=None)
    with pytest.raises(error, match=message):
        fit_pairs(pairs, Settings(network=False, compress=Stored(change(old))))
    with pytest.raises(ArrayError, match="stored side rows: there are none"):
        fit_pairs(curved(300), Settings(network=False, compress=Stored(curved(300).old)))


def test_a_map_of_queries_is_not_compressed():
    with pytest.raises(UsageError, match="a map of queries is not compressed"):
        Settings(direction="new-to-old", compress=Stored(np.zeros((0, 3), np.float32)))
