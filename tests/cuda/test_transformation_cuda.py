"""What a transformation promises, on a device in every precision, and on the CPU."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.compiled import (
    PROGRAMS,
    compiled,
    cosines,
    float64,
    grouped_inputs,
    inputs,
    largest_block,
    overlap_at_10,
    ready,
)
from support.cuda import IS_SIMULATED, free_memory, memory, no_device
from support.outputs import relative_error

from fct_infer import choose_precision
from fct_infer.artifacts.precisions import LIMITS
from fct_infer.cuda import cuda_status
from fct_infer.errors import ArrayError, NonFiniteError, ResourceError, UnsupportedError
from fct_infer.transformation import Transformation

# Of the paper's transformation: largest error by the largest number, lowest cosine.
PROMISED = {"fp32": (1e-5, 0.999999), "tf32": (1e-3, 0.9999), "fp16": (5e-3, 0.999), "bf16": (5e-2, 0.999)}
PROMISED["fp8"] = PROMISED["int8"] = (0.2, 0.99)
REPEATS = 1 if IS_SIMULATED else 3
SIZES = ("paper_h", "gelu_mlp", "residual_mlp")


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_are_within_the_limits_of_their_precision(place, name):
    h = compiled(name, *place)
    arrays = inputs(h, 700)
    found, wanted = h(*arrays), float64(h, arrays)
    assert found.dtype == np.float32
    assert relative_error(found, wanted) <= LIMITS[h.precision].max_relative_error
    assert cosines(found, wanted).min() >= LIMITS[h.precision].min_cosine


def test_the_papers_transformation_is_as_close_as_promised(place):
    h = compiled("paper size", *place)
    assert (h.device, h.precision, h.backend) == (*place, "core")
    arrays = grouped_inputs(h, 100)
    found, wanted = h(*arrays), float64(h, arrays)
    error, cosine = PROMISED[h.precision]
    assert relative_error(found, wanted) <= error
    assert cosines(found, wanted).min() >= cosine
    assert overlap_at_10(found, wanted) >= 0.95


def test_auto_takes_bf16(device_number):
    h = Transformation(PROGRAMS["linear_map"](), "auto", device=device_number)
    rows = inputs(compiled("linear_map", device_number, "fp32"), 100)
    assert choose_precision(h, *rows).precision == "bf16"


@pytest.mark.parametrize("dtypes", [("float16", "float16"), ("float16", "float32"), ("float32", "float16")])
def test_float16_in_and_out(place, dtypes):
    h = compiled("paper_h", *place)
    old, side = (array.astype(dtype) for array, dtype in zip(inputs(h, 300), dtypes, strict=True))
    found = h(old, side)
    np.testing.assert_array_equal(found, h(old.astype(np.float32), side.astype(np.float32)))
    out = np.empty((300, h.new_dim), np.float16)
    h.apply_into(old, side, out)
    np.testing.assert_array_equal(out, found.astype(np.float16))


# -- one row, one result -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_any_number_of_rows(place, name):
    h = compiled(name, *place)
    block = largest_block(h)
    arrays = inputs(h, 3 * block + 5)
    whole = h(*arrays)
    # Judged where blocks begin and end; that the rest is the same follows from the next test.
    near = np.unique(np.clip([[edge * block + step for step in range(-9, 9)] for edge in range(4)], 0, 3 * block + 4))
    assert relative_error(whole[near], float64(h, tuple(array[near] for array in arrays))) <= (
        LIMITS[h.precision].max_relative_error
    )
    for rows in (0, 1, 7, block - 1, block, block + 1, 3 * block + 5):
        part = h(*(array[:rows].copy() for array in arrays))
        assert part.tobytes() == whole[:rows].tobytes(), f"{rows} rows"


@pytest.mark.parametrize("name", [*SIZES, "paper size"])
def test_the_same_bytes_for_any_split_of_the_rows(place, name):
    h = compiled(name, *place)
    rows = min(3 * largest_block(h) + 5, 40_000)
    arrays = inputs(h, rows)
    whole = h(*arrays)
    rng = np.random.default_rng(5)
    for pieces in (2, 7, 30):
        cuts = np.sort(rng.choice(rows, pieces - 1, replace=False))
        parts = [h(*each) for each in zip(*(np.split(array, cuts) for array in arrays), strict=True)]
        assert np.concatenate(parts).tobytes() == whole.tobytes(), f"{pieces} pieces"


def test_the_same_bytes_when_compiled_again_and_with_less_memory(place):
    h = compiled("paper_h", *place)
    arrays = inputs(h, 5000)
    limit = {} if place[0] == "cpu" else {"device_memory": memory(64, 33)}
    again = ready(PROGRAMS["paper_h"](), *place, **limit)
    assert again(*arrays).tobytes() == h(*arrays).tobytes()


def test_many_callers_at_once(place):
    h = compiled("paper_h", *place)
    block = largest_block(h)
    batches = [inputs(h, 1 + (seed * 997) % (block + 300), seed) for seed in range(20)]
    expected = [h(*batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: h(*batch).tobytes(), batches * REPEATS))
    assert found == expected * REPEATS


def test_several_transformations_at_once(device):
    names = ("paper_h", "gelu_mlp", "linear_map")
    together = [compiled(name, device, "fp32") for name in names]
    batches = [inputs(h, 2000) for h in together]
    expected = [h(*batch).tobytes() for h, batch in zip(together, batches, strict=True)]
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(h, *batch) for _ in range(3 * REPEATS) for h, batch in zip(together, batches, strict=True)]
        assert [call.result().tobytes() for call in calls] == expected * 3 * REPEATS


def test_all_devices_together_equal_one(device_number):
    devices = cuda_status().devices
    alike = [each.index for each in devices if each.name == devices[0].name]
    h = compiled("paper_h", device_number, "fp32")
    together = Transformation(PROGRAMS["paper_h"](), "fp32", device=",".join(f"cuda:{index}" for index in alike))
    for rows in (1, 7, 2_500 if IS_SIMULATED else 20_000):
        arrays = inputs(h, rows)
        assert together(*arrays).tobytes() == h(*arrays).tobytes()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", ["old", "side"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named_and_the_next_call_is_well(place, array, bad):
    h = compiled("paper_h", *place)
    rows = 2 * largest_block(h)
    arrays = inputs(h, rows)
    expected = h(*arrays).tobytes()
    for row in (0, rows // 2 + 3, rows - 1):
        spoiled = [each.copy() for each in arrays]
        spoiled[["old", "side"].index(array)][[row, rows - 1], -1] = bad
        with pytest.raises(NonFiniteError) as caught:
            h(*spoiled)
        assert (caught.value.array, caught.value.row) == (array, row)
    assert h(*arrays).tobytes() == expected


def test_a_result_that_does_not_fit_is_named(device):
    h = compiled("linear_map", device, "fp32")
    (old,) = inputs(h, 700)
    old[614] *= 1e6
    with pytest.raises(NonFiniteError) as caught:
        h.apply_into(old, None, np.empty((700, h.new_dim), np.float16))
    assert (caught.value.array, caught.value.row) == ("result", 614)


def test_wrong_arrays_are_refused(device):
    h = compiled("paper_h", device, "fp32")
    old, side = inputs(h, 9)
    for call, name in (
        ((old.astype(np.float64), side), "old"),
        ((old, side[:, ::-1]), "side"),
        ((old, side[:8].copy()), "side"),
        ((old, None), "side"),
    ):
        with pytest.raises(ArrayError, match=f"^{name} "):
            h(*call)


def test_memory_that_does_not_suffice_is_an_error_and_the_device_lives_on(device_number):
    with pytest.raises(ResourceError, match=r"needs \d+ MiB on .*, at hand are 1 MiB"):
        Transformation(PROGRAMS["paper size"](), "fp32", device=device_number, device_memory=1 << 20)
    h = compiled("paper_h", device_number, "fp32")
    assert relative_error(h(*inputs(h, 50)), float64(h, inputs(h, 50))) <= 1e-5


def test_little_memory_means_smaller_blocks_and_is_said(device_number):
    whole = compiled("paper size", device_number, "fp32")
    tight = ready(PROGRAMS["paper size"](), device_number, "fp32", device_memory=memory(192, 38))
    assert largest_block(tight) < largest_block(whole)
    assert f"to stay within {memory(192, 38) >> 20} MiB of device memory" in tight.executable.description
    arrays = inputs(whole, 2 * largest_block(tight) + 5)
    assert tight(*arrays).tobytes() == whole(*arrays).tobytes()


def test_the_limit_on_memory_holds(device_number):
    limit = memory(256, 38)
    compiled("paper size", device_number, "bf16")(
        *inputs(compiled("paper size", device_number, "bf16"), 9)
    )  # what is taken once is taken
    before = free_memory()
    h = ready(PROGRAMS["paper size"](), device_number, "bf16", device_memory=limit)
    h(*inputs(h, 2 * largest_block(h)))
    assert 0 < h.executable.device_bytes <= limit
    taken = before - free_memory()
    assert taken <= h.executable.device_bytes + (64 << 20)  # graphs and modules of the driver


def test_the_largest_block_is_the_fastest(device_number):
    h = compiled("paper size", device_number, "bf16")
    found = re.search(r"M rows/s by block: ([^;]+);", h.executable.description)
    if not found:
        no_device(f"the device has memory for small blocks only: {h.executable.description}")
    speeds = {int(block): float(speed) for block, speed in (each.split() for each in found[1].split(", "))}
    assert min(speeds.values()) > 0
    largest = largest_block(h)
    assert speeds[largest] >= 0.96 * max(speeds.values())
    assert all(speed <= 0.98 * max(speeds.values()) for block, speed in speeds.items() if block > largest)


def test_transformations_that_come_and_go_leave_no_memory_behind(device_number):
    def come_and_go() -> None:
        h = ready(PROGRAMS["paper size"](), device_number, "bf16", device_memory=memory(256, 38))
        h(*inputs(h, 2000))

    come_and_go()
    before = free_memory()
    for _ in range(3 * REPEATS):
        come_and_go()
    assert before - free_memory() < 32 << 20


def test_a_precision_that_does_not_exist(device_number):
    with pytest.raises(UnsupportedError, match="int4"):
        Transformation(PROGRAMS["linear_map"](), "int4", device=device_number)


def test_a_device_that_does_not_exist(device_number):
    with pytest.raises(UnsupportedError, match="no device cuda:99; the core sees cuda:0"):
        Transformation(PROGRAMS["linear_map"](), device="cuda:99")
