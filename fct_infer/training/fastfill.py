"""FastFill (arXiv 2303.04766): h that also says how uncertain it is, and the order of backfilling that follows.

The uncertainty is the log-variance s, which a linear head reads from h's output. It weighs the row's own loss down and
pays for doing so. Rows of large s are backfilled first. Loss, head and order are those of the public code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import UsageError
from fct_infer.gallery import Gallery, ShardReader
from fct_infer.storage import DigestedFile, DurableWriter, npy_header_bytes
from fct_infer.transformation import Program, Transformation

_BLOCK_ROWS = 65_536


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


def write_scores(
    gallery: Gallery, uncertainty: Program, path: str | Path, *, precision: str = "fp32", threads: int | None = None
) -> DigestedFile:
    """Write the uncertainty of every row of a gallery as one ``.npy`` file: (rows,) float32, in the gallery's order.

    Backfill in descending order of it. Memory is one block, whatever the gallery's size.

    Args:
        gallery: the old gallery, as h will transform it.
        uncertainty: what :func:`fct_infer.training.models.folding.to_uncertainty_program` returns.
        path: file to write.
        precision, threads: as of :class:`fct_infer.transformation.Transformation`.

    Raises:
        UsageError: the program's output is not one number a row.
        ArrayError: the gallery does not fit the program, or holds NaN or infinity.
        GalleryError: a file cannot be read.
        ResourceError: the disk is full, or another I/O error.
    """
    if uncertainty.new_dim != 1:
        raise UsageError(f"the program gives {uncertainty.new_dim} numbers a row, wanted 1: an uncertainty")
    transformation = Transformation(uncertainty, precision, threads)
    with DurableWriter(path) as writer:
        writer.write(npy_header_bytes((gallery.rows,), np.dtype(np.float32)))
        for shard in gallery.shards:
            with ShardReader(shard) as reader:
                for start in range(0, shard.rows, _BLOCK_ROWS):
                    writer.write(_scores(transformation, reader, start, min(start + _BLOCK_ROWS, shard.rows)))
        return writer.commit()


def _scores(transformation: Transformation, reader: ShardReader, start: int, stop: int) -> NDArray[Any]:
    old = reader.read_embeddings(start, stop)
    side = reader.read_side_information(start, stop) if transformation.side_dim else None
    if transformation.side_dim and side is None:
        side = old
    return transformation(old, side).reshape(-1)
