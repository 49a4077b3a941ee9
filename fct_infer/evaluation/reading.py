"""Embeddings from disk: one ``.npy`` file, a folder of shards in the order of their names, or any source.

They are read whole, or only named, so that other processes read them.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.connectors import open_source
from fct_infer.errors import ArtifactError, GalleryError, UnsupportedError
from fct_infer.evaluation.checks import AnyEmbeddings, Embeddings, StoredEmbeddings, first_row_without
from fct_infer.gallery import GalleryManifest, Source, SourceReader, read_npy
from fct_infer.gallery.manifest import read_gallery
from fct_infer.storage import ReadFile, RemotePath, location, sha256_of_file
from fct_infer.storage.npy import read_npy_header

_OWN = ("/dev", "/proc")


def name_embeddings(path: str | Path) -> StoredEmbeddings:
    """Look at embeddings without reading them; what is wrong with their rows is found by who reads them.

    Raises:
        GalleryError, ArtifactError, UsageError: as for :func:`read_embeddings`.
        UnsupportedError: no other process can open this, such as stdin.
    """
    path = location(path)
    if path.is_dir():
        return _named(path, *read_gallery(path, lambda _: _shape_of_source(path)))
    if path.suffix != ".npy":
        return _named(path, *_shape_of_source(path))
    with ReadFile(path) as file:
        header = read_npy_header(file)
    _check_npy(path, header.dtype, header.shape)
    return _named(path, header.shape, header.dtype)


def read_named(embeddings: AnyEmbeddings) -> Embeddings:
    """Return embeddings, read if they are only named.

    Raises:
        GalleryError: they are not what they were when they were named; else as for :func:`read_embeddings`.
    """
    if isinstance(embeddings, np.ndarray):
        return embeddings
    found = read_embeddings(embeddings.path)
    if (found.shape, found.dtype) != (embeddings.shape, embeddings.dtype):
        raise GalleryError(
            f"{embeddings.path}: is {found.dtype} {found.shape}, where it was named {embeddings.dtype} "
            f"{embeddings.shape}: was changed meanwhile, or differs on {socket.gethostname()}"
        )
    return found


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a (rows, dim) ``.npy`` file, all shards of a gallery or of what an upgrade published, or another format.

    Raises:
        GalleryError: missing, malformed or truncated, not float32 or float16, or a NaN or infinity; names file and row.
        ArtifactError: a published gallery's manifest or a shard is damaged.
        UsageError: of no format known, or it is not clear which of its columns holds the embeddings.
    """
    path = location(path)
    if path.is_dir():
        return read_gallery(path, lambda manifest: _read_all(path, manifest))
    if path.suffix != ".npy":
        return _read_all(path, None)
    embeddings = read_npy(path)
    _check_npy(path, embeddings.dtype, embeddings.shape)
    row = first_row_without(embeddings, np.isfinite)
    if row is not None:
        raise GalleryError(f"{path}: row {row} holds a NaN or an infinity")
    return embeddings


def _read_all(path: Path, manifest: GalleryManifest | None) -> Embeddings:
    with open_source(path) as source:
        return read_source(source, manifest)


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


def _check_npy(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype not in (np.float32, np.float16) or len(shape) != 2 or 0 in shape:
        raise GalleryError(
            f"{path}: is {dtype} {shape}, wanted (rows, dim) float32 or float16, at least one row and one dim"
        )


def _shape_of_source(path: Path) -> tuple[tuple[int, int], np.dtype[Any]]:
    with open_source(path) as source:
        schema = source.schema
    return (schema.rows, schema.old_dim), schema.embedding_dtype


def _named(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> StoredEmbeddings:
    if not isinstance(path, RemotePath):
        path = path.absolute()  # others may work in another folder
        if any(path.is_relative_to(own) for own in _OWN):
            raise UnsupportedError(f"{path}: is this process's own, another one cannot read it; name a file")
    return StoredEmbeddings(path, shape, dtype)
