"""NVIDIA's devices as the core sees them: their names, which there are, and what is missing where there are none."""

from __future__ import annotations

import ctypes
import functools
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from typing import Any

from fct_infer.errors import DeviceMemoryError, UnsupportedError, UsageError

_CUBLASLT = "libcublasLt.so.13"


@dataclass(frozen=True)
class CudaDevice:
    """A device of this machine.

    Attributes:
        index: its number, N of ``cuda:N``.
        name: ``NVIDIA H200``.
        compute_capability: ``9.0``.
        memory_bytes: its memory.
        free_bytes: how much of it nobody uses now; None if this process has not used the device yet, as asking would
            take some of it.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class Status:
    """What the core can have of CUDA here.

    Attributes:
        missing: why it has none, for people; None if there is a device it runs on.
        devices: those it sees.
        driver, cublaslt: versions, where they are known.
    """

    missing: str | None
    devices: tuple[CudaDevice, ...] = ()
    driver: str | None = None
    cublaslt: str | None = None


def cuda_status() -> Status:
    """Ask the core which devices it can use; asked anew each time, for free memory changes."""
    from fct_infer import _core

    _load_cublaslt()
    found: dict[str, Any] = _core.cuda_status()
    devices = tuple(CudaDevice(**each) for each in found["devices"])
    missing = found["missing"] or (None if devices else "this machine has no device")
    return Status(missing, () if missing else devices, found["driver"], found["cublaslt"])


def device_numbers(device: str) -> tuple[int, ...]:
    """Return the numbers of the devices in a name: none of ``cpu``, 0 of ``cuda``, 0 and 1 of ``cuda:0,cuda:1``.

    Raises:
        UsageError: it is no device, or names a device twice.
    """
    if device == "cpu":
        return ()
    found = [re.fullmatch(r"cuda(?::(\d{1,3}))?", name) for name in device.split(",")]
    numbers = tuple(int(name[1] or 0) for name in found if name)
    if len(numbers) < len(found):
        raise UsageError(f"device {device!r} does not exist; there is auto, cpu, cuda, cuda:0, cuda:1 ...")
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"device {device!r} names a device twice")
    return numbers


def device_name(device: str) -> str:
    """Return the one name of a device: ``cpu``, ``cuda:0``, ``cuda:0,cuda:1``."""
    return ",".join(f"cuda:{number}" for number in device_numbers(device)) or "cpu"


def first_device() -> str:
    """Return the first device that is not too old for the core, else ``cpu``."""
    from fct_infer import _core

    for each in cuda_status().devices:
        device = f"cuda:{each.index}"
        with suppress(UnsupportedError):
            with suppress(DeviceMemoryError):  # a full device is still the first one; whoever uses it meets this again
                _core.precisions(device)
            return device
    return "cpu"


def device_text(device: str) -> str:
    """Return a device for people: ``cuda:0 (NVIDIA H200)``."""
    numbers = device_numbers(device)
    names = {each.index: f" ({each.name})" for each in cuda_status().devices} if numbers else {}
    return ", ".join(f"cuda:{number}{names.get(number, '')}" for number in numbers) or "cpu"


def missing_for(device: str) -> str | None:
    """Return why the core cannot run on a device; None if it can."""
    numbers = device_numbers(device)
    if not numbers:
        return None
    status = cuda_status()
    if status.missing:
        return status.missing
    absent = sorted(set(numbers) - {each.index for each in status.devices})
    return f"no device cuda:{absent[0]}; the core sees {device_list(status)}" if absent else None


def require(device: str) -> None:
    """Check that the core can run on a device.

    Raises:
        UnsupportedError: it cannot; says what is missing.
    """
    missing = missing_for(device)
    if missing:
        raise UnsupportedError(f"device {device}: {missing}")


def device_list(status: Status) -> str:
    """Return the devices for people."""
    return ", ".join(f"cuda:{each.index} ({each.name})" for each in status.devices)


@functools.cache
def _load_cublaslt() -> None:
    """Load the library out of PyPI's nvidia-cublas, which no search path names; that of a toolkit is found without.

    Once loaded, it answers to its name when the core's CUDA part asks for it. It is large: without a driver it is left.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
        found = [file for file in files("nvidia-cublas") or () if file.name == _CUBLASLT]
    except (OSError, PackageNotFoundError):
        return
    for file in found:
        try:
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
        except OSError:  # damaged, or for another machine: the core then says that it found none
            continue
