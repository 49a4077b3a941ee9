"""What ``inspect`` counts is what was put there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import vector_files as files

from fct_infer.connectors.inspection import inspect


def test_what_is_unusual_is_counted(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((500, 8), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:100] *= 3
    vectors[10] = 0
    vectors[20, 4], vectors[30, 1] = np.nan, np.inf
    vectors[40] = vectors[41] = vectors[42]
    ids = np.arange(500)
    ids[7] = ids[8]
    np.savez(tmp_path / "a.npz", embedding=vectors, ids=ids, side=np.zeros((500, 2), np.float32))
    found = inspect(tmp_path / "a.npz")
    norms = np.linalg.norm(np.delete(vectors, (20, 30), axis=0).astype(np.float64), axis=1)
    assert (found.rows, found.old_dim, found.side_dim, found.dtype, found.format) == (500, 8, 2, "float32", "npz")
    assert (found.zero_rows, found.non_finite_rows, found.duplicate_rows) == (1, 2, 2)
    assert found.first_non_finite == (f"{tmp_path}/a.npz, row 20", f"{tmp_path}/a.npz, row 30")
    assert found.norm_min == 0 and found.norm_max == pytest.approx(norms.max())
    assert found.norm_median == pytest.approx(np.median(norms)) and found.unit_norm == pytest.approx(400 / 500)
    assert (found.ids, found.duplicate_ids) == ("int64", 1)
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("name", files.FLOAT16)
def test_every_format_is_inspected(tmp_path, name):
    files.FLOAT16[name](tmp_path / name, np.ones((100, 3), np.float16))
    found = inspect(tmp_path / name)
    assert (found.rows, found.dtype, found.duplicate_rows, found.ids) == (100, "float16", 99, None)


def test_nothing_finite_is_said_without_norms(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 2), np.nan, np.float32))
    found = inspect(tmp_path / "a.npy")
    assert (found.norm_min, found.norm_median, found.norm_max, found.non_finite_rows) == (None, None, None, 3)
