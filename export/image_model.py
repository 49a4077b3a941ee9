"""A torch module that turns images into embeddings, whatever the layout of its output."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fct_infer.artifacts.torchscript import last_line
from fct_infer.errors import ArtifactError

from .parity import Probe, random_batches

_BATCH_SIZES = (1, 2, 7)
_TRIED_IMAGES = 2


class ImageModel(nn.Module):
    """``model`` with output (n, output_dim) instead of (n, output_dim, 1, 1); float32, on the CPU, in eval mode.

    Args:
        model: takes (n, \\*image_shape) float32. It is copied.
        image_shape: (channels, height, width).

    Raises:
        ArtifactError: it does not run on such images, or does not make one embedding of each.
    """

    def __init__(self, model: nn.Module, image_shape: Sequence[int]) -> None:
        super().__init__()
        with torch.no_grad():  # copies of TorchScript weights would remember where they came from
            self.model = copy.deepcopy(model).cpu().float().eval()
        self.image_shape = tuple(image_shape)
        output = self._try()
        self.is_pooled_map = output.ndim == 4 and output.shape[2:] == (1, 1)
        if output.ndim != (4 if self.is_pooled_map else 2) or len(output) != _TRIED_IMAGES:
            shape = tuple(output.shape)
            raise ArtifactError(f"the model makes {shape} of {_TRIED_IMAGES} images, wanted (n, d) or (n, d, 1, 1)")
        self.output_dim = output.shape[1]

    def forward(self, image: Tensor) -> Tensor:
        """(n, \\*image_shape) -> (n, output_dim)."""
        features: Tensor = self.model(image)
        return features.flatten(1) if self.is_pooled_map else features

    def _try(self) -> Tensor:
        try:
            with torch.inference_mode():
                output = self.model(torch.zeros(_TRIED_IMAGES, *self.image_shape))
        except (RuntimeError, TypeError, ValueError, torch.jit.Error) as error:
            shape = "x".join(map(str, self.image_shape))
            raise ArtifactError(f"the model does not run on images {shape}: {last_line(error)}") from error
        if not isinstance(output, Tensor):
            raise ArtifactError(f"the model makes a {type(output).__name__} of images, wanted one tensor")
        return output

    def run(self, image: Tensor) -> Tensor:
        """Forward without gradients."""
        with torch.inference_mode():
            embedding: Tensor = self(image)
            return embedding

    def probe(self) -> Probe:
        """Return random images and their embeddings."""
        batches = random_batches({"image": self.image_shape}, _BATCH_SIZES)
        outputs = [self.run(torch.from_numpy(batch["image"])) for batch in batches]
        return Probe(batches, torch.cat(outputs).numpy())

    def digest(self) -> str:
        """SHA-256 over names, shapes and numbers of all weights and buffers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()
