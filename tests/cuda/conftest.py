"""What a device promises is tried on the CPU too, where it costs little: so the tests are tried themselves anywhere."""

from __future__ import annotations

import pytest
from support.cuda import DEVICE, device_precisions, require_device, require_module

from fct_infer import _core

PLACES = [("cpu", name) for name in _core.precisions()] + [(DEVICE, name) for name in device_precisions()]


@pytest.fixture(params=["cpu", DEVICE])
def device(request) -> str:
    """Each kind of device."""
    if request.param == DEVICE:
        require_device()
    return request.param


@pytest.fixture(params=PLACES, ids="-".join)
def place(request) -> tuple[str, str]:
    """Each kind of device in each of its precisions."""
    if request.param[0] == DEVICE:
        require_device()
    return request.param


@pytest.fixture
def device_number() -> str:
    """A device; the CPU has none of what is tried with it."""
    require_device()
    return DEVICE


@pytest.fixture
def with_faiss() -> None:
    """FAISS, for tests in which an index is built."""
    require_module("faiss")
