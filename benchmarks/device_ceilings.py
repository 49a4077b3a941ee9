"""What a device can do at most: matrix products of the very shapes of a transformation, and copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.device_clock import Call, DeviceClock, timing
from benchmarks.opponents import NotMeasuredError
from fct_infer.transformation import Linear, Program

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FP8 = torch.float8_e4m3fn
LIBRARIES = ("cublas", "cublaslt")  # torch hands a plain product to either
FAST_SUMS = "fp8 with fast sums"  # in fewer bits than float32 has, which is what fct_infer sums in


def matmul_ceiling(
    clock: DeviceClock, program: Program, precision: str, sizes: Sequence[int], rounds: int, min_seconds: float
) -> dict[str, Any]:
    """Return the best time, over row counts and libraries, that all products of a program take one after the other.

    Nothing but the products: no bias, no activation, no cast. Each is timed alone. Sums are float32, but of
    ``FAST_SUMS``, a precision that only PyTorch has.
    """
    shapes = [step.weight.shape for step in program.steps if isinstance(step, Linear)]
    cases = []
    for rows in sizes:
        for library in LIBRARIES if clock.on_device and precision in DTYPES else ("",):
            with _library(library), allowing_tf32(precision == "tf32"):
                calls = {str(number): [_product(clock, precision, rows, *shape)] for number, shape in enumerate(shapes)}
                seconds = clock.alternate(calls, rounds, min_seconds)
            total = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
            cases.append({"rows": rows, "library": library or "cublaslt", **timing(total, rows)})
    best = max(cases, key=lambda case: case["rows_per_second"])
    return {**best, "tflops": 1e-12 * best["rows_per_second"] * program.flops_per_row, "cases": cases}


def _product(clock: DeviceClock, precision: str, rows: int, d_out: int, d_in: int) -> Call:
    x, weight = torch.randn(rows, d_in, device=clock.device), torch.randn(d_out, d_in, device=clock.device)
    if precision in ("fp8", FAST_SUMS):
        if not clock.on_device:
            raise NotMeasuredError("fp8: PyTorch has no such product on this device")
        a, b, scale = x.to(FP8), weight.to(FP8).t(), torch.ones((), device=clock.device)
        fast = precision == FAST_SUMS
        return lambda: torch._scaled_mm(a, b, scale, scale, out_dtype=torch.bfloat16, use_fast_accum=fast)
    dtype = DTYPES[precision]
    a, b = x.to(dtype), weight.to(dtype).t()
    out = torch.empty(rows, d_out, dtype=dtype, device=clock.device)
    return lambda: torch.mm(a, b, out=out)


@contextmanager
def _library(name: str) -> Iterator[None]:
    if not name:
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(name)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


@contextmanager
def allowing_tf32(allowed: bool) -> Iterator[None]:
    """Let PyTorch round what it multiplies to tf32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_ceilings(clock: DeviceClock, size: int, rounds: int, min_seconds: float) -> dict[str, float]:
    """Return bytes a second: to the device, from it, each of the two while the other runs, and within it.

    Host memory is pinned. Within the device, bytes read and bytes written both count.
    """
    host_in, host_out = (torch.empty(size, dtype=torch.uint8, pin_memory=clock.on_device) for _ in range(2))
    there, back, other = (torch.empty(size, dtype=torch.uint8, device=clock.device) for _ in range(3))
    second = torch.cuda.Stream(clock.device) if clock.on_device else None

    def both() -> None:
        if second is None:  # a rehearsal: one after the other
            host_out.copy_(back)
        else:
            second.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(second):
                host_out.copy_(back, non_blocking=True)
        there.copy_(host_in, non_blocking=True)
        if second is not None:
            torch.cuda.current_stream().wait_stream(second)

    calls: dict[str, list[Call]] = {
        "host_to_device": [lambda: there.copy_(host_in, non_blocking=True)],
        "device_to_host": [lambda: host_out.copy_(back, non_blocking=True)],
        "each_way_at_once": [both],
        "within_device": [lambda: other.copy_(there)],
    }
    seconds = clock.alternate(calls, rounds, min_seconds)
    moved = {"within_device": 2 * size}
    return {name: timing(values, moved.get(name, size))["rows_per_second"] for name, values in seconds.items()}
