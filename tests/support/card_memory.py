"""Arrays in a real card's memory without PyTorch: cudaMalloc under the CUDA array interface."""

from __future__ import annotations

from typing import Any

import numpy as np

from fct_infer.backends.cuda_memory import CudaMemory


class CardArray:
    """A copy of a NumPy array on a card, freed with this object."""

    def __init__(self, memory: CudaMemory, array: np.ndarray, stream: int) -> None:
        self._memory, self._stream, self._shape, self._dtype = memory, stream, array.shape, array.dtype
        with memory.current():
            self._address = memory.allocate(max(array.nbytes, 1))
            memory.copy_in(self._address, np.ascontiguousarray(array), stream)
            memory.synchronize(stream)

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
