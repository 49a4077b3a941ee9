"""What a study compares, from disk: embeddings, labels, ids, truth and uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import open_source
from fct_infer.connectors.ids import read_truth
from fct_infer.errors import GalleryError, UsageError
from fct_infer.evaluation.checks import StoredEmbeddings, are_comparable
from fct_infer.evaluation.reading import name_embeddings, read_embeddings
from fct_infer.evaluation.study import StudyInputs
from fct_infer.gallery import SourceReader, read_npy
from fct_infer.storage import location


def read_labels(path: str | Path) -> NDArray[Any]:
    """Read the labels of all rows from one ``.npy`` file, or from a folder of shards.

    Returns:
        (rows,) integers, booleans, bytes or str.

    Raises:
        GalleryError: missing, malformed or truncated, of another kind, or shards of different kinds; names the file.
    """
    path = location(path)
    files = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
    if not files:
        raise GalleryError(f"{path}: holds no .npy shards")
    shards = [read_npy(file) for file in files]
    for file, labels in zip(files, shards, strict=True):
        if labels.ndim != 1 or labels.dtype.kind not in "biuUS":
            raise GalleryError(f"{file}: is {labels.dtype} {labels.shape}, wanted (rows,) integers, bytes or str")
        if labels.dtype.kind != shards[0].dtype.kind:
            raise GalleryError(f"{file}: is {labels.dtype}, but {files[0].name} is {shards[0].dtype}")
    return np.concatenate(shards)


def read_uncertainty(path: str | Path) -> NDArray[Any]:
    """Read how unsure the transformation is of each row: a (rows,) ``.npy`` file of numbers.

    Raises:
        GalleryError: missing, malformed or truncated, another dtype or shape, or a NaN or infinity; names file and row.
    """
    path = location(path)
    scores = read_npy(path)
    if scores.ndim != 1 or scores.dtype.kind not in "fiu":
        raise GalleryError(f"{path}: is {scores.dtype} {scores.shape}, wanted (rows,) numbers")
    if not np.isfinite(scores).all():
        raise GalleryError(f"{path}: row {int(np.argmin(np.isfinite(scores)))} holds a NaN or an infinity")
    return scores


def read_study_inputs(paths: Mapping[str, Path | None], *, named: bool = False) -> StudyInputs:
    """Read what a study compares; ``paths`` are named as the attributes of :class:`StudyInputs`.

    ``truth``, and perhaps ``gallery_ids``, take the place of labels: ids of the right rows, and of all rows.

    With ``named``, embeddings are not read, but named for those who will: :class:`StoredEmbeddings`.

    Raises:
        GalleryError: as the functions above, or ids of another kind than the gallery's.
        UsageError: old/old is asked for, but the gallery is an upgraded one and the old one was not given.
    """
    gallery = paths["gallery"]
    is_upgraded = gallery is not None and (gallery / "upgrade_infos.json").exists()
    if paths.get("old_queries") and not paths.get("old_gallery") and is_upgraded:
        raise UsageError(
            f"{gallery} is an upgraded gallery, so old queries need the old one to search in: --old-gallery"
        )
    given = {name: path for name, path in paths.items() if path is not None}
    arrays: dict[str, Any] = {
        name: read_input(name, path, named=named) for name, path in given.items() if name not in _TRUTH
    }
    if "truth" in given:
        ids = given.get("gallery_ids")
        truth = arrays["query_labels"] = read_truth(given["truth"])
        known = arrays["gallery_labels"] = read_ids(given["gallery"]) if ids is None else read_labels(ids)
        if not are_comparable(truth, known):
            raise GalleryError(
                f"{given['truth']}: names rows by {truth.dtype}, ids of the gallery are {known.dtype}; they cannot be "
                "compared"
            )
    return StudyInputs(**arrays)


def read_input(name: str, path: Path, *, named: bool = False) -> NDArray[Any] | StoredEmbeddings:
    """Read one attribute of :class:`StudyInputs`: labels, numbers or embeddings, by its name; those perhaps later."""
    return _READERS.get(name, name_embeddings if named else read_embeddings)(path)


def read_ids(gallery: str | Path) -> NDArray[Any]:
    """Read the ids of a gallery's rows; without any, and of a ``.npy`` file, they are the row numbers.

    Returns:
        (rows,) int64, bytes or str.

    Raises:
        GalleryError: missing, malformed or truncated; names the file.
    """
    path = location(gallery)
    if not path.is_dir() and path.suffix == ".npy":
        return np.arange(len(name_embeddings(path)))
    with open_source(path) as source, SourceReader(source) as reader:
        return np.concatenate([reader.at(part).read_ids(0, part.rows) for part in source.parts()])


def labels_like(texts: Iterable[str], labels: NDArray[Any]) -> tuple[Any, ...]:
    """Return labels that a user typed as those of an array: integers, str or bytes.

    Raises:
        UsageError: the array's labels are integers, and a text is none.
    """
    kind = labels.dtype.kind
    if kind in "US":
        return tuple(text if kind == "U" else text.encode() for text in texts)
    try:
        return tuple(int(text) for text in texts)
    except ValueError as error:
        raise UsageError(
            f"labels are {labels.dtype}, but {','.join(texts)} is not integers joined by commas"
        ) from error


_TRUTH = ("truth", "gallery_ids")
_READERS: dict[str, Callable[[Path], NDArray[Any] | StoredEmbeddings]] = {
    **{f"{of}_{what}": read_labels for of in ("query", "gallery") for what in ("labels", "cameras", "groups")},
    "uncertainty": read_uncertainty,
}
