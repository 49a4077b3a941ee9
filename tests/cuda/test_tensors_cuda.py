"""PyTorch's tensors in a device's memory in and out, on the caller's stream."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.compiled import PROGRAMS, compiled, inputs, largest_block, ready, row_counts
from support.cuda import device_precisions, no_device

from fct_infer.errors import ArrayError

PRECISIONS = device_precisions()


@pytest.fixture
def gpu(device_number) -> torch.device:
    """The device, as PyTorch calls it."""
    if not torch.cuda.is_available():
        no_device("this PyTorch has no CUDA")
    return torch.device(device_number)


def tensors(arrays: tuple[np.ndarray, ...], gpu: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(array).to(gpu) for array in arrays]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["paper_h", "residual_mlp"])
def test_tensors_give_what_numpy_arrays_give(gpu, name, precision):
    h = compiled(name, str(gpu), precision)
    for rows in row_counts(h):
        arrays = inputs(h, rows)
        found = h.apply_on_device(*tensors(arrays, gpu))
        assert (found.device, found.dtype, tuple(found.shape)) == (gpu, torch.float32, (rows, h.new_dim))
        assert found.cpu().numpy().tobytes() == h(*arrays).tobytes(), f"{rows} rows"


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_float16_tensors(gpu, dtypes):
    h = compiled("paper_h", str(gpu), "fp32")
    old, side = (tensor.to(dtypes[0]) for tensor in tensors(inputs(h, 500), gpu))
    out = torch.empty((500, h.new_dim), dtype=dtypes[1], device=gpu)
    h.apply_on_device(old, side, out)
    wanted = np.empty((500, h.new_dim), np.float32 if dtypes[1] == torch.float32 else np.float16)
    h.apply_into(old.cpu().numpy(), side.cpu().numpy(), wanted)
    assert out.cpu().numpy().tobytes() == wanted.tobytes()


def busy(gpu: torch.device) -> torch.Tensor:
    """Keep the current stream at work for some tens of milliseconds; the result is all ones."""
    eye = torch.eye(4096, device=gpu)
    ones = torch.ones((4096, 4096), device=gpu)
    for _ in range(40):
        ones = ones @ eye
    return ones


def late(array: np.ndarray, gpu: torch.device) -> torch.Tensor:
    """A tensor that holds its values only after the current stream's work."""
    target = torch.full(array.shape, torch.nan, device=gpu)
    source = torch.from_numpy(array).to(gpu)
    target.copy_(source * busy(gpu)[0, 0])
    return target


def test_the_current_stream_is_used_and_nothing_waits(gpu):
    h = compiled("paper_h", str(gpu), "fp32")
    arrays = inputs(h, 5000)
    expected = h(*arrays).tobytes()
    for stream in (torch.cuda.default_stream(gpu), torch.cuda.Stream(gpu)):
        busy(gpu)
        torch.cuda.synchronize(gpu)
        with torch.cuda.stream(stream):
            call = [late(array, gpu) for array in arrays]
            out = h.apply_on_device(*call)
            assert not stream.query(), "the call has waited for the stream, or the work before it was too short"
            found = out.cpu()  # on the same stream, after the call
        assert found.numpy().tobytes() == expected


def test_a_stream_that_was_asked_for_comes_after_what_fills_the_inputs(gpu):
    h = compiled("paper_h", str(gpu), "fp32")
    arrays = inputs(h, 5000)
    expected = h(*arrays).tobytes()
    other = torch.cuda.Stream(gpu)
    for stream in (other, other.cuda_stream):
        call = [late(array, gpu) for array in arrays]  # on the current stream
        out = h.apply_on_device(*call, stream=stream)
        other.synchronize()
        assert out.cpu().numpy().tobytes() == expected


def test_many_callers_on_streams_of_their_own(gpu):
    h = compiled("paper_h", str(gpu), "bf16")
    batches = [inputs(h, 1 + 997 * seed, seed) for seed in range(12)]
    expected = [h(*batch).tobytes() for batch in batches]

    def call(batch: tuple[np.ndarray, ...]) -> bytes:
        with torch.cuda.stream(torch.cuda.Stream(gpu)):
            return h.apply_on_device(*tensors(batch, gpu)).cpu().numpy().tobytes()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(call, batches * 4)) == expected * 4


def test_host_and_device_calls_at_once(gpu):
    h = compiled("paper_h", str(gpu), "fp32")
    arrays = inputs(h, 30_000)
    expected, on_device = h(*arrays).tobytes(), tensors(arrays, gpu)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(lambda: h(*arrays).tobytes()) for _ in range(6)]
        calls += [pool.submit(lambda: h.apply_on_device(*on_device).cpu().numpy().tobytes()) for _ in range(6)]
        assert {call.result() for call in calls} == {expected}


def test_no_copy_is_made(gpu):
    h = compiled("paper_h", str(gpu), "fp32")
    old, side = tensors(inputs(h, 20_000), gpu)
    out = torch.empty((20_000, h.new_dim), device=gpu)
    h.apply_on_device(old, side, out)
    torch.cuda.synchronize(gpu)
    free, _ = torch.cuda.mem_get_info(gpu)
    for _ in range(20):
        h.apply_on_device(old, side, out)
    torch.cuda.synchronize(gpu)
    assert torch.cuda.mem_get_info(gpu)[0] == free


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_that_is_not_finite_comes_out_as_nan_and_no_other(gpu, precision):
    h = compiled("paper_h", str(gpu), precision)
    rows = 2 * largest_block(h)
    arrays = inputs(h, rows)
    wanted = h(*arrays)
    bad = [0, rows // 2 - 1, rows // 2, rows - 1]
    arrays[0][bad[:2], 3], arrays[1][bad[2:], 0] = np.nan, np.inf
    found = h.apply_on_device(*tensors(arrays, gpu)).cpu().numpy()
    assert np.isnan(found[bad]).all()
    good = np.delete(np.arange(rows), bad)
    assert found[good].tobytes() == wanted[good].tobytes()


def test_tensors_that_do_not_fit_are_refused(gpu):
    h = ready(PROGRAMS["paper_h"](), str(gpu), "fp32")
    old, side = tensors(inputs(h, 9), gpu)
    out = torch.full((9, h.new_dim), 7.0, device=gpu)
    for call, message in (
        ((old.cpu(), side, out), r"old is a torch\.Tensor in CPU memory"),
        ((old, side.cpu(), out), r"side is a torch\.Tensor in CPU memory"),
        ((old, side, out.cpu()), r"out is a torch\.Tensor in CPU memory"),
        ((old.double(), side, out), "old is a float64 array"),
        ((old.bfloat16(), side, out), "old is a bfloat16 array"),
        ((old, side.t().contiguous().t(), out), "side is a float32 array .* that is not C-contiguous"),
        ((old, side[:8], out), "side has 8 rows, old has 9"),
        ((old, side, out[:, :-1].contiguous()), "out is a float32 array of shape"),
        ((old.clone().requires_grad_(), side, out), r"old: .* use tensor\.detach\(\)"),
    ):
        with pytest.raises(ArrayError, match=message):
            h.apply_on_device(*call)
    torch.cuda.synchronize(gpu)
    assert (out == 7).all()
