"""In which order rows are re-embedded, from what is known of them before: over any source, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.bundle import Bundle, open_bundle
from fct_infer.artifacts.loading import program_from_bundle
from fct_infer.artifacts.uncertainty import uncertainty_of
from fct_infer.errors import ArtifactError, GalleryError, UsageError
from fct_infer.evaluation.checks import encode_labels
from fct_infer.evaluation.inputs import read_uncertainty
from fct_infer.gallery.manifest import own_manifest
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


def read_uncertainties(path: Path, source: Source, h: Transformation | None = None) -> NDArray[Any]:
    """Return how unsure the transformation is of each row, (rows,), as a file says or as a bundle tells from the rows.

    Args:
        path: ``.npy``, a number a row, or a bundle of a transformation with FastFill's uncertainty.
        source: rows in the new space, or of the old model.
        h: what brings the latter there.

    Raises:
        ArtifactError: it is a bundle that is malformed, or tells no uncertainty.
        UsageError: the rows were not made by that bundle's transformation, or are normalised, which it cannot read.
        GalleryError: the file is malformed, or rows cannot be read.
    """
    if not path.is_dir():
        return read_uncertainty(path)
    bundle = open_bundle(path)
    layer = uncertainty_of(bundle)
    if layer is None:
        raise ArtifactError(
            f"{path}: tells no uncertainty; bundles that fct-export makes of a FastFill run do, or name a .npy, a "
            "number a row"
        )
    _check_made_by(bundle, source, h)
    width = source.schema.old_dim if h is None else h.new_dim
    if width != layer.dims["old"]:
        raise UsageError(f"{path}: tells uncertainties of rows {layer.dims['old']} wide, these are {width} wide")
    program = Transformation(layer, "fp32")
    return np.concatenate([program(block).reshape(-1) for block in new_blocks(source, h)])


def _check_made_by(bundle: Bundle, source: Source, h: Transformation | None) -> None:
    """Refuse rows that are known to be of another transformation; of foreign ones nothing is known."""
    if h is not None:
        made_by: str | None = h.digest
    else:
        manifest = own_manifest(source.path) if isinstance(source.path, Path) and source.path.is_dir() else None
        made_by = manifest.transformation if manifest else None
    known = {program_from_bundle(bundle).digest, *(file.sha256 for file in bundle.manifest.files)}
    if made_by is not None and made_by not in known:
        raise UsageError(
            f"{source.path if h is None else h.source}: these rows are not as {bundle.path} makes them, but of another "
            "transformation or normalised; name the old rows as SOURCE, and --transformation"
        )


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
