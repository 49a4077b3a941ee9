"""What compute-sanitizer watches: every precision, odd row counts, callers at once, rows on the device, errors.

Small, for the sanitizer slows a device down by orders of magnitude. Run with ``tests`` on PYTHONPATH.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from support.compiled import PROGRAMS, cosines, float64, inputs, largest_block, ready
from support.cuda import memory
from support.cuda_arrays import CudaArray

from fct_infer import _core
from fct_infer.backends.cuda_memory import CudaMemory
from fct_infer.errors import NonFiniteError

DEVICE = "cuda:0"
MEMORY = memory(48, 35)  # makes blocks small: their number is what matters


def try_out(name: str, precision: str) -> None:
    h = ready(PROGRAMS[name](), DEVICE, precision, device_memory=MEMORY)
    rows = largest_block(h) + 129
    arrays = inputs(h, rows)
    expected = h(*arrays)
    assert cosines(expected, float64(h, arrays)).min() > 0.98
    counts = (1, 7, 128, 131)
    with ThreadPoolExecutor(3) as pool:
        for count, found in zip(counts, pool.map(lambda rows: h(*first(arrays, rows)), counts), strict=True):
            assert found.tobytes() == expected[:count].tobytes()
    device_number = CudaMemory(0)
    with device_number.current():
        stream = device_number.create_stream()
    out = CudaArray(device_number, np.zeros((rows, h.new_dim), np.float16), stream)
    sources = [CudaArray(device_number, each, stream) for each in arrays]  # which must live until the stream has passed
    h.apply_on_device(*sources, out=out)
    assert out.numpy().tobytes() == expected.astype(np.float16).tobytes()
    arrays[0][rows - 2, 0] = np.nan
    try:
        h(*arrays)
    except NonFiniteError as error:
        assert error.row == rows - 2
    else:
        raise AssertionError("a row of NaN went through")


def first(arrays: tuple[np.ndarray, ...], rows: int) -> tuple[np.ndarray, ...]:
    return tuple(array[:rows].copy() for array in arrays)


if __name__ == "__main__":
    for precision in _core.precisions(DEVICE):
        for name in ("paper_h normalized", "gelu_mlp", "residual_mlp"):
            try_out(name, precision)
            print(precision, name, flush=True)
