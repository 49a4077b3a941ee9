"""CuPy's arrays in and out, on CuPy's current stream and on the device they are on."""

from __future__ import annotations

import numpy as np
import pytest
from support.compiled import PROGRAMS, compiled, inputs, ready
from support.cuda import device_precisions

from fct_infer.cuda import cuda_status
from fct_infer.errors import ArrayError

cupy = pytest.importorskip("cupy")


def arrays_on_device(arrays: tuple[np.ndarray, ...]) -> list[cupy.ndarray]:
    return [cupy.asarray(array) for array in arrays]


@pytest.mark.parametrize("precision", device_precisions())
@pytest.mark.parametrize("rows", [0, 1, 7, 5000])
def test_arrays_give_what_numpy_arrays_give(device_number, precision, rows):
    h = compiled("paper_h", device_number, precision)
    arrays = inputs(h, rows)
    found = h.apply_on_device(*arrays_on_device(arrays))
    assert isinstance(found, cupy.ndarray)
    assert (found.shape, found.dtype) == ((rows, h.new_dim), np.float32)
    assert cupy.asnumpy(found).tobytes() == h(*arrays).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_given_array_is_filled(device_number, dtype):
    h = compiled("paper_h", device_number, "fp32")
    arrays = inputs(h, 500)
    out, wanted = cupy.full((500, h.new_dim), 7, dtype), np.empty((500, h.new_dim), dtype)
    assert h.apply_on_device(*arrays_on_device(arrays), out) is out
    h.apply_into(*arrays, wanted)
    assert cupy.asnumpy(out).tobytes() == wanted.tobytes()


def late(array: np.ndarray) -> cupy.ndarray:
    """An array that holds its values only after some tens of milliseconds of the current stream."""
    source, ones = cupy.asarray(array), cupy.ones((4096, 4096), cupy.float32)
    target = cupy.full(array.shape, cupy.nan, cupy.float32)
    eye = cupy.eye(4096, dtype=cupy.float32)
    for _ in range(40):
        ones = ones @ eye
    cupy.multiply(source, ones[0, 0], out=target)
    return target


@pytest.mark.parametrize("own_stream", [False, True])
def test_the_call_comes_after_what_fills_its_arrays(device_number, own_stream):
    h = compiled("paper_h", device_number, "fp32")
    arrays = inputs(h, 5000)
    expected = h(*arrays).tobytes()
    with cupy.cuda.Stream(non_blocking=True) if own_stream else cupy.cuda.Stream.null:
        found = h.apply_on_device(*map(late, arrays))
        assert cupy.asnumpy(found).tobytes() == expected
    other = cupy.cuda.Stream(non_blocking=True)
    found = h.apply_on_device(*map(late, arrays), stream=other)
    other.synchronize()
    assert cupy.asnumpy(found).tobytes() == expected


def test_the_result_is_on_the_device_that_the_rows_are_on(device_number):
    """Also where another device is the current one."""
    last = f"cuda:{cuda_status().devices[-1].index}"
    h = ready(PROGRAMS["paper_h"](), last, "fp32")
    with cupy.cuda.Device(cuda_status().devices[-1].index) as device:
        arrays = inputs(h, 50)
        on_device = arrays_on_device(arrays)
    with cupy.cuda.Device(0):
        found = h.apply_on_device(*on_device)
    assert found.device == device
    assert cupy.asnumpy(found).tobytes() == h(*arrays).tobytes()


def test_arrays_that_do_not_fit_are_refused(device_number):
    h = compiled("paper_h", device_number, "fp32")
    old, side = arrays_on_device(inputs(h, 9))
    for call, message in (
        ((old.astype(cupy.float64), side), "old is a float64 array"),
        ((old, cupy.asfortranarray(side)), "side is a float32 array .* that is not C-contiguous"),
        ((old, side[:8]), "side has 8 rows, old has 9"),
        ((old, cupy.asnumpy(side)), r"side is a numpy\.ndarray in CPU memory"),
    ):
        with pytest.raises(ArrayError, match=message):
            h.apply_on_device(*call)
