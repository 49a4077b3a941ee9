"""Transformation: NumPy in, NumPy out, against the float64 definition; and everything it refuses."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.programs import linear_map, paper_h, plain_mlp, random_rows, residual_mlp

from fct_infer import _core
from fct_infer.artifacts.precisions import LIMITS
from fct_infer.errors import ArrayError, ArtifactError, NonFiniteError, UnsupportedError, UsageError
from fct_infer.reference import apply_float64, largest_values, row_cosines
from fct_infer.transformation import Linear, Normalize, Program, Transformation

TESTS = Path(__file__).parents[1]
# One more and one less than every tile size, and what lies between.
ROW_COUNTS = (0, 1, 7, 8, 9, 31, 33, 127, 129, 511, 513, 1025)
PROGRAMS: dict[str, Callable[[], Program]] = {
    "paper_h": lambda: paper_h(48, 32, 40, inner=160),
    "paper_h normalized": lambda: paper_h(17, 33, 9, inner=70).with_normalization(),
    "plain_mlp": lambda: plain_mlp(30, 50, 24, (64, 96)),
    "gelu_mlp": lambda: plain_mlp(30, 50, 24, (64, 96), activation="gelu"),
    "linear_map": lambda: linear_map(65, 33),
    "linear_map normalized": lambda: linear_map(64, 128, normalize=True),
    "residual_mlp": lambda: residual_mlp(40, 24, 80),
    "dims of one": lambda: plain_mlp(1, 1, 1, (1,)),
    "wide": lambda: plain_mlp(20, 20, 16, (2500,)),
}


@functools.cache
def compiled(name: str, precision: str = "fp32") -> Transformation:
    return calibrated(Transformation(PROGRAMS[name](), precision, threads=2))


def calibrated(h: Transformation) -> Transformation:
    """With ranges of rows that no test looks at, if its precision needs any."""
    if h.is_calibrated or h.program is None or h.precision == "auto":
        return h
    return h.calibrated(largest_values(h.program, *inputs_for(h, 500, seed=900)))


def inputs_for(h: Transformation, rows: int, dtype: Any = np.float32, seed: int = 0) -> tuple[Any, Any]:
    side = random_rows(rows, h.side_dim, seed + 1).astype(dtype) if h.side_dim else None
    return random_rows(rows, h.old_dim, seed).astype(dtype), side


def relative_error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest error of a row relative to the typical length of a row."""
    scale = np.sqrt(np.mean(np.sum(wanted**2, axis=1)))
    return float(np.max(np.linalg.norm(got - wanted, axis=1)) / scale)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ROW_COUNTS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_fp32_matches_float64(name: str, rows: int) -> None:
    h = compiled(name)
    old, side = inputs_for(h, rows)
    new = h(old, side)
    assert new.shape == (rows, h.new_dim)
    assert new.dtype == np.float32
    if rows:
        assert relative_error(new, apply_float64(h.program, old, side)) <= 1e-5


def test_fp32_matches_float64_at_paper_size() -> None:
    h = Transformation(paper_h(), "fp32")
    old, side = inputs_for(h, 300)
    assert relative_error(h(old, side), apply_float64(h.program, old, side)) <= 1e-5


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("rows", [1, 130, 700])
def test_float16_in_and_out(name: str, rows: int) -> None:
    h = compiled(name)
    old, side = inputs_for(h, rows, np.float16)
    wanted = apply_float64(h.program, old, side)
    assert relative_error(h(old, side), wanted) <= 1e-5
    out = np.empty((rows, h.new_dim), np.float16)
    h.apply_into(old, side, out)
    # One rounding to float16 on top of the fp32 error.
    spacing = np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float64)
    assert np.all(np.abs(out - wanted) <= 0.501 * spacing + 1e-5 * np.sqrt(np.mean(wanted**2)) * h.new_dim**0.5)


def test_float16_output_is_the_rounded_float32_output() -> None:
    h = compiled("paper_h")
    old, side = inputs_for(h, 600)
    out = np.empty((600, h.new_dim), np.float16)
    h.apply_into(old, side, out)
    assert np.array_equal(out, h(old, side).astype(np.float16))


def test_inputs_may_differ_in_dtype() -> None:
    h = compiled("plain_mlp")
    old, side = inputs_for(h, 50)
    half = side.astype(np.float16)
    assert np.array_equal(h(old, half), h(old, half.astype(np.float32)))


@pytest.mark.parametrize(("scale", "length"), [(1e30, 1.0), (1.0, 1.0), (1e-9, 1.0), (1e-20, 0.0), (0.0, 0.0)])
def test_normalized_rows_have_length_one_unless_they_are_nothing(scale: float, length: float) -> None:
    matrix = Linear("old", "map", random_rows(128, 64), np.zeros(128, np.float32))
    program = Program({"old": 64}, (matrix,), "map").with_normalization()
    old = random_rows(20, 64) * np.float32(scale)
    new = Transformation(program, "fp32")(old)
    assert np.allclose(np.linalg.norm(new, axis=1), length, atol=1e-5)
    assert np.allclose(new, apply_float64(program, old), rtol=1e-5, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    dims=st.tuples(*[st.integers(1, 70)] * 4),
    rows=st.integers(0, 80),
    threads=st.integers(1, 4),
    dtypes=st.tuples(*[st.sampled_from([np.float32, np.float16])] * 2),
    activation=st.sampled_from(["relu", "gelu", "none"]),
    normalize=st.booleans(),
)
def test_any_shape_matches_float64(
    dims: tuple[int, int, int, int], rows: int, threads: int, dtypes: Any, activation: Any, normalize: bool
) -> None:
    old_dim, side_dim, new_dim, hidden = dims
    program = plain_mlp(old_dim, side_dim, new_dim, (hidden,), activation=activation)
    program = program.with_normalization() if normalize and new_dim > 4 else program  # a short row is all rounding
    h = Transformation(program, "fp32", threads)
    old, side = random_rows(rows, old_dim).astype(dtypes[0]), random_rows(rows, side_dim, 1).astype(dtypes[1])
    new = h(old, side)
    assert new.shape == (rows, new_dim)
    assert np.allclose(new, apply_float64(program, old, side), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_bf16_is_close_or_refused(name: str) -> None:
    if "bf16" not in _core.precisions():
        with pytest.raises(UnsupportedError, match="bf16 needs a CPU with AVX512_BF16"):
            compiled(name, "bf16")
        return
    h = compiled(name, "bf16")
    old, side = inputs_for(h, 700)
    new, wanted = h(old, side), apply_float64(h.program, old, side)
    if h.new_dim > 1:
        cosine = np.sum(new * wanted, axis=1) / np.linalg.norm(new, axis=1) / np.linalg.norm(wanted, axis=1)
        assert np.min(cosine) >= 0.999
    assert relative_error(new, wanted) <= LIMITS["bf16"].max_relative_error


@pytest.mark.parametrize("name", PROGRAMS)
def test_int8_is_close_or_refused(name: str) -> None:
    if "int8" not in _core.precisions():
        with pytest.raises(UnsupportedError, match="precision int8: cpu has fp32"):
            compiled(name, "int8")
        return
    h = compiled(name, "int8")
    assert h.program is not None
    old, side = inputs_for(h, 700, seed=100)  # rows that equal weights would be like no others
    new, wanted = h(old, side), apply_float64(h.program, old, side)
    assert new.dtype == np.float32
    if h.new_dim > 1:  # of a single value a row beyond the ranges shows all that is cut
        assert row_cosines(wanted, new.astype(np.float64)).min() >= LIMITS["int8"].min_cosine
        assert relative_error(new, wanted) <= LIMITS["int8"].max_relative_error
    half = np.empty(new.shape, np.float16)
    h.apply_into(old, side, half)
    np.testing.assert_array_equal(half, new.astype(np.float16))


def test_int8_sums_are_those_of_integers_whatever_the_cpu() -> None:
    """Rows and weights that are integers already: all is exact, though pairs of products do not fit in 16 bits."""
    if "int8" not in _core.precisions():
        pytest.skip("this CPU has no exact 8-bit products")
    weight = np.where(np.arange(40 * 512).reshape(40, 512) % 11 == 0, -1, 1).astype(np.float32)
    program = Program({"old": 512}, (Linear("old", "y", weight, np.ones(40, np.float32)),), "y")
    h = Transformation(program, "int8", ranges={"old": 127 / 1.25})
    rows = np.full((33, 512), 127, np.float32)
    rows[::3], rows[::5, ::2] = -127, 126
    np.testing.assert_array_equal(h(rows), rows @ weight.T + 1)


# -- one row, one result -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", _core.precisions())
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_bytes_in_any_company(name: str, precision: str) -> None:
    h = compiled(name, precision)
    old, side = inputs_for(h, 600)
    whole = h(old, side)
    rng = np.random.default_rng(5)
    for threads in (1, 2, 3, 4):
        first, last = sorted(rng.choice(601, 2, replace=False))
        part = np.empty((last - first, h.new_dim), np.float32)
        h.executable.run(old[first:last], None if side is None else side[first:last], part, threads)
        assert part.tobytes() == whole[first:last].tobytes()


def test_many_python_threads_share_one_transformation() -> None:
    h = compiled("paper_h")
    old, side = inputs_for(h, 400)
    expected = h(old, side).tobytes()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: h(old, side).tobytes(), range(40)))
    assert set(results) == {expected}


def test_the_gil_is_released_for_the_computation() -> None:
    h = Transformation(paper_h(128, 128, 128, inner=1024), "fp32", threads=1)
    old, side = inputs_for(h, 24_000)
    worker = threading.Thread(target=h, args=(old, side))
    start, ticks = time.perf_counter(), 0
    worker.start()
    while worker.is_alive():
        ticks += 1
        time.sleep(0.002)
    seconds = time.perf_counter() - start
    assert seconds > 0.04, "too short a call to tell"
    assert ticks >= 4, f"{ticks} ticks of another thread in {seconds:.2f} s"


def test_inputs_are_left_alone() -> None:
    h = compiled("residual_mlp")
    old, _ = inputs_for(h, 600)
    before = old.copy()
    old.flags.writeable = False
    h(old)
    assert np.array_equal(old, before)


# -- refusals ----------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """Arguments of apply_into that are right until a case spoils one."""

    old: Any
    side: Any
    out: Any


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return raw.view(array.dtype).reshape(array.shape)


def spoil(name: str, change: Callable[[NDArray[Any]], Any]) -> Callable[[Call], None]:
    return lambda call: setattr(call, name, change(getattr(call, name)))


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


SPOILERS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "float64": lambda array: array.astype(np.float64),
    "int32": lambda array: array.astype(np.int32),
    "big-endian float32": lambda array: array.astype(">f4"),
    "big-endian float16": lambda array: array.astype(">f2"),
    "complex": lambda array: array.astype(np.complex64),
    "object": lambda array: array.astype(object),
    "record": lambda array: array.copy().view([("value", np.float32)]),
    "Fortran order": np.asfortranarray,
    "every second row": lambda array: np.repeat(array, 2, axis=0)[::2],
    "backwards": lambda array: array.copy()[::-1],
    "columns of a wider array": lambda array: np.hstack([array, array])[:, : array.shape[1]],
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
    "misaligned": misaligned,
    "one-dimensional": lambda array: array[0].copy(),
    "three-dimensional": lambda array: array[:, :, None].copy(),
    "scalar array": lambda _: np.array(1, np.float32),
    "a column too many": lambda array: np.hstack([array, array[:, :1]]),
    "a column missing": lambda array: array[:, 1:].copy(),
    "no columns": lambda array: array[:, :0].copy(),
    "list": lambda array: array.tolist(),
    "number": lambda _: 1.0,
    "bytes": lambda array: array.tobytes(),
    "memoryview": lambda array: memoryview(array.copy()),
}
CASES: dict[str, tuple[Callable[[Call], None], str]] = {
    **{
        f"{name} is {what}": (spoil(name, change), name)
        for name in ("old", "side", "out")
        for what, change in SPOILERS.items()
    },
    "old is None": (spoil("old", lambda _: None), "old"),
    "out is None": (spoil("out", lambda _: None), "out"),
    "side is missing": (spoil("side", lambda _: None), "side is missing"),
    "side has a row too many": (spoil("side", lambda side: np.vstack([side, side[:1]])), "side has 10 rows, old has 9"),
    "side has no rows": (spoil("side", lambda side: side[:0].copy()), "side has 0 rows, old has 9"),
    "out has a row missing": (spoil("out", lambda out: out[1:].copy()), "out has 8 rows, old has 9"),
    "out has a row too many": (spoil("out", lambda out: np.vstack([out, out[:1]])), "out has 10 rows, old has 9"),
    "out is read-only": (spoil("out", read_only), "out is read-only"),
    "out is old": (lambda call: setattr(call, "out", call.old), "out shares memory with old"),
    "out is side": (lambda call: setattr(call, "side", call.out), "out shares memory with side"),
}


@pytest.mark.parametrize(("spoiled", "message"), CASES.values(), ids=CASES.keys())
def test_wrong_arguments_are_named_and_nothing_is_written(spoiled: Callable[[Call], None], message: str) -> None:
    h = square_transformation()
    rows = random_rows(9, 6)
    call = Call(rows, random_rows(9, 6, 1), np.full((9, 6), 7, np.float32))
    spoiled(call)
    before = np.array(call.out, copy=True)
    with pytest.raises(ArrayError) as caught:
        h.apply_into(call.old, call.side, call.out)
    assert str(caught.value).startswith(message)
    assert np.array_equal(np.asarray(call.out), before)


@functools.cache
def square_transformation() -> Transformation:
    return Transformation(plain_mlp(6, 6, 6, (8,)), "fp32", threads=1)


@pytest.mark.parametrize("shift", [-53, -1, 0, 1, 53])
def test_partial_overlap_is_refused(shift: int) -> None:
    h = square_transformation()
    buffer = np.ones(300, np.float32)
    old, out = buffer[100:154].reshape(9, 6), buffer[100 + shift : 154 + shift].reshape(9, 6)
    with pytest.raises(ArrayError, match="out shares memory with old"):
        h.apply_into(old, random_rows(9, 6), out)
    with pytest.raises(ArrayError, match="out shares memory with side"):
        h.apply_into(random_rows(9, 6), old, out)
    assert np.all(buffer == 1)


@pytest.mark.parametrize("shift", [-54, 54])
def test_neighbours_in_one_buffer_are_fine(shift: int) -> None:
    h = square_transformation()
    buffer = np.ones(300, np.float32)
    old, out = buffer[100:154].reshape(9, 6), buffer[100 + shift : 154 + shift].reshape(9, 6)
    h.apply_into(old, old, out)
    assert np.array_equal(out, h(np.ones((9, 6), np.float32), np.ones((9, 6), np.float32)))


def test_superfluous_side_is_refused() -> None:
    with pytest.raises(ArrayError, match="side was given, but this transformation has no second input"):
        compiled("linear_map")(random_rows(3, 65), random_rows(3, 65))


def test_threads_must_be_positive() -> None:
    for threads in (0, -1):
        with pytest.raises(UsageError, match=f"threads is {threads}"):
            Transformation(linear_map(3, 2), threads=threads)
    with pytest.raises(ArrayError, match="threads is 0"):
        compiled("linear_map").executable.run(random_rows(1, 65), None, random_rows(1, 33), 0)


@pytest.mark.parametrize("precision", ["fp64", "int4", "", "FP32"])
def test_unknown_precision_is_unsupported(precision: str) -> None:
    with pytest.raises(UnsupportedError, match="unknown precision"):
        Transformation(linear_map(3, 2), precision)


def test_fp32_is_the_default_on_every_cpu() -> None:
    h = Transformation(linear_map(3, 2))
    assert (h.precision, h.choice) == ("fp32", None)
    assert repr(h) == (
        "Transformation(old_dim=3, side_dim=0, new_dim=2, backend='core', device='cpu', "
        f"precision='fp32', threads={h.threads})"
    )


def test_auto_is_not_called_before_it_is_chosen() -> None:
    h = Transformation(linear_map(3, 2), "auto")
    assert (h.precision, h.is_calibrated) == ("auto", False)
    with pytest.raises(UsageError, match=r"precision auto is chosen on rows: call fct_infer\.choose_precision"):
        h(random_rows(2, 3))


def test_bf16_is_native_exactly_where_its_products_are_instructions() -> None:
    has_bf16 = "BF16" in _core.cpu_instruction_set() or "FP16" in _core.cpu_instruction_set()
    has_bf16 |= "AMX" in _core.cpu_instruction_set()
    assert ("bf16" in _core.precisions()) == has_bf16


@pytest.mark.parametrize("precision", ["fp32", "auto", _core.precisions()[-1]])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))], ids=["deepcopy", "pickle"])
def test_it_travels_as_program_and_settings(copied: Callable[[Transformation], Transformation], precision: str) -> None:
    h = calibrated(Transformation(linear_map(3, 2), precision, threads=3)).normalized()
    other = copied(h)
    assert (other.digest, other.precision, other.threads) == (h.digest, h.precision, 3)
    assert copied(Transformation(linear_map(3, 2))).asked_threads is None
    rows = random_rows(9, 3)
    if precision != "auto":
        np.testing.assert_array_equal(other(rows), h(rows))


def test_more_threads_than_the_machine_allows_are_done_without() -> None:
    """A limit on tasks; in a process of its own, as the limit counts all of this user."""
    code = """
import numpy as np, resource, sys
from support.programs import linear_map
from fct_infer import Transformation
h, few = Transformation(linear_map(4, 3), threads=10**6), Transformation(linear_map(4, 3), threads=1)
rows = np.random.default_rng(0).standard_normal((60_000, 4), np.float32)
expected = few(rows)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # each thread wants a stack of 8 MiB
assert h.threads == 1024 and np.array_equal(h(rows), expected)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TESTS, check=False)
    assert run.returncode == 0, run.stderr


def test_a_hidden_overflow_is_named() -> None:
    steps = (
        Linear("old", "a", np.full((2, 1), 1e20, np.float32), np.zeros(2, np.float32)),
        Linear("a", "b", np.array([[1, -1]], np.float32), np.zeros(1, np.float32), "relu"),
    )
    h = Transformation(Program({"old": 1}, steps, "b"), "fp32")
    assert h(np.array([[3.0]], np.float32)) == 0
    with pytest.raises(NonFiniteError, match="result: row 1 holds NaN or infinity, or may overflow on the way"):
        h(np.array([[3.0], [1e25]], np.float32))


def test_the_core_checks_programs_as_well() -> None:
    program = linear_map(3, 2)
    object.__setattr__(program, "steps", (*program.steps, Normalize("map", "map")))
    with pytest.raises(ArtifactError):
        _core.Executable(program, "fp32")


# -- rows that are not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("array", ["old", "side"])
@pytest.mark.parametrize("row", [0, 1, 511, 512, 699])
def test_bad_rows_are_named(bad: float, dtype: Any, array: str, row: int) -> None:
    h = compiled("plain_mlp")
    old, side = inputs_for(h, 700, dtype)
    target = old if array == "old" else side
    target[row, -1] = bad
    target[min(row + 3, 699), 0] = bad
    with pytest.raises(NonFiniteError, match=f"{array}: row {row} holds NaN or infinity") as caught:
        h(old, side)
    assert (caught.value.array, caught.value.row) == (array, row)


def test_a_result_too_large_for_float16_is_named() -> None:
    h = compiled("linear_map")
    old, _ = inputs_for(h, 700)
    old[614] *= 1e6
    assert np.isfinite(h(old)).all()
    with pytest.raises(NonFiniteError) as caught:
        h.apply_into(old, None, np.empty((700, 33), np.float16))
    assert (caught.value.array, caught.value.row) == ("result", 614)


def test_a_result_too_large_for_float32_is_named() -> None:
    h = compiled("linear_map")
    old, _ = inputs_for(h, 700)
    old[3] = 3e38
    old[5, 0] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        h(old)
    assert (caught.value.array, caught.value.row) == ("result", 3)
