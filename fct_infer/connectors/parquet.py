"""Parquet: a file, or a folder of files (as a data set is written); streamed by row group."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.parted import Forward, PartedSource
from fct_infer.errors import GalleryError
from fct_infer.gallery.manifest import own_manifest
from fct_infer.gallery.source import Schema
from fct_infer.identity import ModelId
from fct_infer.storage import RemotePath, SeekableFile, read_error

_BATCH_BYTES = 4 << 20
_ID_ROWS = 16384
_OTHER_ROWS = 1024  # they may be whole documents
_BUFFER_BYTES = 1 << 20  # read from the file at once; pages are decoded out of it


@dataclass(frozen=True)
class _Group:
    """A row group that holds rows: its file and number there, and the number of its first row over all files."""

    file: Path
    number: int
    rows: int
    first_row: int

    @property
    def place(self) -> str:
        return f"{self.file}, row group {self.number}"


class ParquetSource(PartedSource):
    """Files in the order of their names, with the same columns as far as they are read.

    Attributes:
        columns: what is read, and what is not.
        arrow_schema: of the first file.
        different: a file whose schema is another one.
    """

    capabilities = frozenset[str]()

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._root, self._paths = path, parquet_files(path)
        self._groups: list[_Group] = []
        self._stored_bytes = 0
        self.different: Path | None = None
        for file in self._paths:
            with opened(file) as parquet:
                found = parquet.schema_arrow
                if file is self._paths[0]:
                    self.arrow_schema = found
                    self._kinds = {field.name: field.type for field in found}
                    self.columns = arrays.columns_of(file, found, options)
                for name in self.columns.roles.values():
                    if name not in found.names or found.field(name).type != self._kinds[name]:
                        raise GalleryError(
                            f"{file}: column {name!r} is missing or of another type than in {self._paths[0]}"
                        )
                if self.different is None and not found.equals(self.arrow_schema):
                    self.different = file
                self._add_groups(file, parquet.metadata)
        if not self._groups:
            raise GalleryError(f"{path}: is empty, it holds no rows")
        self._starts = [group.first_row for group in self._groups]
        super().__init__(path, self._read_schema(options), [group.rows for group in self._groups])

    def _add_groups(self, file: Path, metadata: Any) -> None:
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            if rows < 0:
                raise GalleryError(f"{file}, row group {number}: says it has {rows} rows")
            if rows:
                self._groups.append(_Group(file, number, rows, self._rows()))

                self._stored_bytes += metadata.row_group(number).total_byte_size

    def _rows(self) -> int:
        return self._groups[-1].first_row + self._groups[-1].rows if self._groups else 0

    def _read_schema(self, options: SourceOptions) -> Schema:
        self._widths: dict[str, int] = {}

        def width_of(role: str, name: str) -> int:
            self._widths[role] = arrays.fixed_dim(self._kinds[name]) or self._first_width(name)
            return self._widths[role]

        where = self._groups[0].place
        return arrays.schema_of(self._rows(), self.columns, self._kinds, width_of, where, options.allow_cast)

    def _first_width(self, name: str) -> int:
        group = self._groups[0]
        with closing(_batches([group], [name], 1)) as batches:
            for _, batch, _ in batches:
                return int(arrays.vectors(batch.column(0), None, group.place, 0, group.file).shape[1])
        raise GalleryError(f"{group.place}: ends after 0 rows, {group.rows} were announced")

    @cached_property
    def model(self) -> ModelId | None:
        """As the manifest of a published gallery says, or the schema's metadata under ``fct_infer.model``."""
        if self._root.is_dir() and (manifest := own_manifest(self._root)) is not None:
            return manifest.model
        return arrays.model_said(self.arrow_schema.metadata, self._paths[0])

    @property
    def files(self) -> dict[str, Path]:
        """All of them, by their names inside the folder."""
        return {_name(self._root, file): file for file in self._paths}

    def rows_of_first(self, files: int) -> int:
        """See :class:`~fct_infer.gallery.source.Source`."""
        known = set(self._paths[:files])
        return sum(group.rows for group in self._groups if group.file in known)

    def added_files(self) -> list[Path]:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return sorted(set(parquet_files(self._root)) - set(self._paths))

    def place(self, row: int) -> tuple[str, int]:
        """File and row group, and the row's number in that."""
        group = self._groups[bisect_right(self._starts, row) - 1]
        return group.place, row - group.first_row

    @property
    def first_file(self) -> Path:
        """The one whose columns count."""
        return self._paths[0]

    @property
    def column_names(self) -> list[str]:
        """All columns of the first file."""
        return list(self.arrow_schema.names)

    @property
    def stored_row_bytes(self) -> int:
        """Bytes of a row with all its columns, encoded and not compressed, on the average."""
        return int(self._stored_bytes // self.schema.rows)

    def open_others(self) -> Forward:
        """Open all columns but the embeddings together; what is read are Arrow's record batches."""
        names = [name for name in self.column_names if name != self.columns.embedding]

        def batches(first: int) -> Generator[Any, None, None]:
            for _, batch, _ in _batches(self._groups[first:], names, _OTHER_ROWS):
                yield batch

        return Forward(batches, self._starts, self.schema.rows, str(self.path))

    def open_column(self, role: str) -> Forward:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        name, dim = self.columns.roles[role], self._widths.get(role)
        at_once = _ID_ROWS
        if dim is not None:
            at_once = max(1, min(65536, _BATCH_BYTES // (dim * arrays.stored_dtype(self._kinds[name]).itemsize)))

        def batches(first: int) -> Generator[NDArray[Any], None, None]:
            for group, batch, done in _batches(self._groups[first:], [name], at_once):
                array = batch.column(0)
                if dim is None:
                    yield arrays.ids(array, group.place, done, group.file)
                else:
                    yield arrays.vectors(array, dim, group.place, done, group.file)

        return Forward(batches, self._starts, self.schema.rows, str(self.path))


def parquet_files(path: Path) -> list[Path]:
    """Return the file, or those below a folder, or its ``embeddings/``, by their names; hidden ones are left out.

    Raises:
        GalleryError: there are none, or some may lie behind a link to another folder.
    """
    if not path.is_dir():
        return [path]
    folder, files = path / "embeddings" if (path / "embeddings").exists() else path, []
    for each in folder.rglob("*"):
        if any(part[0] in "._" for part in each.relative_to(folder).parts):
            continue
        if not isinstance(each, RemotePath) and each.is_dir():
            if each.is_symlink():
                raise GalleryError(f"{each}: is a link to a folder, which is not followed; link to its files instead")
        elif each.suffix.lower() in (".parquet", ".pq"):
            files.append(each)
    if not files:
        raise GalleryError(f"{path}: holds no .parquet files")
    return sorted(files)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Yield an open ``pyarrow.parquet.ParquetFile`` that reads in bounded memory, on this thread alone."""
    arrow, parquet = arrays.pyarrow(), arrays.pyarrow("parquet")
    try:
        with (
            SeekableFile(file) as seekable,
            parquet.ParquetFile(seekable, pre_buffer=False, buffer_size=_BUFFER_BYTES) as opened_file,
        ):
            yield opened_file
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise read_error(f"{file}: cannot be read as Parquet: {words}", error) from error


def _name(root: Path, file: Path) -> str:
    return file.name if file == root else file.relative_to(root).as_posix()


def _batches(groups: Sequence[_Group], columns: list[str], rows: int) -> Generator[tuple[_Group, Any, int], None, None]:
    """Yield some columns of row groups as record batches of at most ``rows`` rows, with group and first row there."""
    for file, inside in groupby(groups, key=lambda group: group.file):
        with opened(file) as parquet:
            for group in inside:
                done = 0
                # Fields of a list column are named "column.list.element"; iter_batches takes the column's own name.
                if missing := set(columns) - set(parquet.schema_arrow.names):
                    raise GalleryError(f"{file}: has no column {missing.pop()!r} any more; it was changed meanwhile")
                for batch in parquet.iter_batches(rows, row_groups=[group.number], columns=columns, use_threads=False):
                    yield group, batch, done
                    done += batch.num_rows
                if done != group.rows:
                    raise GalleryError(f"{group.place}: ends after {done} rows, {group.rows} were announced")
