import pytest

from fct_infer.evaluation import BackfillingCurve, judge


def curve(*merits):
    shares = tuple(index / (len(merits) - 1) for index in range(len(merits)))
    return BackfillingCurve(shares, merits, {1: merits})


CURVES = {"random": curve(0.60, 0.70, 0.78, 0.795, 0.80), "uncertain": curve(0.60, 0.75, 0.793, 0.796, 0.80)}
STRAIGHT = {"random": curve(0.60, 0.65, 0.70, 0.75, 0.80)}


@pytest.mark.parametrize(
    ("old_old", "new_old", "new_new", "curves", "action", "backfill"),
    [
        (0.5, 0.45, 0.5, None, "keep old", 0.0),  # nothing to gain
        (0.5, 0.45, 0.4, CURVES, "keep old", 0.0),
        (0.5, 0.792, 0.8, CURVES, "transform", 0.0),  # 99 % reached as it is
        (None, 0.81, 0.8, None, "transform", 0.0),
        (0.5, 0.6, 0.8, CURVES, "transform and backfill", 0.5),  # the better order's share
        (None, 0.6, 0.8, CURVES, "transform and backfill", 0.5),
        (0.6, 0.6, 0.8, CURVES, "re-embed", 1.0),  # the criterion fails: a step back meanwhile
        (0.5, 0.6, 0.8, STRAIGHT, "re-embed", 1.0),  # 99 % only when all is done
        (0.5, 0.6, 0.8, None, "transform and backfill", None),  # better than today; of parts nothing is known
        (0.6, 0.6, 0.8, None, "re-embed", 1.0),
        (None, 0.6, 0.8, None, "re-embed", 1.0),
        (0.5, 0.6, None, None, "transform", None),
        (0.6, 0.6, None, None, "keep old", None),
        (None, 0.6, None, None, "undecided", None),
    ],
)
def test_every_branch_of_the_rule(old_old, new_old, new_new, curves, action, backfill):
    verdict = judge(old_old, new_old, new_new, curves)
    assert (verdict.action, verdict.backfill) == (action, backfill)
    assert f"new/old {100 * new_old:.1f} %" in verdict.sentence
    assert verdict.sentence.endswith(".") and "\n" not in verdict.sentence


def test_the_sentence_holds_share_order_and_gap():
    sentence = judge(0.5, 0.6, 0.8, CURVES).sentence
    assert "backfill 50 % of the rows (uncertain)" in sentence and "33 % of the gap closed" in sentence
