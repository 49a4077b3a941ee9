"""What every runtime looks like from outside: named float32 arrays in, one float32 array out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from fct_infer.backends.device import cuda_index
from fct_infer.device_arrays import DeviceRows, device_call
from fct_infer.errors import UnsupportedError
from fct_infer.transformation import Float32Array

Batch: TypeAlias = Mapping[str, Float32Array]
BACKENDS = ("auto", "core", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx")
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
DeviceBatch: TypeAlias = Mapping[str, DeviceRows]


def split_batch(batch: Batch, rows: int) -> Iterator[dict[str, Float32Array]]:
    """Yield a batch in pieces of at most ``rows`` rows."""
    count = len(next(iter(batch.values())))
    for start in range(0, count, rows):
        yield {name: array[start : start + rows] for name, array in batch.items()}


@dataclass(frozen=True)
class Interface:
    """What goes into a model and what comes out.

    Attributes:
        inputs: shape of each input without the batch axis: ``{"old": (96,), "side": (32,)}`` or
            ``{"image": (3, h, w)}``.
        output_dim: width of the embedding.
    """

    inputs: Shapes
    output_dim: int


class Runner(ABC):
    """A model file, opened by the runtime it is made for.

    Attributes:
        backend: ``onnxruntime``, ``torch``, ``tensorrt`` or ``tensorrt-rtx``.
        device: where it computes, truly: ``cpu`` or ``cuda:0``.
        runtime: backend, version and device, for people and manifests.
        interface: of the model.
        assignment: which input of a bare file is taken for which, for people.
    """

    backend: str
    device: str
    runtime: str
    interface: Interface
    assignment: str | None = None

    @abstractmethod
    def run(self, batch: Batch) -> Float32Array:
        """Compute one batch, safe to call from many threads at once.

        Args:
            batch: the inputs by name, (n, \\*shape) float32, C-contiguous, the same n >= 1 for all.

        Returns:
            (n, output_dim) float32, C-contiguous, in memory of its own.

        Raises:
            ArtifactError: the model does not run on such a batch.
            ResourceError: the runtime fails, for instance for want of memory.
        """

    @property
    def device_number(self) -> int:
        """Number of the device that it computes on.

        Raises:
            UnsupportedError: it computes on the CPU.
        """
        device_number = cuda_index(self.device)
        if device_number is None:
            raise UnsupportedError(
                f"only models on a device take arrays there; this one runs in {self.backend} on {self.device}"
            )
        return device_number

    def run_on_device(self, batch: DeviceBatch, out: DeviceRows, stream: int) -> None:
        """Compute one batch in the memory of its device, without a copy, safe to call from many threads at once.

        The work comes after all that was enqueued on ``stream``, and what is enqueued there later comes after the work.

        Args:
            batch: the inputs by name, (n, \\*shape) float32, the same n >= 1 for all.
            out: what to fill, (n, output_dim) float32.
            stream: ``cudaStream_t`` of the caller.

        Raises:
            ArrayError: the runtime asks more of an address than that it suits float32.
            ArtifactError: the model does not run on such a batch.
            ResourceError: the runtime fails, for instance for want of memory.
            UnsupportedError: the runtime, or the model in it, takes no arrays on a device.
        """
        raise UnsupportedError(
            f"{self.backend} takes no arrays on a device; the core, ONNX Runtime, PyTorch and TensorRT do"
        )


def call_on_device(runner: Runner, inputs: Mapping[str, Any], out: Any, stream: Any) -> Any:
    """Check arrays on a device and have a runner compute them.

    Args:
        runner: on that device.
        inputs: arrays with ``__dlpack__`` or ``__cuda_array_interface__`` by name, float32; None is no array.
        out: what to fill; None makes a float32 array of the library that the first input came from.
        stream: of the caller; None takes the one that the first input's library is using now.

    Returns:
        ``out``, filled once the stream has passed.

    Raises:
        ArrayError: wrong dtype, layout, shape or device, naming the argument; nothing is cast or copied.
        FctError: as :meth:`Runner.run_on_device`.
    """
    device_number, interface = runner.device_number, runner.interface
    call = device_call(
        inputs,
        out,
        stream,
        shapes=interface.inputs,
        width=interface.output_dim,
        device_number=device_number,
        dtypes=("float32",),
    )
    if call.out.rows:
        runner.run_on_device(call.inputs, call.out, call.stream)
    return call.result
