"""A user's rows, for the scales of 8-bit products and for every proof."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fct_infer.artifacts.precisions import CALIBRATION_ROWS
from fct_infer.backends.runner import Batch, Shapes
from fct_infer.connectors import SourceOptions, open_source
from fct_infer.errors import GalleryError
from fct_infer.gallery import Source, read_npy, sample_rows
from fct_infer.transformation import Float32Array

_SEED = 20211202  # any fixed number makes exports repeatable


def read_calibration(path: str | Path, inputs: Shapes, rows: int = CALIBRATION_ROWS) -> Batch:
    """Return a random sample of a user's rows as float32, by input.

    Args:
        path: a gallery in any format that :func:`fct_infer.open_source` reads;
            for image models a ``.npy`` file of images (n, c, h, w) float32, preprocessed.
        inputs: of the model.
        rows: to take; all if there are fewer.

    Raises:
        UsageError: it is of no format known, or it is not clear which column holds the embeddings.
        GalleryError: it is malformed or does not fit the model, or a row holds NaN or infinity; names the file.
    """
    batch = _images(Path(path), inputs["image"], rows) if "image" in inputs else _gallery(Path(path), inputs, rows)
    for name, array in batch.items():
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise GalleryError(f"{path}: row {int(np.argmin(finite))} of the sample ({name}) holds NaN or infinity")
    return batch


def _gallery(path: Path, inputs: Shapes, count: int) -> dict[str, Float32Array]:
    with open_source(path, SourceOptions(allow_cast=True)) as gallery:  # they are measured with, and stored nowhere
        return _sample_of(gallery, inputs, count)


def _sample_of(gallery: Source, inputs: Shapes, count: int) -> dict[str, Float32Array]:
    schema = gallery.schema
    wanted = {name: shape[0] for name, shape in inputs.items()}
    side_is_old = "side" in wanted and schema.side_dim is None
    found = {"old": schema.old_dim, "side": schema.old_dim if side_is_old else schema.side_dim or 0}
    for name, dim in wanted.items():
        if found[name] != dim:
            role = "embedding" if name == "old" or side_is_old else "side"
            raise GalleryError(
                f"{gallery.column(role)}: rows are {found[name]} wide, the model wants {dim} for {name!r}"
            )
    old, side = gallery.read_rows(sample_rows(schema.rows, count, _SEED), with_side="side" in wanted)
    arrays = {"old": old, "side": old if side is None else side}
    return {name: arrays[name].astype(np.float32) for name in wanted}


def _images(path: Path, shape: tuple[int, ...], count: int) -> dict[str, Float32Array]:
    images = read_npy(path)
    if images.dtype != np.float32 or images.shape[1:] != shape or not len(images):
        wanted = ", ".join(map(str, shape))
        raise GalleryError(
            f"{path}: is {images.dtype} {images.shape}, wanted preprocessed images float32 (n, {wanted})"
        )
    return {"image": images[sample_rows(len(images), count, _SEED)]}
