"""OPQ's rotation follows from the rows' variances, and codes lose no more than behind FAISS's."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from fct_infer.errors import UsageError
from fct_infer.index.factory import describe_index, make_index
from fct_infer.index.principal import principal_directions, train_rotation
from fct_infer.index.training import train_transforms

DIM, PARTS = 24, 4
RNG = np.random.default_rng(2)
MIX = np.linalg.qr(RNG.standard_normal((DIM, DIM)))[0] * (1 + np.arange(DIM)[:, None]) ** -0.8
ROWS = (RNG.standard_normal((6000, DIM)) @ MIX + 3).astype(np.float32)


def rotation(rows, dims=DIM, parts=PARTS):
    opq = faiss.OPQMatrix(rows.shape[1], parts, dims)
    train_rotation(opq, rows)
    return opq, faiss.vector_to_array(opq.A).reshape(dims, rows.shape[1])


def left_by_codes(rows):
    """Return the squares that a product quantizer leaves of rows."""
    quantizer = faiss.ProductQuantizer(rows.shape[1], PARTS, 6)
    quantizer.train(rows)
    return ((rows - quantizer.decode(quantizer.compute_codes(rows))) ** 2).sum(axis=1).mean()


def test_codes_lose_less_than_behind_faiss_own_rotation():
    opq, ours = rotation(ROWS)
    theirs = faiss.OPQMatrix(DIM, PARTS)
    theirs.train(ROWS)
    found = [left_by_codes(rows) for rows in (opq.apply(ROWS), theirs.apply(ROWS), ROWS)]
    assert found[0] < 1.01 * found[1] < 0.9 * found[2]
    assert np.allclose(ours @ ours.T, np.eye(DIM), atol=1e-5)
    assert np.allclose(opq.reverse_transform(opq.apply(ROWS)), ROWS, atol=1e-4)


def test_parts_are_equally_hard_and_hold_all_that_there_is():
    opq, _ = rotation(ROWS)
    variances = opq.apply(ROWS).astype(np.float64).var(axis=0)
    assert variances.sum() == pytest.approx(ROWS.astype(np.float64).var(axis=0).sum(), rel=1e-4)
    products = np.log(variances.reshape(PARTS, -1)).sum(axis=1)
    assert np.ptp(products) < 0.5  # dealt out in order the first part would be e**10 times the last
    assert np.ptp(np.log(np.sort(variances)[::-1].reshape(PARTS, -1)).sum(axis=1)) > 5


@pytest.mark.parametrize("dims", [12, 32])
def test_dims_that_are_fewer_and_more(dims):
    opq, found = rotation(ROWS, dims)
    directions, variances = principal_directions(ROWS)
    kept = found @ directions.T
    assert np.allclose(np.abs(kept).sum(axis=0), np.arange(DIM) < dims, atol=1e-5)  # each of the first, once
    assert sorted(np.linalg.norm(found, axis=1).round(4)) == [0] * max(0, dims - DIM) + [1] * min(dims, DIM)
    assert opq.apply(ROWS).astype(np.float64).var(axis=0).sum() == pytest.approx(variances[:dims].sum(), rel=1e-3)


@pytest.mark.parametrize("length", [1e4, 1e15, 1e30])
def test_a_row_that_is_far_off_changes_little(length):
    far = ROWS.copy()
    far[17] *= np.float32(length)
    found, expected = (left_by_codes(rotation(rows)[0].apply(ROWS)) for rows in (far, ROWS))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("rows", [np.ones((300, DIM), np.float32), np.zeros((2, DIM), np.float32), ROWS[:1]])
def test_rows_that_do_not_differ_are_rotated_all_the_same(rows):
    _, found = rotation(rows)
    assert np.allclose(found @ found.T, np.eye(DIM), atol=1e-5)


def test_more_rows_than_are_looked_at():
    rows = np.tile(ROWS, (12, 1))
    found, expected = (left_by_codes(rotation(each)[0].apply(ROWS)) for each in (rows, ROWS))
    assert found == pytest.approx(expected, rel=0.02)


def test_transforms_are_trained_once_and_in_turn():
    index = make_index("PCA16,OPQ4,IVF8,PQ4", DIM, "l2")
    handed_on = train_transforms(index, ROWS)
    assert handed_on.shape == (6000, 16)
    assert np.allclose(train_transforms(index, ROWS[::-1].copy())[::-1], handed_on, atol=1e-5)


def test_parts_that_do_not_divide_the_dims_are_refused_before_any_row_is_read():
    with pytest.raises(UsageError, match="its 16 dims cannot be cut into 5 equal parts"):
        describe_index("OPQ5_16,IVF8,PQ4", DIM, 6000, "l2")
