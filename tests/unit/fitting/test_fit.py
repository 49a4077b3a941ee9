from __future__ import annotations

import numpy as np
import pytest
from support.pairs import clustered, families, shuffled_rows

import fct_infer
from fct_infer import Transformation
from fct_infer.errors import ArrayError, GalleryError, GateError, InputError, NonFiniteError, UsageError
from fct_infer.fitting import Pairs, Queries, Settings
from fct_infer.fitting.crossfit import CrossFit, Trial, choose
from fct_infer.fitting.findings import copies
from fct_infer.fitting.forecast import CurvePoint, Growth
from fct_infer.fitting.measures import ByLabels, ByTruth, Overlap
from fct_infer.fitting.splits import Split, items_of
from fct_infer.maps import Recipe
from fct_infer.measuring import Estimate

CLOSED = Settings(network=False)


def test_a_rotation_is_found_from_few_pairs():
    rng = np.random.default_rng(0)
    old = rng.standard_normal((80, 24)).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((24, 24)))[0].astype(np.float32)
    found = fct_infer.fit(old, old @ rotation, settings=CLOSED)
    fresh = rng.standard_normal((50, 24)).astype(np.float32)
    h = Transformation(found.program, "fp32")(fresh)
    cosine = np.sum(h * (fresh @ rotation), axis=1) / np.linalg.norm(h, axis=1) / np.linalg.norm(fresh, axis=1)
    assert cosine.min() > 0.98
    assert found.forecast.agreement.mean > 0.9 and found.forecast.verdict.action == "transform"


def test_of_equals_the_cheapest_is_taken_and_spread_rows_first_if_wanted():
    rng = np.random.default_rng(0)
    scores = rng.random(500)
    noise = 0.1 * rng.standard_normal(500)
    noisy = scores + noise - noise.mean() - 0.001  # a fifth of the standard error
    trials = [
        Trial("best", scores, 900, Recipe()),
        Trial("cheap", noisy, 100, Recipe()),
        Trial("spread", noisy, 300, Recipe(unit_deviation=True)),
        Trial("worse", scores - 0.1, 10, Recipe(unit_deviation=True)),
    ]
    assert choose(trials, prefer_spread=False).name == "cheap"
    assert choose(trials, prefer_spread=True).name == "spread"


def test_spread_rows_that_lack_little_are_taken_where_rows_alone_judge():
    scores = np.random.default_rng(0).random(500)
    trials = [
        Trial("plain", scores, 100, Recipe()),
        Trial("spread", 0.96 * scores, 100, Recipe(unit_deviation=True)),  # clearly worse, by a 25th
        Trial("cheap spread", 0.9 * scores, 10, Recipe(unit_deviation=True)),
    ]
    assert choose(trials, prefer_spread=True).name == "plain"
    assert choose(trials, prefer_spread=True, spread_costs=0.05).name == "spread"
    assert choose(trials, prefer_spread=True, spread_costs=0.03).name == "plain"
    assert choose(trials, prefer_spread=False, spread_costs=0.05).name == "plain"


def test_candidates_are_judged_on_rows_they_were_not_fitted_on():
    """With as many columns as rows, least squares fits its own rows perfectly and others not at all."""
    rng = np.random.default_rng(0)
    old, new = rng.standard_normal((2, 100, 90)).astype(np.float32)
    with pytest.raises(GateError, match="the pairs do not belong together"):
        fct_infer.fit(old, new, settings=CLOSED)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_mismatched_pairs_are_noticed(share):
    old, new, _ = clustered(600)
    new = shuffled_rows(new, share)
    if share == 1.0:
        with pytest.raises(GateError, match="the pairs do not belong together"):
            fct_infer.fit(old, new, settings=CLOSED)
        return
    found = fct_infer.fit(old, new, settings=CLOSED)
    assert any("look as if their two rows were of different items" in note for note in found.notes)


def test_good_pairs_are_not_suspected():
    old, new, _ = clustered(600)
    assert not any("different items" in note for note in fct_infer.fit(old, new, settings=CLOSED).notes)


def test_side_information_that_helps_is_used_and_said():
    rng = np.random.default_rng(0)
    old, side = rng.standard_normal((2, 500, 8)).astype(np.float32)
    new = np.concatenate([old, side], axis=1) @ np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32)
    found = fct_infer.fit(old, new, side, settings=CLOSED)
    assert found.program.dims == {"old": 8, "side": 8}
    assert any(note.startswith("side-information adds") and "nothing" not in note for note in found.notes)
    noise = rng.standard_normal(side.shape).astype(np.float32)
    without = fct_infer.fit(old, old, noise, settings=CLOSED)
    assert any("adds nothing" in note for note in without.notes) and "side" not in without.program.dims


def rows_of_all_lengths(rows, orders, seed):
    """Old rows and their rotation with some noise, shorter and longer by up to so many orders of magnitude."""
    rng, turned = np.random.default_rng(seed), np.linalg.qr(np.random.default_rng(99).standard_normal((16, 16)))[0]
    lengths = 10 ** rng.uniform(-orders, orders, (rows, 1))
    old, noise = rng.standard_normal((2, rows, 16))
    return tuple((lengths * each).astype(np.float32) for each in (old, old @ turned + 0.3 * noise))


@pytest.mark.parametrize("orders", [0, 3])
def test_what_is_promised_of_rows_of_all_lengths_is_what_fresh_rows_find(orders):
    """Where maps of two folds differ by more than the length of short rows, these are told apart by fold first."""
    found = fct_infer.fit(*rows_of_all_lengths(1000, orders, 0), settings=CLOSED)
    promised = found.forecast
    assert any("differ by more than many rows are apart" in note for note in found.notes) == (orders == 3)
    assert (promised.folds, promised.gallery_rows) == ((1, 200) if orders == 3 else (5, 1000))
    h, true = Transformation(found.program, "fp32"), []
    for seed in range(1, 6):
        old, new = rows_of_all_lengths(promised.gallery_rows, orders, seed)
        true.append(Overlap(new, "l2").within(h(old), np.arange(len(new))).mean())
    assert promised.measured.mean == pytest.approx(np.mean(true), abs=3 * promised.measured.standard_error)


@pytest.mark.parametrize(("size", "alone"), [(2, 0.0), (2, 0.5), (3, 0.0), (6, 0.0)])
def test_what_is_promised_by_labels_that_few_rows_share_is_what_fresh_rows_find(size, alone):
    """Rows whose label no other row has are not asked, here or there."""

    def rows(seed):
        old, new, labels = families(1500, size, seed)
        return old, new, np.where(np.arange(1500) < alone * 1500, 1500 + np.arange(1500), labels)

    found = fct_infer.fit(*rows(0)[:2], labels=rows(0)[2], settings=CLOSED)
    promised, h, true = found.forecast.measured, Transformation(found.program, "fp32"), []
    for seed in range(1, 5):
        old, new, labels = rows(seed)
        asked = np.flatnonzero(np.isin(labels, ByLabels.repeated(labels)))
        true.append(ByLabels(new, labels, "l2").scores(h(old), asked).mean())
    assert promised.mean == pytest.approx(np.mean(true), abs=3 * promised.standard_error)


def test_unit_length_is_recognised_and_given_to_the_result():
    old, new, _ = clustered(300)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    found = fct_infer.fit(old, new, settings=CLOSED)
    assert found.metric == "cosine" and any("length 1" in note for note in found.notes)
    norms = np.linalg.norm(Transformation(found.program, "fp32")(old), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_pairs_without_direction_are_left_out_where_directions_are_compared():
    old, new, labels = clustered(600)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    asked = np.setdiff1d(np.arange(0, 600, 3), 300)
    queries = Queries(new[asked], asked[:, None])
    old[[5, 300]] = 0  # as of empty texts
    kept = np.delete(np.arange(600), [5, 300])
    fewer = Queries(new[asked], np.searchsorted(kept, asked)[:, None])
    said = "pairs left out, as a row of length zero has no direction: 2"
    for given, same in (
        ({}, {}),
        ({"labels": labels}, {"labels": labels[kept]}),
        ({"queries": queries}, {"queries": fewer}),
    ):
        found = fct_infer.fit(old, new, settings=CLOSED, **given)
        wanted = fct_infer.fit(old[kept], new[kept], settings=CLOSED, **same)
        assert (found.notes[0], found.pairs) == (said, 598) and found.program.digest == wanted.program.digest
        assert found.forecast == wanted.forecast
    assert said not in fct_infer.fit(old, new, settings=Settings(network=False, metric="l2")).notes


def test_labels_and_queries_give_a_verdict_on_the_whole_upgrade():
    old, new, labels = clustered(600)
    by_labels = fct_infer.fit(old, new, labels=labels, settings=CLOSED)
    assert by_labels.measure == "mAP" and by_labels.forecast.old_old is not None
    assert "mAP old/old" in by_labels.forecast.verdict.sentence
    truth = np.arange(0, 600, 3)[:, None]
    rng = np.random.default_rng(0)
    queries = Queries((new[::3] + 0.1 * rng.standard_normal(new[::3].shape)).astype(np.float32), truth)
    by_queries = fct_infer.fit(old, new, queries=queries, settings=CLOSED)
    assert by_queries.measure == "recall@10"
    assert by_queries.forecast.old_old is None and by_queries.forecast.new_new.mean > 0.9


def test_more_pairs_help_along_the_curve():
    rng = np.random.default_rng(0)
    old = rng.standard_normal((1000, 60)).astype(np.float32)
    new = (old @ rng.standard_normal((60, 60)) + 3 * rng.standard_normal((1000, 60))).astype(np.float32)
    curve = fct_infer.fit(old, new, settings=CLOSED).forecast.curve
    assert [point.pairs for point in curve] == [200, 400, 800]  # four fifths are fitted on
    assert curve[0].estimate.mean < curve[2].estimate.mean


def test_undecided_names_what_would_decide():
    rng = np.random.default_rng(0)
    old = rng.standard_normal((400, 8)).astype(np.float32)
    unseen = 2 * rng.standard_normal((400, 16))  # which no map of the old rows can know
    new = (np.pad(old, ((0, 0), (0, 16))) + np.pad(unseen, ((0, 0), (8, 0)))).astype(np.float32)
    verdict = fct_infer.fit(old, new, settings=CLOSED).forecast.verdict
    assert verdict.action == "undecided"
    assert "Next: a few hundred real searches" in verdict.sentence
    assert (
        "--queries, --old-queries and --truth" in verdict.sentence
        and "More pairs alone will hardly" in verdict.sentence
    )


def growth(*shares):
    return Growth.of(tuple(CurvePoint(100, Estimate(share, 0.0)) for share in shares), 1_000)


def test_how_many_pairs_are_wanted_follows_the_curve():
    steady, shrinking, flat = growth(0.1, 0.2, 0.3), growth(0.1, 0.3, 0.4), growth(0.3, 0.3, 0.3)
    assert steady.twice == pytest.approx(0.1) and shrinking.twice == pytest.approx(0.05) and flat.twice == 0
    assert growth(0.3, 0.2, 0.3).twice == pytest.approx(0.1) and growth(0.1, 0.4, 0.3).twice == 0
    assert steady.pairs_for(0.09) == 2_000 and steady.pairs_for(0.19) == 4_000
    assert shrinking.pairs_for(0.07) == 4_000 and shrinking.pairs_for(0.1) is None  # a geometric series ends there
    assert flat.pairs_for(0.01) is None


def test_the_same_pairs_give_the_same_map():
    old, new, _ = clustered(200)
    first, second = (fct_infer.fit(old, new, settings=CLOSED) for _ in range(2))
    assert first.program.digest == second.program.digest and first.chosen.name == second.chosen.name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda old, new: (old[:49], new[:49]), GalleryError, "there are 49 pairs; wanted at least 50"),
        (lambda old, new: (old, new[:-1]), ArrayError, r"new: is float32 \(99, 16\), wanted floating-point \(100, d\)"),
        (lambda old, new: (old.astype(int), new), ArrayError, "old: is int64"),
        (lambda old, new: (old, new.astype(float) * 1e39), NonFiniteError, "new: row 0"),
        (lambda old, new: (np.ones_like(old), new), GalleryError, "OLD: all rows are equal"),
        (lambda old, new: (np.where(np.arange(100)[:, None] == 7, np.inf, old), new), NonFiniteError, "old: row 7"),
    ],
)
def test_bad_pairs_are_refused(change, error, message):
    old, new, _ = clustered(100)
    with pytest.raises(error, match=message):
        fct_infer.fit(*change(old, new), settings=CLOSED)


def test_queries_of_the_other_model_are_told_from_their_width():
    old, new, _ = clustered(100)
    queries = Queries(old[:10], np.arange(10)[:, None])
    with pytest.raises(UsageError, match=r"new queries are 12 wide, wanted 16; .* are they swapped"):
        fct_infer.fit(old, new, queries=queries, settings=CLOSED)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (np.full((10, 1), -2), "truth: goes from -2 to -2, wanted -1 to 99"),
        (np.full((10, 1), 100), "truth: goes from 100"),
        (np.zeros((10, 1)), "truth: is float64"),
        (np.zeros((9, 1), int), r"new queries: are float32 \(10, 16\), wanted floats \(9, 16\)"),
        (np.full((10, 1), -1), "no query's right row is among the pairs"),
    ],
)
def test_truth_that_names_no_pairs_is_refused(truth, message):
    old, new, _ = clustered(100)
    with pytest.raises(InputError, match=message):
        fct_infer.fit(old, new, queries=Queries(new[:10], truth), settings=CLOSED)


def test_queries_without_a_right_row_are_left_out():
    old, new, _ = clustered(200)
    pairs = Pairs(old, new, None, np.arange(200))
    truth = np.array([3, -1, 5])
    checked = Queries(new[[3, 4, 5]], truth, old[[3, 4, 5]]).checked(pairs)
    assert checked.truth.tolist() == [[3], [5]]
    np.testing.assert_array_equal(checked.new, new[[3, 5]])
    np.testing.assert_array_equal(checked.old, old[[3, 5]])


def test_a_map_of_queries_is_judged_as_it_is_used():
    """Mapped new rows search old rows that stay as they are; old/old and new/new keep their meaning."""
    old, new, labels = clustered(600, old_dim=16, new_dim=6)
    found = fct_infer.fit(old, new, labels=labels, settings=Settings(network=False, direction="new-to-old"))
    h = Transformation(found.program, "fp32")
    assert (h.old_dim, h.new_dim) == (6, 16)
    rows, everything = np.arange(600), ByLabels(old, labels, "l2")
    in_use = everything.between(h(new), old, rows).mean()
    assert found.forecast.measured.mean == pytest.approx(in_use, abs=0.05)
    assert found.forecast.old_old.mean == pytest.approx(everything.between(old, old, rows).mean(), abs=0.05)
    assert found.forecast.new_new.mean == pytest.approx(everything.between(new, new, rows).mean(), abs=0.05)
    assert found.forecast.old_old.mean > found.forecast.new_new.mean + 0.1
    with pytest.raises(UsageError, match="a map of queries is judged"):
        fct_infer.fit(old, new, queries=Queries(new, rows), settings=Settings(direction="new-to-old"))


def test_long_rows_that_win_every_inner_product_are_no_mismatch():
    rng = np.random.default_rng(0)
    new = rng.standard_normal((500, 24))
    new[:, 0] += 12
    new = (new * rng.lognormal(sigma=0.6, size=(500, 1))).astype(np.float32)
    old = new @ np.linalg.qr(rng.standard_normal((24, 24)))[0].astype(np.float32)
    found = fct_infer.fit(old, new, settings=Settings("ip", network=False))
    assert not any("different items" in note for note in found.notes)


def test_equal_rows_are_no_mismatch():
    old, new, _ = clustered(300)
    new[:200] = new[0]
    fct_infer.fit(old, new, settings=CLOSED)


def test_copies_of_an_item_are_held_out_together():
    """Unrelated rows, each five times: a map that knew four of them would know the fifth."""
    rng = np.random.default_rng(0)
    old, new = rng.standard_normal((120, 96)), rng.standard_normal((120, 96))
    rows = rng.permutation(np.repeat(np.arange(120), 5))
    with pytest.raises(GateError, match="do not belong together"):
        fct_infer.fit(old[rows], new[rows], settings=CLOSED)
    items = items_of(Pairs(*(each[rows].astype(np.float32) for each in (old, new)), None, rows))
    assert len(np.unique(items)) == 120
    split = Split.draw(600, None, 0, items=items)
    assert all(len(set(split.folds[items == item])) == 1 for item in np.unique(items))


def test_too_few_different_items_are_refused():
    """Such as rows of so few bits that every one has its double, by old or by new row."""
    old, new, _ = clustered(400)
    with pytest.raises(GalleryError, match="there are 2 different items among 400 pairs"):
        fct_infer.fit((old[:, :1] > 0).astype(np.float32), new, settings=CLOSED)


def test_near_copies_are_said():
    old, new, _ = clustered(100)
    rng = np.random.default_rng(0)
    noisy = [np.repeat(each, 4, axis=0) + 1e-5 * rng.standard_normal((400, each.shape[1])) for each in (old, new)]
    notes = fct_infer.fit(*noisy, settings=CLOSED).notes
    assert any("have a near copy among the pairs" in note for note in notes)


@pytest.mark.parametrize("factor", [1e-15, 1.0, 1e18])
def test_rows_of_any_length_are_no_copies(factor):
    rows = np.random.default_rng(0).standard_normal((300, 16)) * factor
    pairs = Pairs(rows.astype(np.float32), rows.astype(np.float32), None, np.arange(300))
    assert copies(CrossFit(pairs, Split.draw(300, None, 0))) == []


def test_unit_length_is_judged_as_it_is_shipped():
    """By inner product, rows of h before and after they are given length 1 are found in another order."""
    old, new, _ = clustered(800)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    agreements = [
        fct_infer.fit(old, new, settings=Settings(metric, network=False)).forecast.agreement.mean
        for metric in ("ip", "cosine")
    ]
    assert agreements[0] == pytest.approx(agreements[1], abs=0.02)


def test_labels_that_nobody_shares_are_refused_and_rare_ones_are_no_error():
    old, new, _ = clustered(200)
    with pytest.raises(GalleryError, match="no two items have the same label"):
        fct_infer.fit(old, new, labels=np.arange(200), settings=CLOSED)
    labels = np.arange(200)
    labels[1] = 0
    by_labels = fct_infer.fit(old, new, labels=labels, settings=CLOSED)
    assert by_labels.measure == "neighbour overlap@10" and "the labels are too few" in by_labels.notes[0]


@pytest.mark.parametrize("asked", [1, 5])
def test_a_handful_of_queries_neither_chooses_nor_gives_a_verdict(asked):
    old, new, _ = clustered(200)
    found = fct_infer.fit(old, new, queries=Queries(new[:asked], np.arange(asked)), settings=CLOSED)
    assert "the queries are too few to tell one map from another" in found.notes[0]
    without = fct_infer.fit(old, new, settings=CLOSED)
    assert found.chosen.name == without.chosen.name and found.forecast == without.forecast


def test_swapped_sides_are_told_by_queries_whatever_the_widths():
    old, new, _ = clustered(600, 16, 16)
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 600, 100)
    queries = Queries(new[truth] + 0.1 * rng.standard_normal((100, 16)).astype(np.float32), truth)
    assert fct_infer.fit(old, new, queries=queries, settings=CLOSED).forecast.new_new.mean > 0.9
    with pytest.raises(
        GateError, match=r"in NEW as rarely as by chance .* In OLD they find 100.0 %: are OLD and NEW sw"
    ):
        fct_infer.fit(new, old, queries=queries, settings=CLOSED)
    with pytest.raises(GateError, match="does the truth name the right items"):
        fct_infer.fit(old, new, queries=Queries(queries.new, rng.permutation(truth)), settings=CLOSED)


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": float("nan")}, {"seed": 1 << 63}, {"metric": "L2"}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        Settings(**wrong)


# -- measures, against plain loops -------------------------------------------------------------------------------------


def ranking(query, gallery, leave_out=None):
    distances = np.linalg.norm(gallery.astype(np.float64) - query, axis=1)
    if leave_out is not None:
        distances[leave_out] = np.inf
    return np.argsort(distances, kind="stable")


def test_overlap_is_what_loops_find():
    rng = np.random.default_rng(0)
    new, h = rng.standard_normal((2, 60, 5)).astype(np.float32)
    rows = np.array([3, 50, 17])
    overlap = Overlap(new, "l2")
    both = [len(set(ranking(h[i], h, i)[:10]) & set(ranking(new[i], new, i)[:10])) / 10 for i in rows]
    across = [len(set(ranking(new[i], h, i)[:10]) & set(ranking(new[i], new, i)[:10])) / 10 for i in rows]
    np.testing.assert_allclose(overlap.scores(h, rows), both)
    mapped = [len(set(ranking(h[i], new, i)[:10]) & set(ranking(new[i], new, i)[:10])) / 10 for i in rows]
    np.testing.assert_allclose(Overlap(new, "l2", "new-to-old").scores(h, rows), mapped)
    np.testing.assert_allclose(overlap.agreement(h, rows), across)


def test_map_by_labels_is_what_loops_find():
    rng = np.random.default_rng(0)
    new, h = rng.standard_normal((2, 40, 3)).astype(np.float32)
    labels = rng.integers(0, 4, 40)
    rows = np.array([0, 11, 39])
    expected = []
    for i in rows:
        right = (labels == labels[i])[ranking(new[i], h, i)[:-1]]
        expected.append(np.mean([right[: place + 1].mean() for place in np.flatnonzero(right)]))
    np.testing.assert_allclose(ByLabels(new, labels, "l2").scores(h, rows), expected)


def test_recall_of_queries_is_what_loops_find():
    rng = np.random.default_rng(0)
    searching, h = rng.standard_normal((2, 40, 3)).astype(np.float32)
    truth = np.stack([rng.permutation(40), np.where(rng.random(40) < 0.5, -1, rng.permutation(40))], axis=1)
    rows = np.array([5, 6, 30])
    expected = []
    for i in rows:
        right = {row for row in truth[i].tolist() if row >= 0}
        expected.append(len(right & set(ranking(searching[i], h)[:10].tolist())) / len(right))
    measure = ByTruth(searching, truth, "l2")
    for place, i in enumerate(rows):
        if len(set(truth[i].tolist())) == 2:
            np.testing.assert_allclose(measure.scores(h, rows)[place], expected[place])
