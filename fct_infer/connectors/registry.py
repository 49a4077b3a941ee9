"""Which format a path is in, told by its first bytes, and by its suffix where they do not tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.connectors.datasets_folder import is_dataset
from fct_infer.connectors.options import SourceOptions
from fct_infer.errors import GalleryError, ResourceError, UsageError
from fct_infer.gallery import read_manifest
from fct_infer.gallery.destination import Destination
from fct_infer.gallery.places import DATABASES, place_of, scheme_of
from fct_infer.gallery.sink import Sink
from fct_infer.gallery.source import Source
from fct_infer.gallery.url_place import published_folder
from fct_infer.storage import ReadFile, RemotePath

# kind -> module and the name in it that opens a path; imported on use
_OPENERS = {
    "folder": ("npy", "open_folder"),
    "npy": ("npy", "open_npy"),
    "npz": ("npy", "NpzSource"),
    "parquet": ("parquet", "ParquetSource"),
    "arrow": ("arrow", "ArrowSource"),
    "dataset": ("datasets_folder", "open_dataset"),
    "lance": ("lance_dataset", "LanceSource"),
    "bin": ("flat_files", "open_bin"),
    "vecs": ("flat_files", "open_vecs"),
    "hdf5": ("hdf5", "Hdf5Source"),
    "faiss": ("faiss_file", "FaissSource"),
    "safetensors": ("safetensors_file", "open_safetensors"),
}
# scheme of a URL -> module, and the names in it that open a source and a destination; imported on use
_POSTGRES = ("postgres_source", "PostgresSource", "postgres_destination", "PostgresDestination")
# engines that are read by key: scheme -> module
_ENGINES = {
    "duckdb": "duckdb_table",
    "sqlite": "sqlite_table",
    "lancedb": "lancedb_table",
    "qdrant": "qdrant",
    "chroma": "chroma",
    "milvus": "milvus",
}
_URLS = {
    scheme: (_ENGINES[scheme], "open_table", _ENGINES[scheme], "open_destination") if scheme in _ENGINES else _POSTGRES
    for scheme in DATABASES
}
SINKS = {
    "npy": ("fct_infer.gallery.sink", "FolderSink"),
    "parquet": ("fct_infer.connectors.parquet_sink", "ParquetSink"),
}
_MAGIC = {
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npz",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"\xff\xff\xff\xff": "arrow",  # an IPC stream
}
_SUFFIXES = {
    **dict.fromkeys((".fbin", ".f16bin", ".u8bin", ".i8bin", ".ibin"), "bin"),
    **dict.fromkeys((".fvecs", ".bvecs", ".ivecs"), "vecs"),
    ".npy": "npy",
    ".npz": "npz",
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".hdf5", ".h5", ".hdf"), "hdf5"),
    **dict.fromkeys((".faiss", ".index"), "faiss"),
    ".safetensors": "safetensors",
}
_HEADLESS = ("bin", "vecs", "safetensors")  # nothing in their first bytes says what they are
_FAISS = (b"Ix", b"Iw", b"IH", b"IN", b"Is")


def kind_of(path: Path | str) -> str:
    """Return the kind of a file or folder, or the scheme of a URL.

    Raises:
        GalleryError: it does not exist or cannot be read.
        UsageError: it is of no kind known here, or a folder of several.
    """
    if isinstance(path, str):
        return _url_scheme(path)
    if path.is_dir():
        if (path / "_versions").is_dir():
            return "lance"
        if is_dataset(path):
            return "dataset"
        return _kind_of_shards(path)
    by_suffix = _SUFFIXES.get(path.suffix.lower())
    with ReadFile(path) as file:
        head = file.read(min(8, file.size))
    if by_suffix in _HEADLESS:
        return by_suffix
    by_content = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if by_content is None and head[:2] in _FAISS:
        by_content = "faiss"
    if kind := by_content or by_suffix:
        return kind
    raise UsageError(f"{path}: of no format known by its first bytes or its suffix; known are {', '.join(_SUFFIXES)}")


def _url_scheme(url: str) -> str:
    """Return the scheme of a URL.

    Raises:
        UsageError: nothing here speaks it; the message does not repeat the URL, which may hold a password.
    """
    scheme = scheme_of(url) or ""
    if scheme not in _URLS:
        raise UsageError(f"{scheme}:// is no place known here; known are {', '.join(f'{each}://' for each in _URLS)}")
    return scheme


def engine_module(url: str) -> Any:
    """Return the module of the engine that a URL names: ``parse``, ``open_table``, ``open_target``, ``books_of`` ...

    Raises:
        UsageError: the URL is of none that is read by key.
    """
    scheme = _url_scheme(url)
    if scheme not in _ENGINES:
        raise UsageError(f"{scheme}:// is no engine that is read by key; those are {', '.join(_ENGINES)}")
    return import_module(f"fct_infer.connectors.{_ENGINES[scheme]}")


def open_destination(place: str | Path) -> Destination | Path:
    """Return what a URL names as a destination of an upgrade, some as a path; a path as it is, for a folder made there.

    Raises:
        UsageError: the URL is of no scheme known here, or lacks something.
        MissingExtraError: the library is not installed.
    """
    place = place_of(place)
    if isinstance(place, Path):
        return place
    _, _, module, name = _URLS[_url_scheme(place)]
    opener: Callable[[str], Destination | Path] = getattr(import_module(f"fct_infer.connectors.{module}"), name)
    return opener(place)


def _kind_of_shards(path: Path) -> str:
    """Return what a folder's rows lie in. What lies beside ``embeddings/`` tells nothing.

    Raises:
        UsageError: some in Parquet, some in NumPy's files: whichever is read, the others would be missed.
    """
    folder = path / "embeddings" if (path / "embeddings").exists() else path
    parquet = next((file for pattern in ("*.parquet", "*.pq") for file in folder.rglob(pattern)), None)
    if parquet is None:
        return "folder"
    if npy := next(folder.glob("[!.]*.npy"), None):
        raise UsageError(
            f"{folder}: holds Parquet files ({parquet.relative_to(folder)}) and NumPy's ({npy.name}), wanted rows of "
            "one kind; name the file that holds them, or move the others into another folder"
        )
    return "parquet"


def open_sink(kind: str, folder: Path, source: Source, dim: int, dtype: np.dtype[Any]) -> Sink:
    """Open a folder to write the new rows of a source to.

    Args:
        kind: of :data:`SINKS`.
        folder: that they are written into.
        source: whose ids, and other columns where the format has a place for them, are carried along.
        dim, dtype: of the new rows.

    Raises:
        MissingExtraError: the format's library is not installed.
    """
    module, name = SINKS[kind]
    opener: Callable[[Path, Source, int, np.dtype[Any]], Sink] = getattr(import_module(module), name)
    return opener(folder, source, dim, dtype)


def open_source(path: str | Path, options: SourceOptions | None = None) -> Source:
    """Open a gallery in whatever format it lies; a context manager, as some formats hold a connection until closed.

    Args:
        path: a file, a folder of Parquet files or of the project's own layout, the URL of one, or that of a table.
        options: columns, ids and what is allowed.

    Raises:
        GalleryError: the file is missing, malformed, truncated or empty; names it.
        UsageError: the format is not known, or columns must be named.
        MissingExtraError: the format's library is not installed.
    """
    path, options = place_of(path), options or SourceOptions()
    found = _whole(path, options) if isinstance(path, RemotePath) else _opened(path, options)
    source = found.say_model(options.model)
    vars(source)["opened_by"] = (path, options)  # sources may be frozen
    return source


@contextmanager
def opened_source(source: str | Path | Source, options: SourceOptions | None = None) -> Iterator[Source]:
    """Yield a source; one that is given stays open, what is opened here is closed. Errors as of :func:`open_source`."""
    if isinstance(source, Source):
        yield source
        return
    with open_source(source, options) as opened:
        yield opened


def _whole(path: RemotePath, options: SourceOptions) -> Source:
    """Open files behind a URL; of a version that was published there, all rows or none."""
    folder = published_folder(path)
    source = _opened(folder, options)
    if folder != path and source.schema.rows != (rows := read_manifest(folder).rows):
        raise ResourceError(f"{folder}: the store lists files of {source.schema.rows:,} of {rows:,} rows; try it again")
    return source


def _opened(path: Path | str, options: SourceOptions) -> Source:
    kind = kind_of(path)
    module, name = _OPENERS[kind] if isinstance(path, Path) else _URLS[kind][:2]
    opener: Callable[[Path | str, SourceOptions], Source]
    opener = getattr(import_module(f"fct_infer.connectors.{module}"), name)
    if options.ids is None or isinstance(path, str):
        return opener(path, options)
    from fct_infer.connectors.ids import WithIds, read_ids

    if options.ids.resolve() == path.resolve():
        raise GalleryError(f"{options.ids}: is the source itself; name a column with --id-column")
    source = opener(path, replace(options, id_column=None))
    return WithIds(source, read_ids(options.ids, options.id_column), options.ids)
