"""What a user may say about a source, and what is found without asking: columns, dtypes, optional packages."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError, UsageError, import_error

MAX_DIM = 1 << 20  # wider "vectors" are a damaged header; a buffer of one row stays small
EMBEDDING_NAMES = ("embedding", "embeddings", "vector", "vectors", "emb", "train", "features", "old")
SIDE_NAMES = ("side_information", "side", "psi")
ID_NAMES = ("id", "ids", "_id", "item_id", "doc_id", "document_id", "key", "__key__")
_EXACT = tuple(map(np.dtype, (np.uint8, np.int8, np.uint16, np.int16)))  # float32 holds each of their values
_CAST = tuple(map(np.dtype, (np.float64, np.int32, np.uint32, np.int64)))


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source.

    Attributes:
        embedding_column, side_column, id_column: columns, data sets, arrays or tensors by name; by default the usual
            names, or the only one that can be it.
        ids: file of ids (.txt, .npy, .csv, .parquet), one a row, in place of a column.
        allow_cast: narrow float64 and wide integers to float32.
        lossy: take vectors that a FAISS index has only approximately.
        model: whose vectors they are, whatever the source says: a name, or ``sha256:`` and the digest of its file.
    """

    embedding_column: str | None = None
    side_column: str | None = None
    id_column: str | None = None
    ids: Path | None = None
    allow_cast: bool = False
    lossy: bool = False
    model: str | None = None


@dataclass(frozen=True)
class Columns:
    """The names of what is read, and of what is not."""

    embedding: str
    side: str | None
    id: str | None
    other: tuple[str, ...]

    @property
    def roles(self) -> dict[str, str]:
        """Role to name, for the roles that have one."""
        named = {"embedding": self.embedding, "side": self.side, "id": self.id}
        return {role: name for role, name in named.items() if name is not None}


def find_columns(
    file: Path | str,
    vectors: Sequence[str],
    scalars: Sequence[str],
    options: SourceOptions,
    unfit: Mapping[str, object] | None = None,
) -> Columns:
    """Return which of a file's columns are read.

    Args:
        file: for messages.
        vectors, scalars: names of columns that may hold vectors, and ids.
        options: what the user named.
        unfit: name to type of the columns that are neither.

    Raises:
        UsageError: a named column does not exist, or it is not clear which one holds the embeddings.
        GalleryError: no column holds vectors, or what is named as ids are cannot be ids: row numbers would be taken.
    """
    for name in (options.embedding_column, options.side_column, options.id_column):
        if name is not None and name not in (*vectors, *scalars):
            what = "integers or text" if name == options.id_column else "vectors"
            raise UsageError(f"{file}: has no column {name!r} of {what}; it has {_listed([*vectors, *scalars])}")
    for name in (options.embedding_column, options.side_column):
        if name is not None and name not in vectors:
            raise GalleryError(f"{file}: column {name!r} does not hold vectors of numbers")
    if options.id_column is not None and options.id_column not in scalars:
        raise GalleryError(f"{file}: column {options.id_column!r} does not hold integers, text or bytes, one a row")
    side = options.side_column or _usual(vectors, SIDE_NAMES)
    open_names = [name for name in vectors if name != side or name == options.embedding_column]
    embedding = options.embedding_column or _usual(open_names, EMBEDDING_NAMES)
    if embedding is None:
        if not open_names:
            raise GalleryError(f"{file}: no column holds vectors; it has {_listed([*vectors, *scalars])}")
        if len(open_names) > 1:
            raise UsageError(f"{file}: {_listed(open_names)} hold vectors; name one with --embedding-column")
        embedding = open_names[0]
    if side == embedding:
        side = None
    key = None if options.ids is not None else options.id_column or _usual(scalars, ID_NAMES)
    if key is None and options.ids is None and (lost := _usual(tuple(unfit or ()), ID_NAMES)):
        raise GalleryError(
            f"{file}: column {lost!r} is {(unfit or {})[lost]}, wanted ids that are integers, text or bytes; "
            "--id-column names another column, --ids a file beside"
        )
    used = (embedding, side, key)
    return Columns(embedding, side, key, tuple(name for name in (*vectors, *scalars) if name not in used))


def _usual(names: Sequence[str], usual: Sequence[str]) -> str | None:
    lower: Mapping[str, str] = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "") if names else "none"


def read_dtype(stored: np.dtype[Any], where: str, allow_cast: bool) -> np.dtype[Any]:
    """Return the dtype that stored vectors are read as: their own, or float32.

    Raises:
        GalleryError: they are no numbers, or would be narrowed and ``allow_cast`` is not set.
    """
    if stored in (np.float32, np.float16):
        return stored
    if stored in _EXACT:
        return np.dtype(np.float32)
    if stored in _CAST:
        if allow_cast:
            return np.dtype(np.float32)
        raise GalleryError(f"{where}: holds {stored}, wanted float32 or float16; --allow-cast narrows it to float32")
    raise GalleryError(f"{where}: holds {stored}, wanted float32 or float16")


def check_shape(rows: int, dim: int, where: str) -> None:
    """Raise a GalleryError unless there are rows, of a width that can be."""
    if rows < 1 or dim < 1:
        raise GalleryError(f"{where}: is empty, shape ({rows}, {dim})")
    if dim > MAX_DIM:
        raise GalleryError(f"{where}: rows are said to be {dim:,} wide, at most {MAX_DIM:,} are accepted")


def integer_or_text(ids: NDArray[Any], where: str, first: int | None = None) -> NDArray[Any]:
    """Return ids as int64, bytes or str.

    Args:
        ids: (n, ...).
        where: they lie, for messages.
        first: the number there of the first one's row, if the others follow it.

    Raises:
        GalleryError: they are of another kind, or do not fit int64.
    """
    if ids.dtype.kind in "SU":
        return ids
    if ids.dtype.kind not in "iu":
        raise GalleryError(f"{where}: ids are {ids.dtype}, wanted integers, text or bytes")
    if ids.dtype == np.uint64 and ids.size and (large := ids > np.iinfo(np.int64).max).any():
        row = "" if first is None else f", row {first + int(np.argwhere(large)[0][0])}"
        raise GalleryError(f"{where}{row}: id {ids[large][0]} does not fit int64")
    return ids.astype(np.int64)


def optional(module: str, extra: str) -> Any:
    """Return an optional module.

    Raises:
        MissingExtraError: it is not installed; names the extra that brings it.
        ResourceError: it is, and cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise import_error(module.partition(".")[0], extra, error) from error
