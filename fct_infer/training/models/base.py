"""What every trained model of a kind has in common, whatever its architecture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.errors import UsageError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels

MAX_LAYERS = 1000  # a few bytes of a checkpoint's description can ask for millions


def check_layers(count: int) -> None:
    """Refuse a model of more layers than anybody has, before any is built.

    Raises:
        UsageError: ``count`` is above :data:`MAX_LAYERS`.
    """
    if count > MAX_LAYERS:
        raise UsageError(f"{count:,} layers or blocks, at most {MAX_LAYERS:,} are built")


class Backbone(nn.Module):
    """Images to embeddings: (n, 3, h, w) float32 on the scale 0 to 1 -> (n, embedding_dim) float32."""

    embedding_dim: int


class TransformationModule(nn.Module):
    """h(old, side_information) -> new: (n, old_dim) and (n, side_dim) float32 -> (n, new_dim) float32."""

    def __init__(self, old_dim: int, side_dim: int, new_dim: int) -> None:
        super().__init__()
        self.old_dim, self.side_dim, self.new_dim = old_dim, side_dim, new_dim


class Standardize(nn.Module):
    """Brings (n, 3, h, w) images on the scale 0 to 1 to the mean 0 and variance 1 of ImageNet's pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return (images - self.mean) / self.std


class UnitBackbone(Backbone):
    """A backbone whose embeddings are brought to length 1, so that L2 distance and cosine rank alike."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.embedding_dim = backbone, backbone.embedding_dim

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) float32 on the scale 0 to 1 -> (n, embedding_dim) float32 of length 1."""
        return F.normalize(self.backbone(images), dim=1)
