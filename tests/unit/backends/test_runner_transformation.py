from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.programs import linear_map, plain_mlp, random_rows

from fct_infer.backends.runner import Interface, Runner
from fct_infer.backends.runner_transformation import RunnerTransformation
from fct_infer.errors import ArrayError, ArtifactError, NonFiniteError, ResourceError, UsageError
from fct_infer.reference import apply_float64

PROGRAM = plain_mlp(7, 3, 5, hidden=(4,))


class ReferenceRunner(Runner):
    """A program in float64; records what it was given."""

    backend, device, runtime = "numpy", "cpu", "numpy 2 cpu"

    def __init__(self, program=PROGRAM):
        self.program = program
        self.interface = Interface({name: (dim,) for name, dim in program.dims.items()}, program.new_dim)
        self.given: list[dict[str, np.ndarray]] = []
        self.fail: BaseException | None = None
        self.spoil = lambda result: result

    def run(self, batch):
        self.given.append(dict(batch))
        if self.fail:
            raise self.fail
        for array in batch.values():
            assert array.dtype == np.float32 and array.flags.c_contiguous
        result = apply_float64(self.program, batch["old"], batch.get("side")).astype(np.float32)
        return self.spoil(np.ascontiguousarray(result))


@pytest.fixture
def runner():
    return ReferenceRunner()


@pytest.fixture
def h(runner):
    return RunnerTransformation(runner, digest="d" * 64, precision="fp16", program=PROGRAM, threads=2)


def test_it_says_what_it_is(h):
    assert (h.backend, h.device, h.precision, h.threads, h.digest) == ("numpy", "cpu", "fp16", 2, "d" * 64)
    assert (h.old_dim, h.side_dim, h.new_dim) == (7, 3, 5)
    assert "backend='numpy', device='cpu', precision='fp16'" in repr(h)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 4096])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_batch_in_either_type(h, rows, dtype):
    old, side = random_rows(rows, 7).astype(dtype), random_rows(rows, 3, 1).astype(dtype)
    wanted = apply_float64(PROGRAM, old, side)
    found = h(old, side)
    assert found.dtype == np.float32 and found.shape == (rows, 5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    out = np.empty((rows, 5), np.float16)
    h.apply_into(old, side, out)
    np.testing.assert_array_equal(out, found.astype(np.float16))


def test_without_side_information_the_runner_gets_none():
    runner = ReferenceRunner(linear_map(6, 4))
    h = RunnerTransformation(runner, digest="d", precision="fp32")
    assert (h.side_dim, h.program) == (0, None)
    np.testing.assert_allclose(h(random_rows(3, 6)), apply_float64(runner.program, random_rows(3, 6)), rtol=1e-6)
    assert [set(batch) for batch in runner.given] == [{"old"}]
    with pytest.raises(ArrayError, match="side was given"):
        h(random_rows(3, 6), random_rows(3, 6))


def test_normalized_rows_have_length_one_and_another_digest(h):
    normalized = h.normalized()
    old, side = random_rows(50, 7), random_rows(50, 3, 1)
    wanted = apply_float64(PROGRAM.with_normalization(), old, side)
    np.testing.assert_allclose(normalized(old, side), wanted, rtol=1e-5, atol=1e-6)
    assert normalized.digest != h.digest
    assert normalized.program.digest == PROGRAM.with_normalization().digest
    assert normalized.normalized() is normalized
    assert (normalized.backend, normalized.precision, normalized.threads) == ("numpy", "fp16", 2)
    np.testing.assert_allclose(h(old, side), apply_float64(PROGRAM, old, side), rtol=1e-5, atol=1e-6)


def test_normalized_rows_of_nothing_stay_nothing(runner):
    runner.spoil = np.zeros_like
    h = RunnerTransformation(runner, digest="d", precision="fp32").normalized()
    assert not h(random_rows(3, 7), random_rows(3, 3)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "row"), [("old", 3), ("side", 599)])
def test_bad_rows_are_named(h, bad, name, row):
    rows = {"old": random_rows(600, 7), "side": random_rows(600, 3)}
    rows[name][row, -1] = bad
    with pytest.raises(NonFiniteError) as caught:
        h(*rows.values())
    assert (caught.value.array, caught.value.row) == (name, row)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_result_that_is_not_finite_is_named(h, runner, normalize):
    def spoil(result):
        result[417, 2] = np.nan
        return result

    runner.spoil = spoil
    with pytest.raises(NonFiniteError) as caught:
        (h.normalized() if normalize else h)(random_rows(600, 7), random_rows(600, 3))
    assert (caught.value.array, caught.value.row) == ("result", 417)


def test_a_result_too_large_for_float16_is_named(h, runner):
    def spoil(result):
        result[2, 0] = 1e6
        return result

    runner.spoil = spoil
    with pytest.raises(NonFiniteError, match="result: row 2"):
        h.apply_into(random_rows(4, 7), random_rows(4, 3), np.empty((4, 5), np.float16))


@pytest.mark.parametrize(
    ("old", "side", "message"),
    [
        (random_rows(3, 7).astype(np.float64), random_rows(3, 3), "old"),
        (random_rows(3, 6), random_rows(3, 3), "old"),
        (random_rows(3, 7), random_rows(4, 3), "side has 4 rows, old has 3"),
        (random_rows(3, 7), None, "side is missing"),
        (np.asfortranarray(random_rows(3, 7)), random_rows(3, 3), "old"),
        ([[0.0] * 7], random_rows(1, 3), "old is a list"),
    ],
)
def test_wrong_arguments_are_named_and_the_runner_is_not_called(h, runner, old, side, message):
    with pytest.raises(ArrayError, match=message):
        h(old, side)
    assert runner.given == []


@pytest.mark.parametrize("error", [ResourceError("out of device memory"), KeyboardInterrupt(), ZeroDivisionError()])
def test_what_the_runner_raises_keeps_its_type_and_the_next_call_works(h, runner, error):
    runner.fail = error
    with pytest.raises(type(error)) as caught:
        h(random_rows(3, 7), random_rows(3, 3))
    assert str(error) in str(caught.value)
    runner.fail = None
    assert h(random_rows(3, 7), random_rows(3, 3)).shape == (3, 5)


def test_a_runner_that_makes_another_shape_is_an_error(h, runner):
    runner.spoil = lambda result: result[:, :4]
    with pytest.raises(ValueError):
        h(random_rows(3, 7), random_rows(3, 3))


def test_many_threads_share_one(h):
    inputs = [(random_rows(100, 7, seed), random_rows(100, 3, seed + 1)) for seed in range(30)]
    expected = [h(*each) for each in inputs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(lambda each: h(*each), inputs), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_callers_are_in_the_runner_at_the_same_time(h, runner):
    meeting = threading.Barrier(2, timeout=20)

    def spoil(result):
        meeting.wait()
        return result

    runner.spoil = spoil
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(h, random_rows(3, 7), random_rows(3, 3)) for _ in range(2)]
        assert all(each.result().shape == (3, 5) for each in results)


def test_it_is_freed_with_its_runner():
    runner = ReferenceRunner()
    h = RunnerTransformation(runner, digest="d", precision="fp32")
    h(random_rows(3, 7), random_rows(3, 3))
    alive = weakref.ref(runner), weakref.ref(h)
    del runner, h
    gc.collect()
    assert [each() for each in alive] == [None, None]


def test_an_image_model_is_no_transformation(runner):
    runner.interface = Interface({"image": (3, 8, 8)}, 5)
    with pytest.raises(ArtifactError, match="takes image, wanted a transformation of old and maybe side"):
        RunnerTransformation(runner, digest="d", precision="fp32")


def test_threads_must_be_positive(runner):
    with pytest.raises(UsageError, match="threads is 0"):
        RunnerTransformation(runner, digest="d", precision="fp32", threads=0)
