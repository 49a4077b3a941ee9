"""``cuda.bindings.runtime`` on the simulated device: those of its functions that this project calls.

The real module brings the CUDA runtime with it, which asks the driver for what is not documented.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Any

_library = ctypes.CDLL("libcuda.so.1")
cudaEventDisableTiming = 2
cudaStreamNonBlocking = 1


class cudaError_t(IntEnum):
    """Only success is told apart."""

    cudaSuccess = 0

    @classmethod
    def _missing_(cls, value: object) -> cudaError_t:
        error = int.__new__(cls, value)  # type: ignore[call-overload]
        error._name_, error._value_ = f"error {value}", value
        return error  # type: ignore[no-any-return]


class cudaMemcpyKind(IntEnum):
    """Directions."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class _Properties:
    def __init__(self, device_number: int) -> None:
        name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        _library.cuDeviceGetName(name, 256, device_number)
        _library.cuDeviceGetAttribute(ctypes.byref(major), 75, device_number)
        _library.cuDeviceGetAttribute(ctypes.byref(minor), 76, device_number)
        self.name, self.major, self.minor = name.value, major.value, minor.value


def _call(function: str, *arguments: Any) -> tuple[cudaError_t]:
    return (cudaError_t(getattr(_library, function)(*arguments)),)


def _made(function: str, kind: Any, *arguments: Any) -> tuple[cudaError_t, int]:
    """Call what writes its result where its first argument points to."""
    result = kind()
    (error,) = _call(function, ctypes.byref(result), *arguments)
    return error, result.value or 0


def cudaGetDeviceCount() -> tuple[cudaError_t, int]:
    return _made("cudaGetDeviceCount", ctypes.c_int)


def cudaGetDeviceProperties(device_number: int) -> tuple[cudaError_t, _Properties]:
    return cudaError_t.cudaSuccess, _Properties(device_number)


def cudaGetDevice() -> tuple[cudaError_t, int]:
    return _made("cudaGetDevice", ctypes.c_int)


def cudaSetDevice(device_number: int) -> tuple[cudaError_t]:
    return _call("cudaSetDevice", device_number)


def cudaMalloc(size: int) -> tuple[cudaError_t, int]:
    return _made("cudaMalloc", ctypes.c_void_p, ctypes.c_size_t(size))


def cudaFree(address: int) -> tuple[cudaError_t]:
    return _call("cudaFree", ctypes.c_void_p(address))


def cudaStreamCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    return _made("cudaStreamCreateWithFlags", ctypes.c_void_p, flags)


def cudaStreamDestroy(stream: int) -> tuple[cudaError_t]:
    return _call("cudaStreamDestroy", ctypes.c_void_p(stream))


def cudaStreamSynchronize(stream: int) -> tuple[cudaError_t]:
    return _call("cudaStreamSynchronize", ctypes.c_void_p(stream))


def cudaMemcpyAsync(to: int, source: int, size: int, kind: int, stream: int) -> tuple[cudaError_t]:
    pointers = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size)
    return _call("cudaMemcpyAsync", *pointers, int(kind), ctypes.c_void_p(stream))


def cudaEventCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    return _made("cudaEventCreateWithFlags", ctypes.c_void_p, flags)


def cudaEventRecord(event: int, stream: int) -> tuple[cudaError_t]:
    return _call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))


def cudaStreamWaitEvent(stream: int, event: int, flags: int) -> tuple[cudaError_t]:
    return _call("cudaStreamWaitEvent", ctypes.c_void_p(stream), ctypes.c_void_p(event), flags)


def cudaEventDestroy(event: int) -> tuple[cudaError_t]:
    return _call("cudaEventDestroy", ctypes.c_void_p(event))


def cudaGetLastError() -> tuple[cudaError_t]:
    return _call("cudaGetLastError")


def cudaGetErrorString(error: int) -> tuple[cudaError_t, bytes]:
    text = _library.cudaGetErrorString
    text.restype = ctypes.c_char_p
    return cudaError_t.cudaSuccess, text(int(error))
