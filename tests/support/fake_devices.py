"""Devices that are not there: the core's CPU engine behind its interface for devices, and arrays said to be on one."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import numpy as np
import pytest

from fct_infer import _core, cuda
from fct_infer.device_arrays import _capsule_pointer, _DlTensor
from fct_infer.errors import DeviceMemoryError

GIBIBYTE = 1 << 30
HELD_BYTES = 700 << 20  # of a device's memory by what is compiled for it, if it may
ASSIGNER_STREAM = 0x5EED
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8")


class Executable(_core.Executable):
    """Computes in fp32 on the CPU, says it is on a device, and remembers how it was made and called."""

    made: ClassVar[list[Executable]] = []
    full: ClassVar[str | None] = None  # a device without memory
    device_bytes = 0  # over the core's, which cannot be set

    def __init__(self, program, precision, *, device="cpu", device_memory=0, ranges=None) -> None:
        if device == Executable.full:
            raise DeviceMemoryError(f"this transformation needs 90 MiB on {device}, at hand are 7 MiB")
        super().__init__(program, "fp32" if device != "cpu" else precision)
        self.arguments = {"precision": precision, "device": device, "memory": device_memory, "ranges": ranges}
        self.streams: list[int] = []
        self.device_bytes = min(device_memory, HELD_BYTES) if device != "cpu" else 0
        Executable.made.append(self)

    def run_on_device(self, old, old_dtype, side, side_dtype, out, out_dtype, rows, stream) -> None:
        self.streams.append(stream)
        inputs = _host_rows(old, old_dtype, rows, self.old_dim), _host_rows(side, side_dtype, rows, self.side_dim)
        self.run(inputs[0], inputs[1] if side else None, _host_rows(out, out_dtype, rows, self.new_dim), 1)


class Assigner(_core.Assigner):
    """Finds lists and codes on the CPU, says it does on a device, and remembers how it was made and called."""

    made: ClassVar[list[Assigner]] = []
    device, stream = "", 0  # over the core's, which cannot be set

    def __init__(self, centroids, codebooks, *, device, device_memory=0, **options) -> None:
        if device == Executable.full:
            raise DeviceMemoryError(f"finding lists and codes needs 90 MiB on {device}, at hand are 7 MiB")
        super().__init__(centroids, codebooks, **options)
        self.asked, self.memory = device, device_memory
        if "," not in device:
            self.device, self.stream = device, ASSIGNER_STREAM
        self.host_rows = self.device_rows = 0
        Assigner.made.append(self)

    def assign(self, rows, threads):
        self.host_rows += len(rows)
        return super().assign(rows, threads)

    def assign_on_device(self, rows, count):
        assert self.device
        self.device_rows += count
        return super().assign(_host_rows(rows, "float32", count, self.dim), 1)


def _host_rows(address: int, dtype: str, rows: int, width: int) -> np.ndarray:
    size = rows * width * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address or 1), dtype).reshape(rows, width)


def install(
    patch: pytest.MonkeyPatch,
    names: tuple[str, ...] = ("NVIDIA H200",),
    missing: str | None = None,
    *,
    full: str | None = None,
) -> None:
    """Put devices of these names, or the reason why there are none, in the place of this machine's; one may be full."""
    devices = [
        {
            "index": index,
            "name": name,
            "compute_capability": "9.0",
            "memory_bytes": 141 * GIBIBYTE,
            "free_bytes": 140 * GIBIBYTE,
        }
        for index, name in enumerate(names)
    ]
    status = {
        "built": True,
        "missing": missing,
        "devices": [] if missing else devices,
        "driver": "13.0",
        "cublaslt": "13.1",
    }
    on_cpu = _core.precisions()
    Executable.made, Assigner.made, Executable.full = [], [], full
    patch.setattr(_core, "cuda_status", lambda: status, raising=False)
    patch.setattr(_core, "precisions", lambda device="cpu": list(on_cpu if device == "cpu" else PRECISIONS))
    patch.setattr(_core, "Executable", Executable)
    patch.setattr(_core, "device_assigner", Assigner)
    patch.setattr(cuda, "_load_cublaslt", lambda: None)


class InterfaceArray:
    """Host memory that says, by the CUDA array interface, it is a device's."""

    def __init__(self, array: np.ndarray, stream: int | None = None, read_only: bool = False, **more: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data if array.size else 0, read_only),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            "stream": stream,
            **more,
        }


class DlpackArray:
    """Host memory that says, by DLPack, it is a device's; remembers the streams it was asked to be ready on."""

    def __init__(self, array: np.ndarray, device_number: int = 0, memory: int = 2) -> None:
        self.array, self.device_number, self.memory, self.streams = array, device_number, memory, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory, self.device_number

    def __dlpack__(self, stream: int | None = None) -> Any:
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        tensor = _DlTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
        tensor.device_type, tensor.device_id = self.memory, self.device_number
        return capsule


class NamespaceArray(DlpackArray):
    """One whose library can make new ones in the way of the array API standard."""

    float32 = np.float32

    def __array_namespace__(self) -> type[NamespaceArray]:
        return NamespaceArray

    @property
    def device(self) -> int:
        return self.device_number

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Any, device: int) -> NamespaceArray:
        return NamespaceArray(np.empty(shape, dtype), device)
