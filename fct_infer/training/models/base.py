"""What every trained model of a kind has in common, whatever its architecture."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """Images to embeddings: (n, 3, h, w) float32 on the scale 0 to 1 -> (n, embedding_dim) float32."""

    embedding_dim: int


class TransformationModule(nn.Module):
    """h(old, side_information) -> new: (n, old_dim) and (n, side_dim) float32 -> (n, new_dim) float32."""

    def __init__(self, old_dim: int, side_dim: int, new_dim: int) -> None:
        super().__init__()
        self.old_dim, self.side_dim, self.new_dim = old_dim, side_dim, new_dim
