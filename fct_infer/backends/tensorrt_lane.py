"""What one call of a TensorRT engine at a time may use: an execution context, a stream, buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import LifoQueue
from typing import Any

from fct_infer.backends.cuda_memory import DeviceMemory
from fct_infer.backends.runner import Batch
from fct_infer.backends.tensorrt_log import TensorRTLog
from fct_infer.device_arrays import DeviceRows
from fct_infer.errors import ArrayError, ArtifactError, ResourceError
from fct_infer.transformation import Float32Array

_ALIGNMENT = 256  # bytes, of every address that TensorRT is given


class Lane:
    """An execution context with a stream and buffers of its own.

    All its work goes through that stream, so a caller may leave before the work is done: the next one's comes after it.

    Attributes:
        stream: on which it computes.
    """

    def __init__(self, engine: Any, memory: DeviceMemory, log: TensorRTLog) -> None:
        self._memory, self._log = memory, log
        self._context = log.made("execution context", engine.create_execution_context)
        self.stream = memory.create_stream()
        self._buffers: dict[str, tuple[int, int]] = {}  # of a tensor: address and size in bytes

    def run(self, batch: Batch, output: str, result: Float32Array) -> None:
        """Fill ``result`` with the output for ``batch``; at most the most rows of the engine."""
        addresses = {name: self._buffer(name, array.nbytes) for name, array in {**batch, output: result}.items()}
        for name, array in batch.items():
            self._memory.copy_in(addresses[name], array, self.stream)
        shapes = {name: array.shape for name, array in batch.items()}
        self.enqueue(shapes, addresses, output, result.shape)
        self._memory.copy_out(result, addresses[output], self.stream)
        self._memory.synchronize(self.stream)

    def enqueue(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        output: str,
        wanted: tuple[int, ...],
    ) -> None:
        """Enqueue one execution.

        Args:
            shapes: of the inputs.
            addresses: of the inputs and the output, on the device.
            output: name of the output.
            wanted: shape that it must have.
        """
        for name, shape in shapes.items():
            self._check(self._context.set_input_shape(name, shape), f"take {shape} as {name!r}")
        made = tuple(self._context.get_tensor_shape(output))
        if made != wanted:
            raise ArtifactError(f"the engine makes {output!r} {made}, wanted {wanted}")
        for name, address in addresses.items():
            self._check(self._context.set_tensor_address(name, address), f"bind {name!r}")
        self._check(self._context.execute_async_v3(self.stream), "execute")

    def close(self) -> None:
        """Give back what it holds, after the work in flight; of a device that has failed, as much as it takes."""
        with suppress(ResourceError):
            self._memory.synchronize(self.stream)
        self._context = None
        for address, _ in self._buffers.values():
            with suppress(ResourceError):
                self._memory.free(address)
        self._buffers.clear()
        with suppress(ResourceError):
            self._memory.destroy_stream(self.stream)

    def _buffer(self, name: str, size: int) -> int:
        """Return a buffer of at least ``size`` bytes for tensor ``name``; the last call with NumPy arrays is over."""
        address, held = self._buffers.get(name, (0, 0))
        if held < size:
            if self._buffers.pop(name, None):
                self._memory.free(address)
            address = self._memory.allocate(size)
            self._buffers[name] = (address, size)
        return address

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise ResourceError(f"TensorRT cannot {what}: {self._log.reason()}")


def close_all(lanes: LifoQueue[Lane | None]) -> None:
    """Close the lanes that nobody has borrowed."""
    while not lanes.empty():
        if lane := lanes.get_nowait():
            lane.close()


def aligned_rows(arrays: Sequence[DeviceRows], most: int) -> int:
    """Return how many rows, at most ``most``, to execute at once so that every piece starts where TensorRT takes it.

    Raises:
        ArrayError: an array does not start there, or can be cut nowhere.
    """
    for each in arrays:
        if each.address % _ALIGNMENT:
            raise ArrayError(
                f"{each.name} is at an address that is no multiple of {_ALIGNMENT} bytes, as TensorRT asks"
            )
    rows = arrays[0].rows
    if rows <= most:
        return rows
    unit = max(_ALIGNMENT // math.gcd(_ALIGNMENT, each.row_size) for each in arrays)  # powers of two
    if most < unit:
        raise ArrayError(f"{arrays[0].name} has {rows} rows, wanted at most {most}, the most rows of this engine")
    return most - most % unit
