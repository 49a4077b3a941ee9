"""Maps of all folds, cheaply: the same statistics, the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer import Transformation
from fct_infer.errors import GalleryError
from fct_infer.fitting import Pairs, crossfit
from fct_infer.fitting.crossfit import CrossFit, statistics_of
from fct_infer.fitting.splits import Split
from fct_infer.maps import Recipe


def some_pairs(rows=300, old_dim=6, new_dim=9, has_side=True):
    rng = np.random.default_rng(0)
    old, side, new = ((rng.standard_normal((rows, dim)) + 5).astype(np.float32) for dim in (old_dim, 3, new_dim))
    return Pairs(old, new, side if has_side else None, np.arange(rows))


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("only_first", [False, True])
def test_statistics_outside_a_fold_are_those_of_its_rows_alone(share, only_first):
    """Of a hundredth, three rows, no fold but two or three has any."""
    pairs = some_pairs()
    split = Split.draw(300, None, 0)
    cross_fit = CrossFit(pairs, split.first_fold() if only_first else split)
    chosen = np.random.default_rng(0).permutation(300)[: round(300 * share)]
    found = list(cross_fit._outside_folds(share))
    assert len(found) == (1 if only_first else 5)
    for fold, each in enumerate(found):
        wanted = statistics_of(pairs, np.sort(chosen[split.folds[chosen] != fold]))
        assert each.rows == wanted.rows
        np.testing.assert_allclose(each.mean, wanted.mean, rtol=1e-12)
        np.testing.assert_allclose(each.scatter, wanted.scatter, rtol=1e-10, atol=1e-10)


def test_a_column_that_varies_in_one_fold_only_does_not_vary_outside_it():
    """Taken from the sum of all rows, the fold would leave what rounding made of its large numbers."""
    pairs, split = some_pairs(), Split.draw(300, None, 0)
    pairs.old[:, 2] = np.where(split.folds == 1, 1e6 * pairs.old[:, 2], 1.0)
    found = CrossFit(pairs, split).statistics()
    assert found[1].scatter[2, 2] == 0 and found[0].scatter[2, 2] > 1e12


def test_where_one_fold_has_all_rows_there_is_nothing_to_fit():
    with pytest.raises(GalleryError, match="nearly all pairs have their old row or their new row in common"):
        CrossFit(some_pairs(60), Split.draw(60, None, 0, items=np.zeros(60, int))).statistics()


@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(unit_deviation=True), Recipe(side_alpha=1.0, unit_deviation=True)])
def test_rows_are_judged_to_the_byte_as_an_upgrade_computes_them(recipe, unit_length, monkeypatch):
    """Yet no layer is compiled that only sets lengths: it has as many weights as the new rows have pairs of columns."""
    pairs = some_pairs(new_dim=70)
    cross_fit = CrossFit(pairs, Split.draw(300, None, 0), unit_length)
    program = recipe.fit(statistics_of(pairs, np.arange(300)))
    h = Transformation(program.with_normalization() if unit_length else program, "fp32")
    rows, compiled = np.arange(0, 300, 2), []
    monkeypatch.setattr(
        crossfit, "Transformation", lambda each, precision: compiled.append(each) or Transformation(each, precision)
    )
    found = cross_fit.apply(program, rows)
    np.testing.assert_array_equal(found, h(pairs.old[rows], pairs.side[rows] if h.side_dim else None))
    assert sum(each.flops_per_row for each in compiled) == 2 * (6 + 3 * (h.side_dim > 0)) * 70
