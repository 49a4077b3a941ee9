"""How uncertain h is of every row of a gallery: the order of backfilling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import UsageError
from fct_infer.gallery import Gallery, ShardReader
from fct_infer.storage import DigestedFile, DurableWriter, npy_header_bytes
from fct_infer.transformation import Program, Transformation

_BLOCK_ROWS = 65_536


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
