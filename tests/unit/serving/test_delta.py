"""The delta alone: exact whatever the blocks, old views untouched by later changes."""

from __future__ import annotations

import numpy as np
import pytest
from support.programs import random_rows

from fct_infer.serving import delta as module
from fct_infer.serving.delta import Delta

DIM = 5


@pytest.mark.parametrize("block", [1, 999, 1 << 24])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_nearest_is_exact_in_blocks_of_any_size(monkeypatch, block, metric):
    monkeypatch.setattr(module, "_BLOCK_VALUES", block)
    rows, queries, delta = random_rows(300, DIM) + 100, random_rows(40, DIM, 1) + 100, Delta(DIM, np.dtype(np.int64))
    delta.put(np.arange(300), rows, True)
    delta.drop(np.arange(0, 300, 3))
    costs, ids, is_new = delta.view().nearest(queries, 250, metric)
    wide = rows.astype(float), queries.astype(float)
    exact = ((wide[1][:, None] - wide[0]) ** 2).sum(axis=2) if metric == "l2" else -(wide[1] @ wide[0].T)
    exact[:, ::3] = np.inf
    order = np.argsort(exact, axis=1)[:, :200]
    assert costs[:, :200] == pytest.approx(np.take_along_axis(exact, order, axis=1), rel=1e-5)
    # Rows around 100 leave the fast l2 costs few digits: the order is that of the exact ones.
    assert (ids[:, :10] == order[:, :10]).mean() > (0.99 if metric == "l2" else 0.9)
    assert np.isinf(costs[:, 200:]).all() and (ids[:, 200:] == -1).all() and is_new[:, :200].all()


def test_a_view_is_as_it_was_whatever_comes_later():
    delta = Delta(DIM, np.dtype("U2"))
    delta.put(np.array(["a", "b"]), random_rows(2, DIM), True)
    view = delta.view()
    before = [each.copy() for each in view.kept()]
    for number in range(3000):  # grows, is tidied, and gets wider ids
        delta.put(np.array(["a", f"name {number % 7}"]), random_rows(2, DIM, number), False)
    delta.drop(np.array(["b"]))
    assert all(np.array_equal(*both) for both in zip(before, view.kept(), strict=True))
    ids, rows, is_new = delta.view().kept()
    assert sorted(ids) == ["a", *(f"name {number}" for number in range(7))]
    assert np.array_equal(rows[ids == "a"][0], random_rows(2, DIM, 2999)[0]) and not is_new.any()
    assert len(delta.view().ids) < 2000  # what was replaced is dropped in time
