"""HDF5, as ann-benchmarks publishes its data: data sets ``train`` or ``test``, chunked or compressed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.options import (
    SourceOptions,
    check_shape,
    find_columns,
    optional,
    read_dtype,
)
from fct_infer.connectors.parted import PartedSource
from fct_infer.errors import GalleryError
from fct_infer.gallery.source import Schema
from fct_infer.storage import ReadFile, RemotePath, SeekableFile, read_error

_PIECE_BYTES = 4 << 20
_MAX_COMPRESSION = 1100  # of deflate; more rows than the bytes can be are a damaged header
_NAMES_SHOWN = 1000


class Hdf5Source(PartedSource):
    """Data sets of one file; those in groups are named ``group/name``."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        with _opened(path) as file:
            found = _datasets(file, path)
            vectors = [name for name, data in found.items() if data.ndim == 2 and data.dtype.kind in "fiu"]
            scalars = [name for name, data in found.items() if data.ndim == 1 and _is_id(data)]
            unfit = {
                name: f"{data.dtype} {data.shape}" for name, data in found.items() if name not in vectors + scalars
            }
            self.columns = columns = find_columns(path, vectors, scalars, options, unfit)
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
            if old.chunks:
                self.capabilities = self.capabilities - {"random_rows"}
        super().__init__(path, schema)

    def open_column(self, role: str) -> _Column:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        return _Column(self.path, self.columns.roles[role])


class _Column:
    """A data set of the open file."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._where, self._stack = path, f"{path}, data set {name!r}", ExitStack()
        self._data = self._stack.enter_context(_opened(path))[name]

    def read_into(self, start: int, stop: int, out: NDArray[Any]) -> None:
        step = max(1, _PIECE_BYTES // (out.shape[1] * self._data.dtype.itemsize))
        with np.errstate(over="ignore"):
            for first in range(start, stop, step):
                end = min(stop, first + step)
                try:
                    out[first - start : end - start] = self._data[first:end]
                except (OSError, RuntimeError, ValueError) as error:
                    words = str(error).splitlines()[0]
                    raise read_error(f"{self._path}, rows {first} to {end}: cannot be read: {words}", error) from error

    def read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            values: NDArray[Any] = self._data[start:stop]
            if values.dtype.kind == "O":
                return text_ids([value.decode() for value in values], "U", self._where, start)
        except (OSError, RuntimeError, UnicodeDecodeError, AttributeError) as error:
            raise read_error(f"{self._where}, rows {start} to {stop}: cannot be read: {error}", error) from error
        return values

    def close(self) -> None:
        self._stack.close()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = optional("h5py", "hdf5")
    ReadFile(path).close()  # refuses what is no regular file
    with ExitStack() as stack:
        # HDF5 itself reads a local file with less work than through Python.
        source = stack.enter_context(SeekableFile(path)) if isinstance(path, RemotePath) else path
        try:
            file = stack.enter_context(h5py.File(source, "r"))
        except (OSError, RuntimeError) as error:
            raise read_error(f"{path}: cannot be read as HDF5: {str(error).splitlines()[0]}", error) from error
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
