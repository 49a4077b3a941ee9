"""Arrays in a device's memory without PyTorch: cudaMalloc under the CUDA array interface, or under DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np

from fct_infer.backends.cuda_memory import CudaMemory
from fct_infer.device_arrays import _capsule_pointer, _DlTensor


class CudaArray:
    """A copy of a NumPy array on a device, there when its stream has passed; freed with this object."""

    def __init__(self, memory: CudaMemory, array: np.ndarray, stream: int) -> None:
        self._memory, self._stream, self._shape, self._dtype = memory, stream, array.shape, array.dtype
        with memory.current():
            self._address = memory.allocate(max(array.nbytes, 1))
            memory.copy_in(self._address, np.ascontiguousarray(array), stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self._shape,
            "typestr": self._dtype.str,
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            "stream": self._stream,
        }

    def numpy(self) -> np.ndarray:
        array = np.empty(self._shape, self._dtype)
        with self._memory.current():
            self._memory.copy_out(array, self._address, self._stream)
            self._memory.synchronize(self._stream)
        return array

    def __del__(self) -> None:
        with self._memory.current():
            self._memory.free(self._address)


class CudaDlpackArray(CudaArray):
    """The same under DLPack, which has the consumer's stream wait for the producer's."""

    __cuda_array_interface__ = None  # type: ignore[assignment]

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._memory.index

    def __dlpack__(self, stream: int | None = None) -> Any:
        with self._memory.current():
            self._memory.follow(stream or 0, self._stream)
        capsule = np.empty(self._shape, self._dtype).__dlpack__()
        tensor = _DlTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
        tensor.data, (tensor.device_type, tensor.device_id) = self._address, self.__dlpack_device__()
        return capsule
