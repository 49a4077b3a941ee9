"""What turns embeddings into class scores while a backbone is trained."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Embeddings to logits: (n, dim) float32, and the (n,) int64 labels while training -> (n, classes) float32.

    Attributes:
        weight: (classes, dim), a direction per class in the embeddings' space.
    """

    weight: nn.Parameter

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as torch's linear layers

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        raise NotImplementedError


class LinearClassifier(Classifier):
    """Inner products with the class weights, without bias."""

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """See :class:`Classifier`."""
        return F.linear(embeddings, self.weight)


class CosineClassifier(Classifier):
    """Scaled cosines with the class weights; with a margin, ArcFace (arXiv 1801.07698).

    Args:
        dim: width of the embeddings.
        classes: how many.
        scale: what the cosines are multiplied by.
        margin: radians added to the angle between an embedding and the weight of its own class. Where the angle would
            exceed pi, the score falls on along its tangent, so that a larger angle never scores better.
    """

    def __init__(self, dim: int, classes: int, scale: float = 64.0, margin: float = 0.0) -> None:
        super().__init__(dim, classes)
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """See :class:`Classifier`."""
        # In float32 even under autocast: near a cosine of 1 the angle needs its digits.
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float(), dim=1), F.normalize(self.weight.float(), dim=1))
            if labels is not None and self.margin:
                cosines = torch.where(F.one_hot(labels, len(self.weight)).bool(), self._with_margin(cosines), cosines)
            return self.scale * cosines

    def _with_margin(self, cosines: Tensor) -> Tensor:
        sines = (1 - cosines**2).clamp_min(1e-7).sqrt()
        shifted = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        beyond = cosines - math.sin(self.margin) * self.margin
        return torch.where(cosines > -math.cos(self.margin), shifted, beyond)
