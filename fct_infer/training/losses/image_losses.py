"""What is minimised when backbones and side-information are trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Cross entropy with label smoothing; (n, classes) float32 and (n,) int64 -> scalar."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def reconstruction_loss(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Mean squared error over pixels and channels, both (n, 3, h, w) on the scale 0 to 1 -> scalar."""
    return F.mse_loss(reconstructed, images)


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's contrastive loss (arXiv 2002.05709).

    Row i of ``first`` and row i of ``second``, both (n, d), are projections of two views of image i; each must find
    the other among the 2 n - 1 candidates by cosine similarity. Returns a scalar.
    """
    count = len(first)
    projections = F.normalize(torch.cat([first, second]), dim=1)
    similarities = projections @ projections.T / temperature
    similarities.fill_diagonal_(float("-inf"))
    partners = torch.arange(2 * count, device=first.device).roll(count)
    return F.cross_entropy(similarities, partners)
