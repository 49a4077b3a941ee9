"""Arrow and Feather: IPC files and streams (as Hugging Face datasets store them); batch by batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.parted import Forward, PartedSource
from fct_infer.errors import GalleryError
from fct_infer.gallery.source import Schema
from fct_infer.storage import ReadFile, SeekableFile, read_error

_ROWS_AT_ONCE = 65536


class ArrowSource(PartedSource):
    """A file or stream, or several that follow each other; read once when opened, as only that tells their rows.

    Args:
        path: what the user named.
        options: columns and what is allowed.
        files: in the order of their rows, with the same columns as far as they are read; by default ``path``.
        beside: files that decide which ones those are.
    """

    capabilities = frozenset[str]()

    def __init__(
        self, path: Path, options: SourceOptions, files: Sequence[Path] = (), beside: Sequence[Path] = ()
    ) -> None:
        self._files, self._beside = tuple(files) or (path,), tuple(beside)
        with _opened(self._files[0]) as (schema, _):
            self._kinds = {field.name: field.type for field in schema}
            self.columns = arrays.columns_of(self._files[0], schema, options)
        self._widths: dict[str, int] = {}
        self._begins: list[_Begin] = []
        self._first_rows: list[int] = []  # of each file
        groups: list[int] = []
        for file in self._files:
            self._first_rows.append(sum(groups))
            self._survey(file, groups)
        self._starts = [begin.first_row for begin in self._begins]
        super().__init__(path, self._read_schema(sum(groups), options), groups)

    def _survey(self, file: Path, groups: list[int]) -> None:
        """Read a file through: append its batches' rows to ``groups``, and note where reading may begin."""
        is_file, width_of = _is_file(file), self._widths
        for number, batch in enumerate(_batches(file)):
            if number == 0:
                self._check_columns(file, batch.schema)
            if number == 0 or is_file:
                self._begins.append(_Begin(sum(groups), file, number))
            for role, name in self.columns.roles.items():
                if role != "id" and role not in width_of and batch.num_rows:
                    column = batch.column(batch.schema.get_field_index(name))
                    width_of[role] = arrays.vectors(column.slice(0, 1), None, str(file), 0, file).shape[1]
            groups.append(batch.num_rows)

    def _check_columns(self, file: Path, schema: Any) -> None:
        for name in self.columns.roles.values():
            if name not in schema.names or schema.field(name).type != self._kinds[name]:
                raise GalleryError(f"{file}: column {name!r} is missing or of another type than in {self._files[0]}")

    def _read_schema(self, rows: int, options: SourceOptions) -> Schema:
        if not rows:
            raise GalleryError(f"{self._files[0]}: is empty, it holds no rows")
        return arrays.schema_of(
            rows, self.columns, self._kinds, lambda role, _: self._widths[role], self._files[0], options.allow_cast
        )

    @property
    def files(self) -> dict[str, Path]:
        """All of them."""
        return {file.name: file for file in (*self._files, *self._beside)}

    def place(self, row: int) -> tuple[str, int]:
        """The file, and the row's number in it."""
        number = bisect_right(self._first_rows, row) - 1
        return str(self._files[number]), row - self._first_rows[number]

    def open_column(self, role: str) -> Forward:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        name, begins = self.columns.roles[role], self._begins

        def batches(number: int) -> Generator[NDArray[Any], None, None]:
            begin = begins[number]
            at = self._files.index(begin.file)
            yield from self._arrays(role, name, begin.file, begin.batch, begin.first_row - self._first_rows[at])
            for file in self._files[at + 1 :]:
                yield from self._arrays(role, name, file, 0, 0)

        return Forward(batches, self._starts, self.schema.rows, str(self.path))

    def _arrays(self, role: str, name: str, file: Path, batch: int, row: int) -> Generator[NDArray[Any], None, None]:
        """Yield a column of a file from a batch on, whose first row is number ``row`` there."""
        for found in _batches(file, batch):
            whole = found.column(found.schema.get_field_index(name))
            for start in range(0, len(whole), _ROWS_AT_ONCE):
                array = whole.slice(start, _ROWS_AT_ONCE)
                if role == "id":
                    yield arrays.ids(array, str(file), row, file)
                else:
                    yield arrays.vectors(array, self._widths[role], str(file), row, file)
                row += len(array)


@dataclass(frozen=True)
class _Begin:
    """Where reading may begin: a row over all files, its file, and the number of its batch there."""

    first_row: int
    file: Path
    batch: int


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
