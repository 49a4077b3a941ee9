"""Device memory through ``cuda-bindings``, whose calls answer as the real ones do but work on the host's memory."""

from __future__ import annotations

import ctypes
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fct_infer.backends.cuda_memory import CudaMemory, Gpu, current_gpu
from fct_infer.errors import MissingExtraError, ResourceError, UnsupportedError


class Error(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class Runtime(ModuleType):
    """``cuda.bindings.runtime`` of a machine with two devices of 1 MiB."""

    cudaError_t, cudaMemcpyKind, cudaStreamNonBlocking, cudaEventDisableTiming = Error, Kind, 1, 2  # noqa: N815
    error = event_error = Error.cudaSuccess

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.device, self.last_error, self.live = 1, Error.cudaSuccess, {}
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if self.error:
                self.last_error = self.error
                return (self.error, None)
            answer = getattr(self, f"answer_{name}")(*arguments)
            return answer if isinstance(answer, tuple) else (Error.cudaSuccess, answer)

        return call

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:  # noqa: N802
        return Error.cudaSuccess, f"reason {int(error)}".encode()

    def cudaGetLastError(self) -> tuple[Error]:  # noqa: N802
        error, self.last_error = self.last_error, Error.cudaSuccess
        return (error,)

    def answer_cudaGetDeviceCount(self) -> int:  # noqa: N802
        return 2

    def answer_cudaGetDeviceProperties(self, index: int) -> Any:  # noqa: N802
        return SimpleNamespace(name=b"NVIDIA H200\0\0", major=9, minor=index)

    def answer_cudaGetDevice(self) -> int:  # noqa: N802
        return self.device

    def answer_cudaSetDevice(self, index: int) -> tuple[Error]:  # noqa: N802
        self.device = index
        return (Error.cudaSuccess,)

    def answer_cudaMalloc(self, size: int) -> Any:  # noqa: N802
        if size > 1 << 20:
            self.last_error = Error.cudaErrorMemoryAllocation
            return (self.last_error, None)
        memory = ctypes.create_string_buffer(size)
        self.live[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def answer_cudaFree(self, address: int) -> tuple[Error]:  # noqa: N802
        del self.live[address]
        return (Error.cudaSuccess,)

    def answer_cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        return np.int64(77)

    def answer_cudaStreamSynchronize(self, stream: int) -> tuple[Error]:  # noqa: N802
        assert stream == 77
        return (Error.cudaSuccess,)

    answer_cudaStreamDestroy = answer_cudaStreamSynchronize  # noqa: N815

    def answer_cudaEventCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == self.cudaEventDisableTiming
        return "event"

    def answer_cudaEventRecord(self, event: str, stream: int) -> tuple[Error]:  # noqa: N802
        self.events.append(("record", event, stream))
        return (self.event_error,)

    def answer_cudaStreamWaitEvent(self, stream: int, event: str, flags: int) -> tuple[Error]:  # noqa: N802
        self.events.append(("wait", event, stream, flags))
        return (Error.cudaSuccess,)

    def answer_cudaEventDestroy(self, event: str) -> tuple[Error]:  # noqa: N802
        self.events.append(("destroy", event))
        return (Error.cudaSuccess,)

    def answer_cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: int) -> tuple[Error]:  # noqa: N802
        assert (to in self.live, source in self.live) == (kind == 1, kind == 2) and stream == 77
        ctypes.memmove(to, source, size)
        return (Error.cudaSuccess,)


@pytest.fixture
def runtime(monkeypatch):
    runtime = Runtime()
    for name, module in (("cuda", ModuleType("cuda")), ("cuda.bindings", ModuleType("cuda.bindings"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    return runtime


def test_bytes_survive_the_way_there_and_back(runtime):
    memory = CudaMemory(0)
    sent, received = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((3, 4), np.float32)
    stream, address = memory.create_stream(), memory.allocate(sent.nbytes)
    assert type(stream) is int and type(address) is int
    memory.copy_in(address, sent, stream)
    memory.copy_out(received, address, stream)
    memory.synchronize(stream)
    np.testing.assert_array_equal(received, sent)
    memory.free(address)
    memory.destroy_stream(stream)
    assert not runtime.live


def test_a_stream_follows_another_by_an_event_that_is_given_back(runtime):
    CudaMemory(0).follow(88, 77)
    assert runtime.events == [("record", "event", 77), ("wait", "event", 88, 0), ("destroy", "event")]
    runtime.events.clear()
    runtime.event_error = Error.cudaErrorMemoryAllocation
    with pytest.raises(ResourceError, match="cannot record an event"):
        CudaMemory(0).follow(88, 77)
    assert runtime.events == [("record", "event", 77), ("destroy", "event")]


def test_the_device_of_before_is_put_back(runtime):
    memory = CudaMemory(0)
    with pytest.raises(KeyError), memory.current():
        assert runtime.device == 0
        raise KeyError
    assert runtime.device == 1


def test_tells_the_device(runtime):
    assert CudaMemory(1).gpu == current_gpu(1) == Gpu("NVIDIA H200", "9.1")


def test_no_room_says_how_much_and_leaves_no_error_behind(runtime):
    memory = CudaMemory(1)
    with pytest.raises(ResourceError, match="cuda:1: cannot allocate 2,000,000 bytes: reason 2"):
        memory.allocate(2_000_000)
    assert runtime.last_error == Error.cudaSuccess


@pytest.mark.parametrize(
    "call",
    [
        lambda memory: memory.current().__enter__(),
        lambda memory: memory.allocate(1),
        lambda memory: memory.free(1),
        lambda memory: memory.create_stream(),
        lambda memory: memory.destroy_stream(77),
        lambda memory: memory.copy_in(1, np.zeros(1, np.float32), 77),
        lambda memory: memory.copy_out(np.zeros(1, np.float32), 1, 77),
        lambda memory: memory.synchronize(77),
        lambda memory: memory.follow(88, 77),
    ],
)
def test_every_refusal_is_an_error(runtime, call):
    memory = CudaMemory(0)
    runtime.error = Error.cudaErrorMemoryAllocation
    with pytest.raises(ResourceError, match=r"^cuda:0: cannot .*: reason 2$"):
        call(memory)


def test_no_driver(runtime):
    runtime.error = Error.cudaErrorInsufficientDriver
    with pytest.raises(UnsupportedError, match="cuda:0: cannot look for CUDA devices: reason 35"):
        CudaMemory(0)
    assert current_gpu() is None


@pytest.mark.parametrize("index", [2, -1])
def test_no_such_device(runtime, index):
    with pytest.raises(UnsupportedError, match=f"cuda:{index}: no such device; this machine has 2"):
        CudaMemory(index)
    assert current_gpu(index) is None


def test_no_cuda_bindings(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r"cuda-bindings is not installed.*\[rtx\]"):
        CudaMemory(0, extra="rtx")
    assert current_gpu() is None
