"""Arrow and Feather: IPC files and streams (as Hugging Face datasets store them); a part is a file."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.options import SourceOptions, check_shape, find_columns, read_dtype
from fct_infer.connectors.parted import ColumnsReader, Forward, PartedSource
from fct_infer.errors import GalleryError
from fct_infer.gallery.source import Part, Schema
from fct_infer.storage import ReadFile, read_error

_ROWS_AT_ONCE = 65536


class ArrowSource(PartedSource):
    """One file or stream; it is read once when opened, as only that tells its rows."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._path = path
        with _opened(path) as (schema, _):
            if len(set(schema.names)) != len(schema.names):
                raise GalleryError(f"{path}: two columns have the same name")
            self._kinds = {field.name: field.type for field in schema}
        found = [name for name, kind in self._kinds.items() if arrays.is_vector(kind)]
        keys = [name for name, kind in self._kinds.items() if arrays.is_id(kind)]
        self.columns = columns = find_columns(path, found, keys, options)
        widths: dict[str, int] = {}
        rows = 0
        for batch in _batches(path):
            for role, name in columns.roles.items():
                if role != "id" and role not in widths and batch.num_rows:
                    column = batch.column(batch.schema.get_field_index(name))
                    widths[role] = arrays.vectors(column.slice(0, 1), None, str(path), 0, path).shape[1]
            rows += batch.num_rows
        if not rows:
            raise GalleryError(f"{path}: is empty, it holds no rows")
        dtypes: dict[str, np.dtype[Any]] = {}
        for role, dim in widths.items():
            where = f"{path}, column {columns.roles[role]!r}"
            check_shape(rows, dim, where)
            dtypes[role] = read_dtype(arrays.stored_dtype(self._kinds[columns.roles[role]]), where, options.allow_cast)
        self._widths = widths
        key = None if columns.id is None else arrays.id_dtype(self._kinds[columns.id])
        schema_read = Schema(
            rows,
            widths["embedding"],
            dtypes["embedding"],
            widths.get("side"),
            dtypes.get("side"),
            key,
            columns.roles,
            columns.other,
        )
        super().__init__(schema_read, [Part(path.name, rows, 0)])

    def place(self, part: Part) -> str:
        """The whole path."""
        return str(self._path)

    def open_part(self, part: Part) -> ColumnsReader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        columns = [self._forward(part, role) for role in ("embedding", "side", "id")]
        assert columns[0] is not None
        return ColumnsReader(self.schema, part, columns[0], columns[1], columns[2])

    def _forward(self, part: Part, role: str) -> Forward | None:
        name = self.columns.roles.get(role)
        if name is None:
            return None
        path, where = self._path, str(self._path)

        def batches() -> Generator[NDArray[Any], None, None]:
            done = 0
            for batch in _batches(path):
                whole = batch.column(batch.schema.get_field_index(name))
                for start in range(0, len(whole), _ROWS_AT_ONCE):
                    array = whole.slice(start, _ROWS_AT_ONCE)
                    if role == "id":
                        yield arrays.ids(array, where, done, path)
                    else:
                        yield arrays.vectors(array, self._widths[role], where, done, path)
                    done += len(array)

        return Forward(batches, part.rows, where)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Yield the schema and the record batches; the file is read, not mapped."""
    arrow, ipc = arrays.pyarrow(), arrays.pyarrow("ipc")
    with ReadFile(path) as head:
        magic = head.read(min(6, head.size))
    try:
        with arrow.OSFile(str(path)) as file:
            if magic == b"ARROW1":
                reader = ipc.open_file(file)
                yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                stream = ipc.open_stream(file)
                yield stream.schema, iter(stream)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise read_error(f"{path}: cannot be read as Arrow: {words}", error) from error


def _batches(path: Path) -> Generator[Any, None, None]:
    with _opened(path) as (_, batches):
        for batch in batches:
            try:
                batch.validate(full=True)
            except arrays.pyarrow().ArrowInvalid as error:
                raise GalleryError(f"{path}: is damaged: {error}") from error
            yield batch
