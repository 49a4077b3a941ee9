"""HDF5, as ann-benchmarks publishes its data: data sets ``train`` or ``test``, chunked or compressed; one part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.options import (
    SourceOptions,
    check_shape,
    find_columns,
    integer_or_text,
    optional,
    read_dtype,
)
from fct_infer.connectors.parted import PartedSource, check_buffer, check_range
from fct_infer.errors import ArrayError, GalleryError
from fct_infer.gallery.source import Part, Schema
from fct_infer.storage import ReadFile, read_error

_PIECE_BYTES = 4 << 20
_MAX_COMPRESSION = 1100  # of deflate; more rows than the bytes can be are a damaged header
_NAMES_SHOWN = 1000


class Hdf5Source(PartedSource):
    """Data sets of one file; those in groups are named ``group/name``."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._path = path
        with _opened(path) as file:
            found = _datasets(file, path)
            vectors = [name for name, data in found.items() if data.ndim == 2 and data.dtype.kind in "fiu"]
            scalars = [name for name, data in found.items() if data.ndim == 1 and _is_id(data)]
            self.columns = columns = find_columns(path, vectors, scalars, options)
            old = found[columns.embedding]
            dtypes: dict[str, Any] = {}
            for role, name in columns.roles.items():
                where = f"{path}, data set {name!r}"
                _check_stored(found[name], where)
                if found[name].shape[0] != old.shape[0]:
                    raise GalleryError(f"{where}: has {found[name].shape[0]} rows, {old.name} has {old.shape[0]}")
                if role != "id":
                    check_shape(found[name].shape[0], found[name].shape[1], where)
                    dtypes[role] = read_dtype(found[name].dtype.newbyteorder("="), where, options.allow_cast)
            side_dim = None if columns.side is None else found[columns.side].shape[1]
            key = None if columns.id is None else _id_dtype(found[columns.id])
            schema = Schema(
                old.shape[0],
                old.shape[1],
                dtypes["embedding"],
                side_dim,
                dtypes.get("side"),
                key,
                columns.roles,
                columns.other,
            )
        super().__init__(schema, [Part(path.name, schema.rows, 0)])

    def place(self, part: Part) -> str:
        """The whole path."""
        return str(self._path)

    def open_part(self, part: Part) -> _Reader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return _Reader(self._path, self.schema)


class _Reader:
    """The open file."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path, self._schema = path, schema
        self._context = _opened(path)
        self._file = self._context.__enter__()

    def read_into(self, start: int, stop: int, old: NDArray[Any], side: NDArray[Any] | None) -> None:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        schema = self._schema
        check_range(start, stop, schema.rows)
        check_buffer("old", old, stop - start, schema.old_dim, schema.embedding_dtype)
        self._read("embedding", start, stop, old)
        if side is not None:
            if schema.side_dim is None or schema.side_dtype is None:
                raise ArrayError("side is given, but the source has no side-information")
            check_buffer("side", side, stop - start, schema.side_dim, schema.side_dtype)
            self._read("side", start, stop, side)

    def _read(self, role: str, start: int, stop: int, out: NDArray[Any]) -> None:
        data = self._file[self._schema.columns[role]]
        step = max(1, _PIECE_BYTES // (out.shape[1] * data.dtype.itemsize))
        with np.errstate(over="ignore"):
            for first in range(start, stop, step):
                end = min(stop, first + step)
                try:
                    out[first - start : end - start] = data[first:end]
                except (OSError, RuntimeError, ValueError) as error:
                    words = str(error).splitlines()[0]
                    raise read_error(f"{self._path}, rows {first} to {end}: cannot be read: {words}", error) from error

    def read_ids(self, start: int, stop: int) -> NDArray[Any]:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        check_range(start, stop, self._schema.rows)
        name = self._schema.columns.get("id")
        if name is None:
            return np.arange(start, stop, dtype=np.int64)
        where = f"{self._path}, data set {name!r}"
        try:
            values = self._file[name][start:stop]
            if values.dtype.kind == "O":
                return text_ids([value.decode() for value in values], "U", where, start)
        except (OSError, RuntimeError, UnicodeDecodeError, AttributeError) as error:
            raise read_error(f"{where}, rows {start} to {stop}: cannot be read: {error}", error) from error
        return integer_or_text(values, where)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = optional("h5py", "hdf5")
    ReadFile(path).close()  # refuses what is no regular file
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise read_error(f"{path}: cannot be read as HDF5: {str(error).splitlines()[0]}", error) from error
    with file:
        yield file


def _datasets(file: Any, path: Path) -> dict[str, Any]:
    """Return the data sets that lie in this file itself; links to other files are not followed."""
    h5py = optional("h5py", "hdf5")
    found: dict[str, Any] = {}

    def visit(name: str, data: Any) -> bool | None:
        if isinstance(data, h5py.Dataset):
            found[name] = data
        return True if len(found) == _NAMES_SHOWN else None

    try:
        file.visititems(visit)  # follows hard links only
    except (OSError, RuntimeError, KeyError) as error:
        raise read_error(f"{path}: cannot be read as HDF5: {str(error).splitlines()[0]}", error) from error
    return found


def _check_stored(data: Any, where: str) -> None:
    """Refuse rows that lie in other files, and more of them than the bytes in this one can hold."""
    if data.is_virtual or data.external:
        raise GalleryError(f"{where}: its rows lie in other files, which are not followed")
    promised, stored = data.size * data.dtype.itemsize, data.id.get_storage_size()
    if promised > stored * (_MAX_COMPRESSION if data.chunks else 1):
        raise GalleryError(f"{where}: {data.shape} takes {promised:,} bytes, {stored:,} are there")


def _is_id(data: Any) -> bool:
    h5py = optional("h5py", "hdf5")
    return data.dtype.kind in "iuS" or h5py.check_string_dtype(data.dtype) is not None


def _id_dtype(data: Any) -> np.dtype[Any]:
    if data.dtype.kind == "S":
        return np.dtype(f"S{data.dtype.itemsize}")
    return np.dtype(np.int64) if data.dtype.kind in "iu" else np.dtype("U")
