"""Arrow and Feather: IPC files and streams (as Hugging Face datasets store them); batch by batch."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.options import SourceOptions, check_shape, find_columns, read_dtype
from fct_infer.connectors.parted import Forward, PartedSource
from fct_infer.errors import GalleryError
from fct_infer.gallery.source import Schema
from fct_infer.storage import ReadFile, SeekableFile, read_error

_ROWS_AT_ONCE = 65536


class ArrowSource(PartedSource):
    """One file or stream; it is read once when opened, as only that tells its rows."""

    capabilities = frozenset[str]()

    def __init__(self, path: Path, options: SourceOptions) -> None:
        with _opened(path) as (schema, _):
            if len(set(schema.names)) != len(schema.names):
                raise GalleryError(f"{path}: two columns have the same name")
            self._kinds = {field.name: field.type for field in schema}
        found = [name for name, kind in self._kinds.items() if arrays.is_vector(kind)]
        keys = [name for name, kind in self._kinds.items() if arrays.is_id(kind)]
        self.columns = columns = find_columns(path, found, keys, options)
        widths: dict[str, int] = {}
        groups: list[int] = []
        for batch in _batches(path):
            for role, name in columns.roles.items():
                if role != "id" and role not in widths and batch.num_rows:
                    column = batch.column(batch.schema.get_field_index(name))
                    widths[role] = arrays.vectors(column.slice(0, 1), None, str(path), 0, path).shape[1]
            groups.append(batch.num_rows)
        rows = sum(groups)
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
        self._starts = np.cumsum([0, *groups[:-1]]).tolist() if _is_file(path) else [0]
        super().__init__(path, schema_read, groups)

    def open_column(self, role: str) -> Forward:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        name, path, where, starts = self.columns.roles[role], self.path, str(self.path), self._starts

        def batches(group: int) -> Generator[NDArray[Any], None, None]:
            done = starts[group]
            for batch in _batches(path, group):
                whole = batch.column(batch.schema.get_field_index(name))
                for start in range(0, len(whole), _ROWS_AT_ONCE):
                    array = whole.slice(start, _ROWS_AT_ONCE)
                    if role == "id":
                        yield arrays.ids(array, where, done, path)
                    else:
                        yield arrays.vectors(array, self._widths[role], where, done, path)
                    done += len(array)

        return Forward(batches, starts, self.schema.rows, where)


@contextmanager
def _opened(path: Path, group: int = 0) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Yield the schema and the record batches from number ``group`` on; the file is read, not mapped."""
    arrow, ipc = arrays.pyarrow(), arrays.pyarrow("ipc")
    is_file = _is_file(path)
    try:
        with SeekableFile(path) as seekable, arrow.PythonFile(seekable, "r") as file:
            if is_file:
                reader = ipc.open_file(file)
                yield reader.schema, (reader.get_batch(number) for number in range(group, reader.num_record_batches))
            else:
                stream = ipc.open_stream(file)
                yield stream.schema, iter(stream)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise read_error(f"{path}: cannot be read as Arrow: {words}", error) from error


def _is_file(path: Path) -> bool:
    """Whether batches can be had by number; a stream has to be read from its beginning."""
    with ReadFile(path) as head:
        return head.read(min(6, head.size)) == b"ARROW1"


def _batches(path: Path, group: int = 0) -> Generator[Any, None, None]:
    with _opened(path, group) as (_, batches):
        for batch in batches:
            try:
                batch.validate(full=True)
            except arrays.pyarrow().ArrowInvalid as error:
                raise GalleryError(f"{path}: is damaged: {error}") from error
            yield batch
