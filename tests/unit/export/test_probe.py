from __future__ import annotations

import numpy as np
import pytest
from support.outputs import reference, rows_for
from support.programs import examples

from fct_infer.export import probe
from fct_infer.export.models import ProgramModel
from fct_infer.export.probe import large_batch, make_probe, random_batches

PROGRAM = examples()["plain_mlp"]


def test_a_probe_has_batches_of_every_size_and_what_the_model_makes_of_them(monkeypatch):
    monkeypatch.setattr(probe, "LARGE_BATCH", 4096)
    found = make_probe(ProgramModel(PROGRAM))
    assert [len(batch["old"]) for batch in found.batches] == [1, 2, 7, 4096]
    assert found.real_rows == 0
    for batch in found.batches:
        assert {name: array.shape[1:] for name, array in batch.items()} == {"old": (96,), "side": (32,)}
        assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in batch.values())
    wanted = np.concatenate([reference(PROGRAM, batch) for batch in found.batches])
    np.testing.assert_array_equal(found.expected, wanted)


def test_real_rows_come_last_and_in_order():
    real = rows_for(PROGRAM.dims, 200)
    found = make_probe(ProgramModel(PROGRAM), real)
    assert found.real_rows == 200
    assert len(found.expected) == 1 + 2 + 7 + 64 + 200
    np.testing.assert_allclose(found.expected[-200:], reference(PROGRAM, real))
    assert max(len(batch["old"]) for batch in found.batches) == 64  # in batches as large as the random ones


def test_random_rows_are_like_the_real_ones_feature_by_feature():
    rng = np.random.default_rng(1)
    scale, shift = rng.uniform(0.1, 20, 6), rng.uniform(-50, 50, 6)
    real = {"old": (np.maximum(rng.standard_normal((5000, 6)), 0) * scale + shift).astype(np.float32)}
    (rows,) = (batch["old"] for batch in random_batches({"old": (6,)}, (4000,), real))
    assert (rows >= real["old"].min(axis=0)).all() and (rows <= real["old"].max(axis=0)).all()
    np.testing.assert_allclose(rows.mean(axis=0), real["old"].mean(axis=0), atol=0.2 * scale.max())
    np.testing.assert_allclose(rows.std(axis=0), real["old"].std(axis=0), rtol=0.4)


def test_random_batches_are_the_same_at_every_call():
    first, second = (random_batches({"old": (3,), "side": (2, 1)}, (1, 5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert [array.shape for array in one.values()] in ([(1, 3), (1, 2, 1)], [(5, 3), (5, 2, 1)])
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_model_drawn_from_seed_0_is_not_tried_on_its_own_weights():
    weight = np.random.default_rng(0).standard_normal((16, 48), np.float32)
    (rows,) = (batch["old"] for batch in random_batches({"old": (48,)}, (64,)))
    cosines = rows @ weight.T / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(weight, axis=1)
    assert np.abs(cosines).max() < 0.8


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ({"old": (128,), "side": (64,)}, 4096),
        ({"image": (3, 32, 32)}, 4096),
        ({"image": (3, 224, 224)}, 111),
        ({"image": (3, 2000, 2000)}, 8),  # more than the small batches, whatever it takes
    ],
)
def test_the_large_batch_is_bounded_in_memory(monkeypatch, inputs, rows):
    monkeypatch.setattr(probe, "LARGE_BATCH", 4096)
    assert large_batch(inputs) == rows
