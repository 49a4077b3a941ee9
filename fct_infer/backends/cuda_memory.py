"""Memory, streams and copies of one CUDA device, through NVIDIA's ``cuda-bindings``; tests put NumPy in its place."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from fct_infer.errors import FctError, ResourceError, UnsupportedError, import_error
from fct_infer.transformation import Float32Array


@dataclass(frozen=True)
class Gpu:
    """A device: its name, ``NVIDIA H200``, and its compute capability, ``9.0``."""

    name: str
    compute_capability: str


class DeviceMemory(ABC):
    """What a runtime needs of a device; every call raises ResourceError if the device refuses it.

    Addresses and streams are plain integers, as TensorRT takes them.

    Attributes:
        index: number of the device.
        gpu: which device it is.
    """

    index: int
    gpu: Gpu

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Make this the calling thread's device inside the block."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes of device memory."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` returned, after all work that uses it."""

    @abstractmethod
    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""

    @abstractmethod
    def destroy_stream(self, stream: int) -> None:
        """Give back a stream."""

    @abstractmethod
    def copy_in(self, address: int, array: Float32Array, stream: int) -> None:
        """Enqueue a copy of a C-contiguous array to the device; it must live until :meth:`synchronize`."""

    @abstractmethod
    def copy_out(self, array: Float32Array, address: int, stream: int) -> None:
        """Enqueue a copy from the device that fills a C-contiguous array; it is whole after :meth:`synchronize`."""

    @abstractmethod
    def synchronize(self, stream: int) -> None:
        """Wait for all work of a stream; its errors surface here."""

    @abstractmethod
    def follow(self, stream: int, other: int) -> None:
        """Let what is enqueued on ``stream`` from now on wait for what ``other`` was given until now; do not wait."""


class CudaMemory(DeviceMemory):
    """A CUDA device.

    Args:
        index: number of the device.
        extra: which of this package's extras brings ``cuda-bindings``, for the message if it is not installed.

    Raises:
        MissingExtraError: ``cuda-bindings`` is not installed.
        UnsupportedError: there is no driver, or no such device.
    """

    def __init__(self, index: int = 0, *, extra: str = "gpu") -> None:
        self.index = index
        self._cuda = _import_cuda(extra)
        try:
            count = self._call("look for CUDA devices", "cudaGetDeviceCount")
        except ResourceError as error:
            raise UnsupportedError(str(error)) from error
        if not 0 <= index < count:
            raise UnsupportedError(f"cuda:{index}: no such device; this machine has {count}")
        properties = self._call("read the device's properties", "cudaGetDeviceProperties", index)
        name = properties.name.decode(errors="replace").rstrip("\0")
        self.gpu = Gpu(name, f"{properties.major}.{properties.minor}")

    @contextmanager
    def current(self) -> Iterator[None]:  # noqa: D102
        before = self._call("read the current device", "cudaGetDevice")
        self._call("select the device", "cudaSetDevice", self.index)
        try:
            yield
        finally:
            if before != self.index:
                self._call("select the device of before", "cudaSetDevice", before)

    def allocate(self, size: int) -> int:  # noqa: D102
        return int(self._call(f"allocate {size:,} bytes", "cudaMalloc", size))

    def free(self, address: int) -> None:  # noqa: D102
        self._call("free memory", "cudaFree", address)

    def create_stream(self) -> int:  # noqa: D102
        return int(self._call("create a stream", "cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:  # noqa: D102
        self._call("destroy a stream", "cudaStreamDestroy", stream)

    def copy_in(self, address: int, array: Float32Array, stream: int) -> None:  # noqa: D102
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("copy to it", "cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_out(self, array: Float32Array, address: int, stream: int) -> None:  # noqa: D102
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("copy from it", "cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:  # noqa: D102
        self._call("finish the work", "cudaStreamSynchronize", stream)

    def follow(self, stream: int, other: int) -> None:  # noqa: D102
        event = self._call("make an event", "cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming)
        try:
            self._call("record an event", "cudaEventRecord", event, other)
            self._call("wait for an event", "cudaStreamWaitEvent", stream, event, 0)
        finally:
            self._call("destroy an event", "cudaEventDestroy", event)  # which the device does once nobody waits for it

    def _call(self, what: str, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, function)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            # Taken off the thread, or the next library to ask for the last error would take it for its own.
            self._cuda.cudaGetLastError()
            reason = self._cuda.cudaGetErrorString(error)[1].decode()
            raise ResourceError(f"cuda:{self.index}: cannot {what}: {reason}")
        return values[0] if values else None


def current_gpu(index: int = 0) -> Gpu | None:
    """Return which device a CUDA device is; None without a driver, the device or ``cuda-bindings``."""
    try:
        return CudaMemory(index).gpu
    except FctError:
        return None


def _import_cuda(extra: str) -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise import_error("cuda-bindings", extra, error) from error
