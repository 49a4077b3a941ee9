"""FastFill (arXiv 2303.04766): what trains h that also says how uncertain it is.

The uncertainty is the log-variance s, which a linear head reads from h's output. It weighs the row's own loss down and
pays for doing so. Rows of large s are backfilled first. Loss, head and order are those of the public code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def fastfill_loss(
    transformed: Tensor,
    log_variance: Tensor,
    new: Tensor,
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.1,
) -> Tensor:
    """Mean over the rows of 0.5 exp(-s) l + 0.5 s with l = MSE(h, new) + CE(frozen new classifier(h), label).

    The weights of the three terms are those of the public code; s is not bounded.

    Args:
        transformed: h of the rows, (n, d_new).
        log_variance: s of the rows, (n,).
        new: the new model's embeddings, (n, d_new); the squared error is the mean over the features.
        logits: of the new model's classifier on ``transformed``, (n, classes).
        labels: (n,) int64.
        label_smoothing: of the cross entropy.
    """
    # In float32 whatever the precision of h: exp(-s) leaves float16 soon.
    s = log_variance.float()
    distance = (transformed.float() - new).square().mean(dim=1)
    row_loss = distance + F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="none")
    return (0.5 * (-s).exp() * row_loss + 0.5 * s).mean()
