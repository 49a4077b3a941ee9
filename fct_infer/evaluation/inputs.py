"""Embeddings and labels from disk: one ``.npy`` file, a folder of shards in the order of their names, or any source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import open_source
from fct_infer.connectors.ids import read_truth
from fct_infer.errors import ArtifactError, GalleryError, UsageError
from fct_infer.evaluation.checks import Embeddings, first_row_without
from fct_infer.evaluation.study import StudyInputs
from fct_infer.gallery import GalleryManifest, Source, SourceReader, read_npy
from fct_infer.gallery.manifest import read_gallery
from fct_infer.storage import location, sha256_of_file


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a (rows, dim) ``.npy`` file, all shards of a gallery or of what an upgrade published, or another format.

    Raises:
        GalleryError: missing, malformed or truncated, not float32 or float16, or a NaN or infinity; names file and row.
        ArtifactError: a published gallery's manifest or a shard is damaged.
        UsageError: of no format known, or it is not clear which of its columns holds the embeddings.
    """
    path = location(path)
    if path.is_dir():
        return read_gallery(path, lambda manifest: read_source(open_source(path), manifest))
    if path.suffix != ".npy":
        return read_source(open_source(path), None)
    embeddings = read_npy(path)
    if embeddings.dtype not in (np.float32, np.float16) or embeddings.ndim != 2 or 0 in embeddings.shape:
        raise GalleryError(
            f"{path}: is {embeddings.dtype} {embeddings.shape}, wanted (rows, dim) float32 or float16, "
            "at least one row and one dim"
        )
    row = first_row_without(embeddings, np.isfinite)
    if row is not None:
        raise GalleryError(f"{path}: row {row} holds a NaN or an infinity")
    return embeddings


def read_source(source: Source, manifest: GalleryManifest | None) -> Embeddings:
    """Read all rows of a source; of a published gallery each file must be the one its manifest lists.

    Raises:
        GalleryError: a row cannot be read, or holds NaN or infinity; names file and row.
        ArtifactError: a file is not the one its manifest lists.
    """
    schema = source.schema
    if manifest is not None:
        _check_published(source, manifest)
    rows: Embeddings = np.empty((schema.rows, schema.old_dim), schema.embedding_dtype)
    with SourceReader(source) as reader:
        for part in source.parts():
            block = rows[part.first_row : part.first_row + part.rows]
            reader.at(part).read_into(0, part.rows, block, None)
            row = first_row_without(block, np.isfinite)
            if row is not None:
                raise GalleryError(f"{source.where(part.first_row + row)} holds a NaN or an infinity")
    return rows


def _check_published(source: Source, manifest: GalleryManifest) -> None:
    wanted = {name: file.sha256 for name, file in manifest.files.items() if name.startswith("embeddings/")}
    for name, path in source.files.items():
        if name.startswith("embeddings/") and sha256_of_file(path) != wanted.pop(name, None):
            raise ArtifactError(f"{path}: is damaged: its SHA-256 is not the one in manifest.json")
    for name in wanted:
        raise ArtifactError(f"{source.path}/{name}: is missing; manifest.json lists it")


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


def read_study_inputs(paths: Mapping[str, Path | None]) -> StudyInputs:
    """Read what a study compares; ``paths`` are named as the attributes of :class:`StudyInputs`.

    ``truth``, and perhaps ``gallery_ids``, take the place of labels: ids of the right rows, and of all rows.

    Raises:
        GalleryError: as the functions above.
        UsageError: old/old is asked for, but the gallery is an upgraded one and the old one was not given.
    """
    gallery = paths["gallery"]
    is_upgraded = gallery is not None and (gallery / "upgrade_infos.json").exists()
    if paths.get("old_queries") and not paths.get("old_gallery") and is_upgraded:
        raise UsageError(
            f"{gallery} is an upgraded gallery, so old queries need the old one to search in: --old-gallery"
        )
    given = {name: path for name, path in paths.items() if path is not None}
    arrays = {name: read_input(name, path) for name, path in given.items() if name not in _TRUTH}
    if "truth" in given:
        ids = given.get("gallery_ids")
        arrays["query_labels"] = read_truth(given["truth"])
        arrays["gallery_labels"] = read_ids(given["gallery"]) if ids is None else read_labels(ids)
    return StudyInputs(**arrays)


def read_input(name: str, path: Path) -> NDArray[Any]:
    """Read one attribute of :class:`StudyInputs`: labels, numbers or embeddings, by its name."""
    return _READERS.get(name, read_embeddings)(path)


def read_ids(gallery: str | Path) -> NDArray[Any]:
    """Read the ids of a gallery's rows; without any, and of a ``.npy`` file, they are the row numbers.

    Returns:
        (rows,) int64, bytes or str.

    Raises:
        GalleryError: missing, malformed or truncated; names the file.
    """
    path = location(gallery)
    if not path.is_dir() and path.suffix == ".npy":
        return np.arange(len(read_npy(path)))
    source = open_source(path)
    with SourceReader(source) as reader:
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
_READERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    **{f"{of}_{what}": read_labels for of in ("query", "gallery") for what in ("labels", "cameras", "groups")},
    "uncertainty": read_uncertainty,
}
