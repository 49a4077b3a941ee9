"""In which order rows are re-embedded, from what is known of them before: over any source, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError
from fct_infer.evaluation.checks import encode_labels
from fct_infer.gallery.source import Source
from fct_infer.serving.loading import new_blocks
from fct_infer.serving.rows import Ids, find, unit
from fct_infer.transformation import Transformation

ORDERS = ("uncertainty", "distance", "access", "random")


def distance_order(
    source: Source, h: Transformation | None = None, labels: NDArray[Any] | None = None, metric: str = "l2"
) -> NDArray[np.int64]:
    """Return the rows by their distance to the mean of their class, or of all: far ones, which look misplaced, first.

    Args:
        source: rows in the new space, or of the old model.
        h: what brings the latter there.
        labels: (n,) integers, str or bytes; None takes the gallery for one class.
        metric: under ``cosine`` rows are brought to length one before.

    Raises:
        ArrayError: labels of another number than rows.
        GalleryError: rows cannot be read.
    """
    rows = source.schema.rows
    codes = np.zeros(rows, np.int64) if labels is None else encode_labels(labels, labels, rows, rows)[1]
    counts = np.bincount(codes)

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        start = 0
        for block in new_blocks(source, h):
            yield codes[start : start + len(block)], (unit(block) if metric == "cosine" else block).astype(np.float64)
            start += len(block)

    sums: NDArray[np.float64] | None = None
    for of_block, block in blocks():
        sums = np.zeros((len(counts), block.shape[1])) if sums is None else sums
        np.add.at(sums, of_block, block)
    assert sums is not None
    means = sums / counts[:, None]
    distances = np.concatenate([np.linalg.norm(block - means[of_block], axis=1) for of_block, block in blocks()])
    return np.argsort(-distances, kind="stable")


def access_order(ids: Ids, log: Path) -> NDArray[np.int64]:
    """Return the rows by how often they were asked for, the most often first; equal ones by row.

    Args:
        ids: (n,) of the rows.
        log: text, a line an access, ``ID``, or several, ``ID COUNT`` (or ``ID,COUNT``, tabs as well); ids that are
            not in the gallery are passed over.

    Raises:
        GalleryError: it cannot be read, or a line is something else; names file and line.
    """
    counts: dict[Any, int] = {}
    is_integer = ids.dtype.kind in "iu"
    try:
        with log.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                words = line.replace(",", " ").replace("\t", " ").split()
                if not words:
                    continue
                try:
                    key = int(words[0]) if is_integer else words[0]
                    (count,) = map(int, words[1:]) if words[1:] else (1,)
                except ValueError as error:
                    raise GalleryError(
                        f"{log}: line {number} is {line.strip()[:80]!r}, wanted ID or ID COUNT"
                    ) from error
                counts[key] = counts.get(key, 0) + count
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(f"{log}: cannot be read: {error}") from error
    by_id = np.argsort(ids, kind="stable")
    keys = [key for key in counts if not is_integer or abs(key) < 1 << 63]  # beyond, it is no id of this gallery
    known = np.array(keys, ids.dtype if is_integer else None) if keys else ids[:0]
    if known.dtype.kind != ids.dtype.kind:  # ids of bytes are text in the log
        known = np.char.encode(known, "utf-8")
    places = find(known, ids[by_id])
    of_rows = np.zeros(len(ids), np.int64)
    of_rows[by_id[places[places >= 0]]] = np.array([counts[key] for key in keys], np.int64)[places >= 0]
    return np.argsort(-of_rows, kind="stable")
