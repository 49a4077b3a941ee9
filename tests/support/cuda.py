"""Tests of a device, real or of tests/simulated_cuda: skipped where there is none, failed where there should be one."""

from __future__ import annotations

import ctypes
import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest

from fct_infer import _core
from fct_infer.cuda import cuda_status

DEVICE = "cuda:0"
# A simulated device computes on this machine's CPU, and has neither PyTorch, CuPy nor FAISS on it.
IS_SIMULATED = any(device_number.name == "simulated device" for device_number in cuda_status().devices)


def memory(mebibytes: int, simulated: int) -> int:
    """Bytes of device memory for a test; on a simulated device, which is slow, fewer, so that blocks are small."""
    return (simulated if IS_SIMULATED else mebibytes) << 20


def free_memory() -> int:
    """Bytes of the first device that are free; the simulated one itself reports few, so that blocks are small."""
    if not IS_SIMULATED:
        return cuda_status().devices[0].free_bytes or 0
    function = ctypes.CDLL("libcuda.so.1").simulated_free_memory
    function.restype = ctypes.c_size_t
    return int(function(0))


def no_device(reason: str) -> NoReturn:
    """Skip the test for want of a device, or of something on it; with FCT_REQUIRE_CUDA=1 fail it on a real one."""
    if os.environ.get("FCT_REQUIRE_CUDA") == "1" and not IS_SIMULATED:
        pytest.fail(f"FCT_REQUIRE_CUDA is set: {reason}")
    pytest.skip(reason)


def require_device() -> None:
    """Go on only if the core can use a device."""
    missing = cuda_status().missing
    if missing:
        no_device(missing)


def require_module(name: str) -> ModuleType:
    """Import what only the tests of a device need; go on only if it is there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        no_device(f"{name} cannot be imported: {error}")


def device_precisions() -> list[str]:
    """Return the precisions of the device; one, for tests that will be skipped, where there is none."""
    return ["fp32"] if cuda_status().missing else _core.precisions(DEVICE)
