"""Any embedding model a user has, as a function of training images: a run, a checkpoint, or what fct-export made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.artifacts.files import digest_file
from fct_infer.artifacts.manifest import MANIFEST_NAME
from fct_infer.backends.embedder import Embedder
from fct_infer.backends.loading import load_embedder
from fct_infer.errors import ArtifactError, UsageError
from fct_infer.training.data.images import to_batch
from fct_infer.training.features.embedding import ModuleEmbedder
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.checkpoints import SUFFIXES, load_checkpoint


@dataclass(frozen=True)
class ImageModel:
    """An embedding model.

    Attributes:
        name: where it came from, for messages.
        sha256: of its weights, or of its bundle's manifest.
        embed: images as :func:`fct_infer.training.data.images.to_batch` takes them -> (n, d) float32.
    """

    name: str
    sha256: str
    embed: Callable[[Tensor], NDArray[np.float32]]


def open_image_model(path: str | Path, device: torch.device | str = "cpu", *, trust_code: bool = False) -> ImageModel:
    """Open the folder of a finished run, one of this project's checkpoints, or a bundle.

    Args:
        path: the folder, or one of a checkpoint's two files.
        device: where to compute.
        trust_code: build a checkpoint's model that is not this project's.

    Raises:
        ArtifactError: a file is missing, damaged or malformed, or holds something else.
        UsageError: it needs trust, or does not tell how its images are prepared.
        UnsupportedError: the bundle has no file that runs on the device.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path}: no such run, checkpoint or bundle")
    if not path.is_dir() and path.suffix not in SUFFIXES:
        raise ArtifactError(f"{path}: is neither a run, a checkpoint (.safetensors) nor a bundle; fct-export makes one")
    if not (path / MANIFEST_NAME).exists():
        module, checkpoint = load_checkpoint(path, Backbone, trust_code=trust_code)
        return ImageModel(str(path), checkpoint.sha256, ModuleEmbedder(module, device))
    embedder = load_embedder(path, device=str(device))
    if embedder.preprocessing is None:
        raise UsageError(f"{path}: does not tell how its images are prepared; fct-export --image-mean --image-std does")
    return ImageModel(str(path), digest_file(path / MANIFEST_NAME), _Prepared(str(path), embedder))


class _Prepared:
    """A model of production behind images on the scale 0 to 1: they are of its size already, and get its scale here."""

    def __init__(self, name: str, embedder: Embedder) -> None:
        self._name, self._embedder = name, embedder

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        batch, preprocessing = to_batch(images).cpu(), self._embedder.preprocessing
        assert preprocessing is not None
        if tuple(batch.shape[1:]) != self._embedder.image_shape:
            wanted, found = ("x".join(map(str, shape)) for shape in (self._embedder.image_shape, batch.shape[1:]))
            raise UsageError(f"{self._name}: takes images of {wanted}, data.images gives {found} (image_size)")
        mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
        return self._embedder(np.ascontiguousarray(((batch - mean) / std).numpy(), np.float32))
