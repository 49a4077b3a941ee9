"""NumPy's files: one .npy, the arrays of a .npz, and the project's own folder of shards."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import SourceOptions, check_shape, find_columns, integer_or_text, read_dtype
from fct_infer.connectors.parted import Forward, PartedSource
from fct_infer.connectors.raw_rows import RawRows, RawSource
from fct_infer.errors import GalleryError
from fct_infer.gallery import Gallery, Schema
from fct_infer.storage import ReadFile, SeekableFile, read_error, read_npy_header

_PIECE_BYTES = 4 << 20
_BUFFER_BYTES = 1 << 17
# What zipfile and NumPy's header parser raise on a damaged archive; RuntimeError: it is encrypted.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    SyntaxError,
    TypeError,
)


def open_npy(path: Path, options: SourceOptions) -> RawSource:
    """Open one .npy file of (rows, dim)."""
    with ReadFile(path) as file:
        header = read_npy_header(file)
    if len(header.shape) != 2:
        raise GalleryError(f"{path}: has shape {header.shape}, wanted (rows, dim)")
    check_shape(*header.shape, str(path))
    rows = RawRows(path, header.data_offset, header.shape[0], header.shape[1], header.dtype)
    return RawSource(rows, allow_cast=options.allow_cast)


def open_folder(path: Path, _options: SourceOptions) -> Gallery:
    """Open a gallery folder of the project's own layout."""
    return Gallery.open(path)


class NpzSource(PartedSource):
    """Arrays of one .npz file, unpacked as they are read."""

    capabilities = frozenset[str]()

    def __init__(self, path: Path, options: SourceOptions) -> None:
        shapes = _headers(path)
        vectors = [name for name, (shape, dtype) in shapes.items() if len(shape) == 2 and dtype.kind in "fiu"]
        scalars = [name for name, (shape, dtype) in shapes.items() if len(shape) == 1 and dtype.kind in "iuSU"]
        unfit = {name: f"{dtype} {shape}" for name, (shape, dtype) in shapes.items() if name not in vectors + scalars}
        self._columns = columns = find_columns(path, vectors, scalars, options, unfit)
        (rows, dim), dtype = shapes[columns.embedding]
        check_shape(rows, dim, f"{path}, array {columns.embedding!r}")
        for name in columns.roles.values():
            if shapes[name][0][0] != rows:
                raise GalleryError(
                    f"{path}: array {name!r} has {shapes[name][0][0]} rows, {columns.embedding!r} has {rows}"
                )
        side_dim, side_dtype = None, None
        if columns.side is not None:
            side_dim = shapes[columns.side][0][1]
            check_shape(rows, side_dim, f"{path}, array {columns.side!r}")
            side_dtype = read_dtype(shapes[columns.side][1], f"{path}, array {columns.side!r}", options.allow_cast)
        id_dtype = None if columns.id is None else shapes[columns.id][1]
        if id_dtype is not None and id_dtype.kind in "iu":
            id_dtype = np.dtype(np.int64)
        read = read_dtype(dtype, f"{path}, array {columns.embedding!r}", options.allow_cast)
        schema = Schema(rows, dim, read, side_dim, side_dtype, id_dtype, columns.roles, columns.other)
        super().__init__(path, schema)

    def open_column(self, role: str) -> Forward:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        name = self._columns.roles[role]
        return Forward(lambda _: _unpacked(self.path, name), [0], self.schema.rows, str(self.path))


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of every array."""
    found = {}
    for name in _names(path):
        with _Member(path, name) as member:
            found[name] = (member.shape, member.dtype)
    if not found:
        raise GalleryError(f"{path}: holds no arrays")
    return found


def _names(path: Path) -> list[str]:
    with _archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


class _Archive(zipfile.ZipFile):
    """An archive that closes the file it reads."""

    def __init__(self, path: Path) -> None:
        self._bytes = io.BufferedReader(SeekableFile(path), _BUFFER_BYTES)
        super().__init__(self._bytes)

    def close(self) -> None:
        super().close()
        self._bytes.close()


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return _Archive(path)
    except _ZIP_ERRORS as error:
        raise read_error(f"{path}: is not a whole .npz file: {error}", error) from error


class _Member:
    """One array inside the archive, read forward."""

    def __init__(self, path: Path, name: str) -> None:
        self._where = f"{path}, array {name!r}"
        self._archive = _archive(path)
        try:
            info = self._archive.getinfo(f"{name}.npy")
            self._stream: Any = self._archive.open(info)
            version = np.lib.format.read_magic(self._stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, fortran, self.dtype = read(self._stream)
            header = self._stream.tell()
        except _ZIP_ERRORS as error:
            self._archive.close()
            raise read_error(f"{self._where}: cannot be read: {error}", error) from error
        if fortran:
            self._archive.close()
            raise GalleryError(f"{self._where}: is in Fortran order; save numpy.ascontiguousarray(array) instead")
        if self.dtype.hasobject or not self.dtype.isnative or not self.dtype.itemsize:
            self._archive.close()
            raise GalleryError(f"{self._where}: holds {self.dtype}, wanted plain little-endian numbers or text")
        wanted = header + int(np.prod([*map(int, self.shape)], dtype=object)) * self.dtype.itemsize
        if info.file_size != wanted:
            self._archive.close()
            raise GalleryError(
                f"{self._where}: {self.dtype} {self.shape} takes {wanted} bytes, it has {info.file_size}"
            )

    def read(self, rows: int) -> NDArray[Any]:
        out = np.empty((rows, *self.shape[1:]), self.dtype)
        view, done = out.view(np.uint8).reshape(-1).data, 0
        try:
            while done < len(view):
                count = self._stream.readinto(view[done:])
                if not count:
                    raise EOFError(f"ends {len(view) - done} bytes short")
                done += count
        except _ZIP_ERRORS as error:
            raise read_error(f"{self._where}: cannot be read: {error}", error) from error
        return out

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._archive.close()


def _unpacked(path: Path, name: str) -> Generator[NDArray[Any], None, None]:
    with _Member(path, name) as member:
        rows = member.shape[0]
        width = int(np.prod(member.shape[1:])) * member.dtype.itemsize
        step = max(1, _PIECE_BYTES // max(1, width))
        for start in range(0, rows, step):
            piece = member.read(min(step, rows - start))
            yield integer_or_text(piece, f"{path}, array {name!r}", start) if piece.ndim == 1 else piece
