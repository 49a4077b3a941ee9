"""FAISS's GPU part on the CPU: indexes stay here, but memory runs out, refusals are worded and lists tear as there.

Rows that are said to lie on the device are read late, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np

from fct_infer.cuda import CudaDevice, Status
from fct_infer.index import gpu_faiss

OUT_OF_MEMORY = (
    "Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory(const faiss::gpu::AllocRequest&) at "
    "/project/faiss/gpu/StandardGpuResources.cpp:518: Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc "
    "fail type InvListData dev 0 space Device stream 0x55dfe2df9eb0 size 42466784256 bytes (cudaMalloc error out of "
    "memory [2])\n"
)
OUT_OF_MEMORY_CUVS = "Error in f at /project/faiss/gpu/StandardGpuResources.cpp:589: CUDA memory allocation error"
PQ_CODE_BYTES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
SHARED_MEMORY = 48 << 10
STREAM = 77  # FAISS's own


def thrown(words: str) -> RuntimeError:
    return RuntimeError(f"Error in void faiss::gpu::f() at /project/faiss/gpu/f.cu:123: Error: 'ok' failed: {words}")


class FakeDevices:
    """Devices of this machine.

    Args:
        memory: bytes of each for what indexes hold; None: enough for all.
        count: of devices.
        free: bytes the core reports to be free; None: a core built without CUDA, which reports nothing.
        words: FAISS's when memory runs out.
    """

    def __init__(
        self, memory: int | None = None, count: int = 1, free: int | None = None, words: str = OUT_OF_MEMORY
    ) -> None:
        self.memory, self.count, self.free, self.words = memory, count, free, words
        self.live: list[_Memory] = []
        self.leaked = 0
        self.temporary_bytes: int | None = None
        self.enqueued: list[Callable[[], None]] = []
        self.moves = 0
        self.lose_a_row = False

    def install(self, monkeypatch: Any) -> FakeDevices:
        replaced = {
            "get_num_gpus": lambda: self.count,
            "StandardGpuResources": lambda: _Resources(self),
            "GpuClonerOptions": SimpleNamespace,
            "index_cpu_to_gpu": self.index_cpu_to_gpu,
            "index_gpu_to_cpu": self.index_gpu_to_cpu,
            "cast_cudastream_t_to_integer": int,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(faiss, name, value, raising=False)
        monkeypatch.setattr(gpu_faiss, "cuda_status", self.status)
        return self

    def status(self) -> Status:
        if self.free is None:
            return Status("built without CUDA")
        return Status(None, tuple(CudaDevice(n, "Fake", "9.0", 1 << 40, self.free) for n in range(self.count)))

    @property
    def used(self) -> int:
        return sum(index.bytes for index in self.live)

    def take(self, more: int) -> None:
        if self.memory is not None and self.used + more > self.memory:
            raise RuntimeError(self.words)

    def index_cpu_to_gpu(self, resources: Any, device_number: int, index: Any, options: Any) -> Any:
        assert isinstance(resources, _Resources) and device_number < self.count and not options.use_cuvs
        index = faiss.downcast_index(index)
        if isinstance(index, faiss.IndexFlat):
            assert not options.useFloat16  # centroids would be rounded
            self.take(4 * index.d)
            return _Flat(self, index.d, index.metric_type)
        _refuse_as_faiss_does(index, options)
        assert index.ntotal == 0, "the lists on the device must start empty"
        return _InvertedLists(self, faiss.clone_index(index))

    def finish(self) -> None:
        while self.enqueued:
            self.enqueued.pop(0)()

    def index_gpu_to_cpu(self, index: Any) -> Any:
        self.finish()
        self.moves += 1
        part = faiss.clone_index(index.inner)
        if self.lose_a_row:
            part.remove_ids(np.array([next(iter(index.ids))]))
        return part


class _Resources:
    def __init__(self, devices: FakeDevices) -> None:
        self._devices = devices

    def setTempMemory(self, size: int) -> None:  # noqa: N802
        self._devices.temporary_bytes = size

    def getDefaultStream(self, device_number: int) -> int:  # noqa: N802
        return STREAM

    def getResources(self) -> _Resources:  # noqa: N802
        return self

    def syncDefaultStream(self, device_number: int) -> None:  # noqa: N802
        self._devices.finish()


class _Flat(faiss.IndexFlat):
    """A real index, for FAISS's own k-means calls it."""

    _devices = _memory = None  # FAISS's classes take no attribute that they do not know

    def __init__(self, devices: FakeDevices, dim: int, metric: int) -> None:
        super().__init__(dim, metric)
        self._devices, self._memory = devices, _Memory(4 * dim)
        devices.live.append(self._memory)

    def __del__(self) -> None:
        self._devices.live.remove(self._memory)
        self._devices.leaked += not self.this.own()  # then nobody deletes the C++ object


class _Memory:
    """What one index holds on a device."""

    def __init__(self, size: int) -> None:
        self.bytes = size


class _InvertedLists:
    """GpuIndexIVF, as far as filling it goes."""

    def __init__(self, devices: FakeDevices, inner: Any) -> None:
        self.inner, self.d, self.torn, self.ids = inner, inner.d, False, set[int]()
        self._devices = devices
        self._memory = _Memory(4 * inner.nlist * inner.d)
        devices.live.append(self._memory)

    def __del__(self) -> None:
        self._devices.live.remove(self._memory)

    def add_with_ids(self, rows: np.ndarray, ids: np.ndarray) -> None:
        self._grow(rows, ids.copy())
        self._devices.finish()

    def add_with_ids_c(self, count: int, rows: Any, ids: Any) -> None:
        self._grow(
            faiss.rev_swig_ptr(rows, count * self.d).reshape(count, self.d), faiss.rev_swig_ptr(ids, count).copy()
        )

    def _grow(self, rows: np.ndarray, ids: np.ndarray) -> None:
        assert not self.torn, "FAISS_ASSERT(indices->numVecs == oldNumVecs): the process aborts here"
        size = len(rows) * (self.inner.code_size + 8)
        try:
            self._devices.take(size)
        except RuntimeError:
            self._tear(rows)
            raise
        self._devices.enqueued.append(lambda: self.inner.add_with_ids(rows, ids))
        self.ids |= set(ids.tolist())
        self._memory.bytes += size

    def reset(self) -> None:
        self._devices.finish()
        self._memory.bytes = 4 * self.inner.nlist * self.inner.d
        self.torn = False
        self.ids.clear()
        self.inner.reset()

    def _tear(self, rows: np.ndarray) -> None:
        """Let some of the lists that were to grow have places that nothing was written to."""
        _, lists = self.inner.quantizer.search(rows, 1)
        numbers, counts = np.unique(lists, return_counts=True)
        for number, count in list(zip(numbers.tolist(), counts.tolist(), strict=True))[: len(numbers) // 2 + 1]:
            codes, ids = np.zeros(count * self.inner.code_size, np.uint8), np.zeros(count, np.int64)
            self.inner.invlists.add_entries(number, count, faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        self.torn = True


def _refuse_as_faiss_does(index: Any, options: Any) -> None:
    """GpuCloner.cpp, and what the constructors it calls check."""
    if not isinstance(index, faiss.IndexIVFFlat | faiss.IndexIVFPQ | faiss.IndexIVFScalarQuantizer):
        raise thrown("This index type is not implemented on GPU.")
    if not isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat):
        raise thrown("This index type is not implemented on GPU and allowCpuCoarseQuantizer is set to false.")
    if isinstance(index, faiss.IndexIVFScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_6bit:
        raise thrown("Unsupported scalar QuantizerType on GPU")
    if isinstance(index, faiss.IndexIVFPQ):
        if index.pq.nbits != 8:
            raise thrown("GPU: only pq.nbits == 8 is supported")
        if index.pq.M not in PQ_CODE_BYTES:
            raise thrown(f"Number of bytes per encoded vector / sub-quantizers ({index.pq.M}) is not supported")
        if index.pq.M * 256 * (2 if options.useFloat16 else 4) > SHARED_MEMORY:
            raise thrown("Device 0 has 49152 bytes of shared memory. Consider useFloat16LookupTables")
