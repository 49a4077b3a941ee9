"""Parquet: a file, or a folder of files (as a data set is written); a part is a row group, streamed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.options import Columns, SourceOptions, check_shape, find_columns, read_dtype
from fct_infer.connectors.parted import ColumnsReader, Forward, PartedSource
from fct_infer.errors import GalleryError
from fct_infer.gallery.source import Part, Schema
from fct_infer.storage import ReadFile, read_error

_BATCH_BYTES = 4 << 20
_BUFFER_BYTES = 1 << 20  # read from the file at once; pages are decoded out of it


class ParquetSource(PartedSource):
    """Files of one schema, in the order of their names."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        files = parquet_files(path)
        self._path = path
        parts: list[Part] = []
        for file in files:
            with opened(file) as parquet:
                found = parquet.schema_arrow
                if file is files[0]:
                    self._kinds = {field.name: field.type for field in found}
                    self.columns = _columns(file, found, options)
                for name in self.columns.roles.values():
                    if name not in found.names or found.field(name).type != self._kinds[name]:
                        raise GalleryError(f"{file}: column {name!r} is missing or of another type than in {files[0]}")
                first = parts[-1].first_row + parts[-1].rows if parts else 0
                parts += _parts(path, file, parquet.metadata, first)
        if not parts:
            raise GalleryError(f"{path}: is empty, it holds no rows")
        super().__init__(self._schema(parts, options), parts)

    def _schema(self, parts: list[Part], options: SourceOptions) -> Schema:
        first, rows = parts[0], parts[-1].first_row + parts[-1].rows
        widths: dict[str, int] = {}
        dtypes: dict[str, np.dtype[Any]] = {}
        for role, name in self.columns.roles.items():
            if role != "id":
                kind = self._kinds[name]
                where = f"{self.place(first)}, column {name!r}"
                dtypes[role] = read_dtype(arrays.stored_dtype(kind), where, options.allow_cast)
                widths[role] = arrays.fixed_dim(kind) or self._first_width(first, name)
                check_shape(rows, widths[role], where)
        self._widths = widths
        key = self.columns.id
        return Schema(
            rows,
            widths["embedding"],
            dtypes["embedding"],
            widths.get("side"),
            dtypes.get("side"),
            None if key is None else arrays.id_dtype(self._kinds[key]),
            self.columns.roles,
            self.columns.other,
        )

    def _first_width(self, part: Part, name: str) -> int:
        for batch in _batches(part, name, 1):
            return int(arrays.vectors(batch, None, self.place(part), 0, Path(str(part.key[0]))).shape[1])
        raise GalleryError(f"{self.place(part)}: ends after 0 rows, {part.rows} were announced")

    def place(self, part: Part) -> str:
        """File and row group."""
        return f"{part.key[0]}, row group {part.key[1]}"

    def open_part(self, part: Part) -> ColumnsReader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        old = self._vectors(part, "embedding")
        assert old is not None
        return ColumnsReader(self.schema, part, old, self._vectors(part, "side"), self._ids(part))

    def _vectors(self, part: Part, role: str) -> Forward | None:
        if role not in self._widths:
            return None
        name, dim, where = self.columns.roles[role], self._widths[role], self.place(part)
        rows = max(1, min(65536, _BATCH_BYTES // (dim * arrays.stored_dtype(self._kinds[name]).itemsize)))

        def batches() -> Generator[NDArray[Any], None, None]:
            done = 0
            for array in _batches(part, name, rows):
                yield arrays.vectors(array, dim, where, done, Path(str(part.key[0])))
                done += len(array)

        return Forward(batches, part.rows, where)

    def _ids(self, part: Part) -> Forward | None:
        if (name := self.columns.id) is None:
            return None
        where = self.place(part)

        def batches() -> Generator[NDArray[Any], None, None]:
            done = 0
            for array in _batches(part, name, 16384):
                yield arrays.ids(array, where, done, Path(str(part.key[0])))
                done += len(array)

        return Forward(batches, part.rows, where)


def parquet_files(path: Path) -> list[Path]:
    """Return the file, or those below a folder by their names; hidden ones and ``_metadata`` are left out."""
    if not path.is_dir():
        return [path]
    found = (file for pattern in ("*.parquet", "*.pq") for file in path.rglob(pattern))
    files = [file for file in found if not any(part[0] in "._" for part in file.relative_to(path).parts)]
    if not files:
        raise GalleryError(f"{path}: holds no .parquet files")
    return sorted(files)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Yield an open ``pyarrow.parquet.ParquetFile`` that reads in bounded memory, on this thread alone."""
    arrow, parquet = arrays.pyarrow(), arrays.pyarrow("parquet")
    ReadFile(file).close()  # refuses what is no regular file, before pyarrow waits for a pipe
    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as opened_file:
            yield opened_file
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise read_error(f"{file}: cannot be read as Parquet: {words}", error) from error


def _columns(file: Path, schema: Any, options: SourceOptions) -> Columns:
    if len(set(schema.names)) != len(schema.names):
        raise GalleryError(f"{file}: two columns have the same name")
    kept = [field for field in schema if arrays.is_vector(field.type)]
    keys = [field.name for field in schema if arrays.is_id(field.type)]
    return find_columns(file, [field.name for field in kept], keys, options)


def _parts(root: Path, file: Path, metadata: Any, first: int) -> list[Part]:
    name = file.name if file == root else file.relative_to(root).as_posix()
    parts = []
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if rows < 0:
            raise GalleryError(f"{file}, row group {group}: says it has {rows} rows")
        if rows:
            parts.append(Part(f"{name}:{group:06d}", rows, first, (str(file), group)))
            first += rows
    return parts


def _batches(part: Part, name: str, rows: int) -> Generator[Any, None, None]:
    """Yield one column of a row group as arrays of at most ``rows`` rows."""
    file, group = part.key
    with opened(Path(str(file))) as parquet:
        # Fields of a list column are named "column.list.element"; iter_batches takes the column's own name.
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
            yield batch.column(0)
