"""From images to embeddings, batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fct_infer.training.data.images import as_images, to_batch


@torch.inference_mode()
def embed(model: nn.Module, images: NDArray[Any], batch_size: int = 256) -> NDArray[np.float32]:
    """Return ``model``'s embedding of every image, in eval mode.

    Args:
        model: (n, 3, h, w) float32 on the scale 0 to 1 -> (n, d).
        images: (n, h, w, 3) uint8.
        batch_size: images a forward pass.

    Returns:
        (n, d) float32, C-contiguous.

    Raises:
        ArrayError: images of another dtype or shape, or none.
    """
    was_training = model.training
    model.eval()
    try:
        parts = [model(to_batch(part)) for part in torch.split(as_images(images), batch_size)]
    finally:
        model.train(was_training)
    return np.ascontiguousarray(torch.cat(parts).numpy(), np.float32)
