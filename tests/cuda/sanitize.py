"""What compute-sanitizer watches: every precision, odd row counts, callers at once, rows on the device, lists, errors.

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


def try_out_lists(parts: int, width: int) -> None:
    """Lists and codes, of rows on the host and on the device, are the CPU's."""
    rng = np.random.default_rng(parts)
    rows, centroids = (rng.standard_normal((count, parts * width), np.float32) for count in (389, 77))
    codebooks = rng.standard_normal((parts, 256, width), np.float32)
    assigner = _core.device_assigner(centroids, codebooks, device=DEVICE, device_memory=MEMORY)
    wanted = _core.Assigner(centroids, codebooks).assign(rows, 1)
    device_number = CudaMemory(0)
    with device_number.current():
        stream = device_number.create_stream()
    there = CudaArray(device_number, rows, stream)
    there.numpy()  # waits for the stream
    address = there.__cuda_array_interface__["data"][0]
    for found in (assigner.assign(rows, 2), assigner.assign_on_device(address, len(rows))):
        for ours, theirs in zip(found, wanted, strict=True):
            assert np.array_equal(ours, theirs)


def first(arrays: tuple[np.ndarray, ...], rows: int) -> tuple[np.ndarray, ...]:
    return tuple(array[:rows].copy() for array in arrays)


if __name__ == "__main__":
    for precision in _core.precisions(DEVICE):
        for name in ("paper_h normalized", "gelu_mlp", "residual_mlp"):
            try_out(name, precision)
            print(precision, name, flush=True)
    for parts, width in ((3, 5), (2, 16), (1, 33)):
        try_out_lists(parts, width)
        print(f"{parts} parts of {width}", flush=True)
