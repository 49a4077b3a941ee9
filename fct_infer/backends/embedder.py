"""A backbone or side-information model: images in, embeddings out, whatever runtime is behind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.manifest import Kind, Preprocessing
from fct_infer.backends.runner import Runner, call_on_device
from fct_infer.errors import ArrayError, NonFiniteError
from fct_infer.identity import ModelId
from fct_infer.transformation import Float32Array


class Embedder:
    """An image model ready to run; see :func:`fct_infer.load_embedder`.

    Attributes:
        kind: ``backbone`` or ``side-information``.
        model_version: name of the model.
        precision: of its arithmetic, such as ``fp32``.
        preprocessing: what images must go through to become ``images``; None if the bundle does not tell.
        model: whose vectors it makes, for ``index.search(..., model=embedder.model)``.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        kind: Kind,
        model_version: str,
        precision: str,
        preprocessing: Preprocessing | None,
        model: ModelId | None = None,
    ) -> None:
        self._runner = runner
        self.kind, self.model_version, self.precision = kind, model_version, precision
        self.preprocessing, self.model = preprocessing, model

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self._runner.interface.inputs["image"]
        return channels, height, width

    @property
    def embedding_dim(self) -> int:
        """Width of an embedding."""
        return self._runner.interface.output_dim

    @property
    def backend(self) -> str:
        """The runtime in use, never ``auto``."""
        return self._runner.backend

    @property
    def device(self) -> str:
        """Where it computes: ``cpu`` or ``cuda:0``."""
        return self._runner.device

    def __call__(self, images: NDArray[Any]) -> Float32Array:
        """Embed ``images`` (n, \\*image_shape) float32, C-contiguous, preprocessed; return (n, embedding_dim) float32.

        Raises:
            ArrayError: wrong dtype, layout or shape; nothing is cast or copied silently.
            NonFiniteError: an image, or its embedding, holds NaN or infinity.
            ResourceError: the runtime fails, for instance for want of memory.
        """
        wanted = ", ".join(map(str, self.image_shape))
        if not isinstance(images, np.ndarray):
            raise ArrayError(f"images is a {type(images).__name__}, wanted a NumPy array (n, {wanted})")
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ArrayError(f"images is {images.dtype} {images.shape}, wanted float32 (n, {wanted})")
        if not images.flags.c_contiguous:
            raise ArrayError("images is not C-contiguous; np.ascontiguousarray makes a copy that is")
        if not len(images):
            return np.empty((0, self.embedding_dim), np.float32)
        embeddings = self._runner.run({"image": images})
        _check_finite(images, "images")
        _check_finite(embeddings, "result")
        return embeddings

    def embed_on_device(self, images: Any, out: Any = None, stream: Any = None) -> Any:
        """Embed images that are in a device's memory into its memory, without a copy.

        Nothing looks for images that are not finite: what comes of one is up to the runtime. ONNX Runtime waits for the
        stream before it starts and for the result before it returns; PyTorch and TensorRT wait for neither. TensorRT
        wants addresses that are multiples of 256 bytes, as those of whole tensors are.

        Args:
            images: (n, \\*image_shape) float32, C-contiguous, preprocessed, with ``__dlpack__`` or
                ``__cuda_array_interface__``, as those of PyTorch and CuPy, on the device that the model runs on.
            out: likewise, (n, embedding_dim), what to fill; without it one of the library that ``images`` came from.
            stream: a ``cudaStream_t`` as an integer, or an object with ``__cuda_stream__``, with which the work is
                ordered; by default the one that ``images``' library is using now. Memory must live until it has passed.

        Returns:
            ``out``, filled once the stream has passed.

        Raises:
            ArrayError: wrong dtype, layout, shape, address or device, naming the argument.
            ResourceError: the runtime fails, for instance for want of memory.
            UnsupportedError: the model runs on the CPU.
        """
        return call_on_device(self._runner, {"image": images}, out, stream)

    def __repr__(self) -> str:
        return (
            f"Embedder(kind={self.kind!r}, image_shape={self.image_shape}, embedding_dim={self.embedding_dim}, "
            f"backend={self.backend!r}, device={self.device!r}, precision={self.precision!r})"
        )


def _check_finite(array: Float32Array, name: str) -> None:
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise NonFiniteError(name, int(np.argmin(finite)))
