"""TensorRT's runtime and a CUDA device in NumPy memory, stricter than the real ones.

What the real ones would answer with a wrong result or a crash is an AssertionError here: work on memory that was given
back, on buffers too small, on tensors without an address or at one that is not aligned; a context used by two threads,
or whose executions overtake each other; a call while another device is current. Streams are as late as they may be:
nothing happens before ``synchronize``, of the stream itself or of one that follows it.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np

from fct_infer.backends.cuda_memory import DeviceMemory, Gpu
from fct_infer.errors import ResourceError

VERSION = "10.3.0"


class FakeMemory(DeviceMemory):
    """A device whose memory is NumPy's.

    ``fail(name)`` makes the next call of that method a ResourceError; ``live`` and ``streams`` were not given back yet.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.gpu = Gpu("NVIDIA H200", "9.0")
        self.live: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[tuple[Callable[[], None], set[int]]]] = {}
        self.calls: Counter[str] = Counter()
        self._failing: Counter[str] = Counter()
        self._next = 0x1000
        self._thread = threading.local()
        self._lock = threading.Lock()

    def fail(self, name: str, times: int = 1) -> None:
        self._failing[name] = times

    @contextmanager
    def current(self) -> Iterator[None]:
        before = getattr(self._thread, "current", False)
        self._thread.current = True
        try:
            yield
        finally:
            self._thread.current = before

    def allocate(self, size: int) -> int:
        self._called("allocate")
        assert size > 0
        with self._lock:
            address, self._next = self._next, self._next + -(-size // 0x1000) * 0x1000
            self.live[address] = np.full(size, 0xFF, np.uint8)  # NaN, if it is read before it is written
        return address

    def free(self, address: int) -> None:
        self._called("free", anywhere=True)
        in_flight = {each for work in list(self.streams.values()) for _, used in list(work) for each in used}
        assert not any(address <= each < address + len(self.live[address]) for each in in_flight), (
            "memory given back while work on it is in flight"
        )
        del self.live[address]

    def create_stream(self) -> int:
        self._called("create_stream")
        with self._lock:
            stream, self._next = self._next, self._next + 0x1000
            self.streams[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        self._called("destroy_stream", anywhere=True)
        del self.streams[stream]

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        self._called("copy_in")
        assert array.dtype == np.float32 and array.flags.c_contiguous

        def copy() -> None:
            self.bytes_at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

        self.enqueue(stream, copy, {address})

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        self._called("copy_out")
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable

        def copy() -> None:
            array.reshape(-1).view(np.uint8)[:] = self.bytes_at(address, array.nbytes)

        self.enqueue(stream, copy, {address})

    def synchronize(self, stream: int) -> None:
        try:
            self._called("synchronize", anywhere=True)
            self._work_off(stream)
        finally:
            self.streams[stream].clear()

    def follow(self, stream: int, other: int) -> None:
        self._called("follow")
        passed = threading.Event()
        self.enqueue(other, passed.set, set())
        self.enqueue(stream, lambda: self._work_off(other, passed.is_set), set())

    def _work_off(self, stream: int, until: Callable[[], bool] = lambda: False) -> None:
        while not until() and (work := self.streams[stream]):
            work[0][0]()
            work.pop(0)

    def enqueue(self, stream: int, step: Callable[[], None], addresses: set[int]) -> None:
        self.streams[stream].append((step, addresses))

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        start = max(each for each in list(self.live) if each <= address)
        memory = self.live[start][address - start :]
        assert size <= len(memory), f"{size} bytes of a buffer of {len(memory)}"
        return memory[:size]

    def _called(self, name: str, anywhere: bool = False) -> None:
        assert anywhere or getattr(self._thread, "current", False), f"{name}: another device is current"
        with self._lock:
            self.calls[name] += 1
            failing = self._failing[name] > 0
            self._failing[name] -= failing
        if failing:
            raise ResourceError(f"cuda:{self.index}: cannot {name}: told to fail")


def fake_engine(inputs: Mapping[str, tuple[int, ...]], output_dim: int, rows: tuple[int, int, int]) -> bytes:
    """A serialized engine: ``embedding`` is the sum over the inputs of their numbers times :func:`weights`."""
    return json.dumps({"inputs": inputs, "output_dim": output_dim, "rows": rows, "version": VERSION}).encode()


def expected(batch: Mapping[str, np.ndarray], output_dim: int) -> np.ndarray:
    """What such an engine computes; exact for small whole numbers, whatever the batch."""
    flat = [array.reshape(len(array), -1) for array in batch.values()]
    return sum(array @ weights(array.shape[1], output_dim) for array in flat).astype(np.float32)


def weights(dim_in: int, dim_out: int) -> np.ndarray:
    return np.random.default_rng(dim_in).integers(-4, 5, (dim_in, dim_out)).astype(np.float32)


def fake_tensorrt(memory: FakeMemory) -> Any:
    """A module that runs :func:`fake_engine` on ``memory``; ``module.fail(name, why)`` fails the next such call."""
    trt: Any = ModuleType("tensorrt")
    trt.__version__, trt.memory, trt.failing, trt.contexts = VERSION, memory, {}, []
    trt.while_executing = lambda: None
    trt.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})
    trt.DataType, trt.TensorIOMode = _DataType, _TensorIOMode
    trt.Runtime = lambda logger: _Runtime(trt, logger)
    trt.fail = trt.failing.__setitem__
    return trt


class _DataType(IntEnum):
    FLOAT = 0
    HALF = 1


class _TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class _Refusable:
    def __init__(self, trt: Any, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def refused(self, name: str, why: str | None = None) -> bool:
        why = why or self.trt.failing.pop(name, None)
        if why:
            self.logger.log(self.trt.ILogger.WARNING, "a warning")
            self.logger.log(self.trt.ILogger.ERROR, why)
        return bool(why)


class _Runtime(_Refusable):
    def deserialize_cuda_engine(self, data: bytes) -> _FakeEngine | None:
        if self.refused("deserialize_cuda_engine"):
            return None
        try:
            return _FakeEngine(self.trt, self.logger, json.loads(data))
        except ValueError:
            self.refused("", "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
            return None


class _FakeEngine(_Refusable):
    def __init__(self, trt: Any, logger: Any, spec: dict[str, Any]) -> None:
        super().__init__(trt, logger)
        self.rows, self.output_dim = spec["rows"], spec["output_dim"]
        self.declared_dim = spec.get("declared_dim", self.output_dim)  # -1: known when the inputs' shapes are
        self.inputs = {name: tuple(shape) for name, shape in spec["inputs"].items()}
        self.names = [*self.inputs, "embedding"]
        self.num_io_tensors = len(self.names)
        self.dtype = _DataType(spec.get("dtype", _DataType.FLOAT))

    def get_tensor_name(self, place: int) -> str:
        return self.names[place]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.inputs.get(name, (self.declared_dim,)))

    def get_tensor_dtype(self, name: str) -> _DataType:
        return self.dtype

    def get_tensor_mode(self, name: str) -> _TensorIOMode:
        return _TensorIOMode.INPUT if name in self.inputs else _TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0 and name in self.inputs
        return [(count, *self.inputs[name]) for count in self.rows]

    def create_execution_context(self) -> _Context | None:
        if self.refused("create_execution_context"):
            return None
        self.trt.contexts.append(_Context(self))
        return self.trt.contexts[-1]


class _Context:
    def __init__(self, engine: _FakeEngine) -> None:
        self._engine, self._memory = engine, engine.trt.memory
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._in_use = threading.Lock()
        self._enqueued: deque[int] = deque()
        self._executions = 0

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        assert self._in_use.acquire(blocking=False), "one context, two threads"
        try:
            yield
        finally:
            self._in_use.release()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        with self._exclusively():
            fewest, _, most = self._engine.rows
            fits = shape[1:] == self._engine.inputs[name] and fewest <= shape[0] <= most
            if not fits or self._engine.refused("set_input_shape"):
                self._engine.refused("", f"input {name} {shape} is outside of the profile")
                return False
            self._shapes[name] = shape
            return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        with self._exclusively():
            counts = {shape[0] for shape in self._shapes.values()}
            known = len(counts) == 1 and self._shapes.keys() == self._engine.inputs.keys()
            return (counts.pop() if known else -1, self._engine.output_dim)

    def set_tensor_address(self, name: str, address: int) -> bool:
        with self._exclusively():
            assert isinstance(address, int) and address % 256 == 0 and name in self._engine.names
            self._addresses[name] = address
            return not self._engine.refused("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        with self._exclusively():
            assert self._shapes.keys() == self._engine.inputs.keys(), "an input without a shape"
            assert set(self._addresses) == set(self._engine.names), "a tensor without an address"
            assert len({shape[0] for shape in self._shapes.values()}) == 1
            if self._engine.refused("execute_async_v3"):
                return False
            self._executions += 1
            number, shapes, addresses = self._executions, dict(self._shapes), dict(self._addresses)
            self._enqueued.append(number)
        self._memory.enqueue(stream, lambda: self._compute(number, shapes, addresses), set(addresses.values()))
        return True

    def _compute(self, number: int, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self._engine.trt.while_executing()
        batch = {name: self._tensor(addresses[name], shape) for name, shape in shapes.items()}
        shape = (next(iter(shapes.values()))[0], self._engine.output_dim)
        self._tensor(addresses["embedding"], shape)[:] = expected(batch, self._engine.output_dim)
        assert self._enqueued.popleft() == number, "executions of one context overtake each other"

    def _tensor(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape)) * 4
        return self._memory.bytes_at(address, size).view(np.float32).reshape(shape)
