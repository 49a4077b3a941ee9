"""What every runtime looks like from outside: named float32 arrays in, one float32 array out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fct_infer.transformation import Float32Array

Batch: TypeAlias = Mapping[str, Float32Array]
BACKENDS = ("auto", "core", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx")
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


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
    """

    backend: str
    device: str
    runtime: str
    interface: Interface

    @abstractmethod
    def run(self, batch: Batch) -> Float32Array:
        """Compute one batch, safe to call from many threads at once.

        Args:
            batch: the inputs by name, (n, \\*shape) float32, C-contiguous, the same n >= 1 for all.

        Returns:
            (n, output_dim) float32, C-contiguous, in memory of its own.

        Raises:
            ResourceError: the runtime fails, for instance for want of memory.
        """
