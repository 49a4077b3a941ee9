"""From images to embeddings, batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fct_infer.training.data.images import ImageData, LabelledImages, to_batch


def embed(
    model: nn.Module, images: NDArray[Any], batch_size: int = 256, device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Return ``model``'s embedding of every image, in eval mode.

    Args:
        model: (n, 3, h, w) float32 on the scale 0 to 1 -> (n, d).
        images: (n, h, w, 3) uint8.
        batch_size: images a forward pass.
        device: where to compute; the model is back on the CPU afterwards.

    Returns:
        (n, d) float32, C-contiguous.

    Raises:
        ArrayError: images of another dtype or shape, or none.
    """
    return embed_data(model, LabelledImages.unlabelled(images), batch_size, device)[0]


def embed_data(
    model: nn.Module, data: ImageData, batch_size: int = 256, device: torch.device | str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return ``model``'s embedding of every image of a set that is not broken, and the rows of these images.

    Arguments and errors are those of :func:`embed`.

    Returns:
        (n, d) float32, C-contiguous, and (n,) int64, rising.
    """
    was_training, embedder = model.training, ModuleEmbedder(model, device)
    try:
        parts = [(embedder(images), rows.numpy()) for images, rows in data.in_order(batch_size)]
    finally:
        model.cpu().train(was_training)
    return np.concatenate([part for part, _ in parts]), np.concatenate([rows for _, rows in parts])


class ModuleEmbedder:
    """A module as a function from batches of images to embeddings, moved to a device and in eval mode."""

    def __init__(self, module: nn.Module, device: torch.device | str) -> None:
        self._module, self._device = module.to(device).eval(), device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Return (n, d) float32, C-contiguous, of images as :func:`to_batch` takes them."""
        embeddings: Tensor = self._module(to_batch(images.to(self._device)))
        return np.ascontiguousarray(embeddings.cpu().numpy(), np.float32)
