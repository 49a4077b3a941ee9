"""FAISS's GPU part: which device to use, and the few calls this room makes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fct_infer.cuda import cuda_status, device_numbers, missing_for
from fct_infer.device_arrays import device_rows
from fct_infer.errors import ArrayError, ResourceError, UnsupportedError
from fct_infer.index.builder import Ids
from fct_infer.index.faiss_module import condensed, faiss

_MAX_TEMPORARY = 1536 << 20  # what FAISS itself reserves at most for work in progress
_TEMPORARY_SHARE = 4  # of the memory allowed: one part in so many
# cudaMalloc's words, and those of builds that allocate through RMM.
_OUT_OF_MEMORY = ("out of memory", "CUDA memory allocation error")


class DeviceFullError(Exception):
    """The device has no memory left for what was asked; whoever called may move what is there and try again."""


class DeviceRefusesError(Exception):
    """FAISS has no GPU form of an index; the message is its reason."""


class GpuFaiss:
    """FAISS on one device. What it makes there lives until it is dropped.

    Args:
        device: number of the device.
        memory: bytes of it to use at most; 0: half of what is free.
    """

    def __init__(self, device_number: int, memory: int = 0) -> None:
        self.device_number = device_number
        self._resources = faiss().StandardGpuResources()
        self.temporary_bytes = min(_MAX_TEMPORARY, memory // _TEMPORARY_SHARE) if memory else _MAX_TEMPORARY
        self._resources.setTempMemory(self.temporary_bytes)
        self._memory = memory

    @property
    def name(self) -> str:
        """As devices are named: ``cuda:0``."""
        return f"cuda:{self.device_number}"

    def room(self) -> int | None:
        """Return the bytes an index may take; None if nobody knows how much is free."""
        if self._memory:
            return self._memory - self.temporary_bytes
        free = {each.index: each.free_bytes for each in cuda_status().devices}.get(self.device_number)
        return None if free is None else (free - self.temporary_bytes) // 2

    def to_device(self, index: Any) -> Any:
        """Return an index of the same content on the device.

        Raises:
            DeviceFullError: it does not fit.
            DeviceRefusesError: FAISS has no GPU form of it.
        """
        module = faiss()
        options = module.GpuClonerOptions()
        options.use_cuvs = False  # its lists differ from the CPU's, and its k-means is another one
        # Of searches only, and we never search there; float32 tables of 64 codes exceed a device's shared memory.
        options.useFloat16 = isinstance(index, module.IndexIVFPQ)
        try:
            return module.index_cpu_to_gpu(self._resources, self.device_number, index, options)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise DeviceFullError(f"{self.name} is full: {condensed(error)}") from error
            raise DeviceRefusesError(condensed(error)) from error

    def to_host(self, index: Any) -> Any:
        """Return a CPU index of the same content as an index on the device."""
        with self._errors():
            return faiss().index_gpu_to_cpu(index)

    def add(self, index: Any, rows: Any, ids: Ids) -> None:
        """Add rows (n, dim) float32, NumPy's or on the device, to an index there; they were read when this returns.

        Raises:
            ArrayError: rows on a device have the wrong dtype, layout or shape, or are on another device.
            DeviceFullError: there is no memory left, and the lists that were to grow may be torn: see DeviceLists.
        """
        with self._errors():
            if isinstance(rows, np.ndarray):
                index.add_with_ids(rows, ids)
            else:
                self._add_from_device(index, rows, ids)

    def _add_from_device(self, index: Any, rows: Any, ids: Ids) -> None:
        module = faiss()
        # FAISS's own: by the arrays' protocols, what fills them comes before what is enqueued here.
        stream = module.cast_cudastream_t_to_integer(self._resources.getDefaultStream(self.device_number))
        found = device_rows("rows", rows, index.d, stream)
        if found.dtype != "float32" or found.device_number not in (None, self.device_number):
            place = "" if found.device_number is None else f" on cuda:{found.device_number}"
            raise ArrayError(f"rows are {found.dtype}{place}, wanted float32 on {self.name}")
        try:
            pointer = module.cast_integer_to_float_ptr(found.address)
            index.add_with_ids_c(found.rows, pointer, module.swig_ptr(ids))
        finally:
            # FAISS returns, or fails, while the device still reads; the caller is about to put other rows there.
            self._resources.getResources().syncDefaultStream(self.device_number)

    def reset(self, index: Any) -> None:
        """Drop the rows of an index on the device and give their memory back."""
        with self._errors():
            index.reset()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell a full device from everything else that FAISS reports with one class."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise DeviceFullError(f"{self.name} is full: {condensed(error)}") from error
            raise ResourceError(f"{self.name}: {condensed(error)}") from error


def find_gpu(device: str, memory: int = 0, *, required: bool = True) -> GpuFaiss | None:
    """Return the device to build an index on; None: the CPU.

    Args:
        device: ``cpu``; ``cuda``, ``cuda:N`` (of several the first is taken); ``auto``: the first device, if FAISS can
            use it.
        memory: as for :class:`GpuFaiss`.
        required: whether a device that neither FAISS nor the core can use is an error; ``auto`` requires none.

    Raises:
        UnsupportedError: a device is required, and neither can use it; says what to install.
        UsageError: there is no such kind of device.
    """
    if required:
        require_gpu(device)
    devices = _devices(device)
    return None if not devices or why_no_gpu(device) else GpuFaiss(devices[0], memory)


def require_gpu(device: str) -> None:
    """Check that FAISS, or the core, can use the device that ``device`` names; ``cpu`` and ``auto`` name none.

    Raises:
        UnsupportedError: neither can; says what to install.
        UsageError: there is no such kind of device.
    """
    if device == "auto":
        return
    missing = why_no_gpu(device)
    if missing and not core_can_use(device):
        raise UnsupportedError(f"an index on {device}: {missing}")


def core_can_use(device: str) -> bool:
    """Whether ``device`` names one, or several, on which the core runs."""
    return device != "auto" and bool(device_numbers(device)) and missing_for(device) is None


def why_no_gpu(device: str) -> str | None:
    """Return why FAISS cannot use the device that ``device`` stands for; None if it can, or none is asked for."""
    devices, module = _devices(device), faiss()
    if not devices:
        return None
    if not hasattr(module, "StandardGpuResources"):
        return "this FAISS is built without CUDA: install faiss-gpu or faiss-gpu-cuvs in place of faiss-cpu"
    count = int(module.get_num_gpus())
    if devices[0] >= count:
        return f"FAISS finds {count or 'no'} CUDA device{'s' * (count > 1)} on this machine"
    return None


def _devices(device: str) -> tuple[int, ...]:
    return (0,) if device == "auto" else device_numbers(device)


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error of FAISS is that of a device without free memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
