"""Arrays in a device's memory in and out, on the caller's stream, without any library that makes such arrays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.compiled import compiled, inputs, largest_block, row_counts
from support.cuda import device_precisions, free_memory
from support.cuda_arrays import CudaArray, CudaDlpackArray

from fct_infer.backends.cuda_memory import CudaMemory
from fct_infer.errors import ArrayError
from fct_infer.transformation import Transformation

PRECISIONS = device_precisions()


@pytest.fixture
def memory(device_number) -> CudaMemory:
    """The device's."""
    return CudaMemory(0)


def new_stream(memory: CudaMemory) -> int:
    with memory.current():
        return memory.create_stream()


def on_device(
    h: Transformation,
    memory: CudaMemory,
    arrays: tuple[np.ndarray, ...],
    kind: type[CudaArray] = CudaArray,
    dtype: type = np.float32,
) -> np.ndarray:
    """Transform arrays that lie on the device, each on a stream of its own; the work is enqueued on one more."""
    stream = new_stream(memory)
    sources = [kind(memory, array, new_stream(memory)) for array in arrays]
    out = CudaArray(memory, np.full((len(arrays[0]), h.new_dim), 7, dtype), stream)
    assert h.apply_on_device(*sources, out=out, stream=stream) is out
    return out.numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_number_of_rows(memory, precision):
    h = compiled("paper_h", "cuda:0", precision)
    for rows in row_counts(h):
        arrays = inputs(h, rows)
        for dtype in (np.float32, np.float16):
            found = on_device(h, memory, arrays, dtype=dtype)
            assert found.tobytes() == h(*arrays).astype(dtype).tobytes(), f"{rows} rows, {dtype}"


@pytest.mark.parametrize("kind", [CudaArray, CudaDlpackArray])
def test_inputs_are_waited_for(memory, kind):
    h = compiled("paper_h", "cuda:0", "fp32")
    arrays = inputs(h, 500)
    expected = h(*arrays).tobytes()
    for _ in range(20):
        assert on_device(h, memory, arrays, kind).tobytes() == expected


def test_float16_in(memory):
    h = compiled("paper_h", "cuda:0", "fp32")
    old, side = inputs(h, 300)
    arrays = old.astype(np.float16), side
    assert on_device(h, memory, arrays).tobytes() == h(*arrays).tobytes()


def test_many_callers_on_streams_of_their_own(memory):
    h = compiled("paper_h", "cuda:0", PRECISIONS[-1])
    batches = [inputs(h, 1 + 97 * seed, seed) for seed in range(8)]
    expected = [h(*batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda batch: on_device(h, memory, batch).tobytes(), batches * 3))
        assert found == expected * 3


def test_host_and_device_calls_at_once(memory):
    h = compiled("paper_h", "cuda:0", "fp32")
    arrays = inputs(h, 2 * largest_block(h) + 3)
    expected = h(*arrays).tobytes()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(lambda: h(*arrays).tobytes()) for _ in range(4)]
        calls += [pool.submit(lambda: on_device(h, memory, arrays).tobytes()) for _ in range(4)]
        assert {call.result() for call in calls} == {expected}


def test_no_memory_is_taken(memory):
    h = compiled("paper_h", "cuda:0", "fp32")
    stream = new_stream(memory)
    arrays = [CudaArray(memory, array, stream) for array in inputs(h, 2000)]
    out = CudaArray(memory, np.empty((2000, h.new_dim), np.float32), stream)
    h.apply_on_device(*arrays, out=out, stream=stream)
    out.numpy()
    before = free_memory()
    for _ in range(5):
        h.apply_on_device(*arrays, out=out, stream=stream)
    out.numpy()
    assert free_memory() == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_that_is_not_finite_comes_out_as_nan_and_no_other(memory, precision):
    h = compiled("paper_h", "cuda:0", precision)
    rows = 2 * largest_block(h)
    arrays = inputs(h, rows)
    wanted = h(*arrays)
    bad = [0, rows // 2 - 1, rows // 2, rows - 1]
    arrays[0][bad[:2], 3], arrays[1][bad[2:], 0] = np.nan, np.inf
    found = on_device(h, memory, arrays)
    assert np.isnan(found[bad]).all()
    good = np.delete(np.arange(rows), bad)
    assert found[good].tobytes() == wanted[good].tobytes()


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name in ("fp16", "bf16")])
def test_a_value_that_is_too_large_for_its_type_comes_out_as_nan(memory, precision):
    h = compiled("paper_h", "cuda:0", precision)
    arrays = inputs(h, 200)
    arrays[0][7, 3], arrays[1][150, 0] = 3.4e38, -3.4e38
    assert np.flatnonzero(np.isnan(on_device(h, memory, arrays)).any(axis=1)).tolist() == [7, 150]


def test_arrays_that_do_not_fit_are_refused(memory):
    h = compiled("paper_h", "cuda:0", "fp32")
    stream = new_stream(memory)
    old, side = (CudaArray(memory, array, stream) for array in inputs(h, 9))
    out = CudaArray(memory, np.full((9, h.new_dim), 7, np.float32), stream)
    short = CudaArray(memory, np.zeros((8, h.side_dim), np.float32), stream)
    for call, message in (
        ((old, short, out), "side has 8 rows, old has 9"),
        ((old, side, short), "out is a float32 array of shape"),
        ((old, side, None), "out is missing"),
        ((np.zeros((9, h.old_dim), np.float32), side, out), "old is a numpy.ndarray in CPU memory"),
    ):
        with pytest.raises(ArrayError, match=message):
            h.apply_on_device(*call)
    assert (out.numpy() == 7).all()
