"""Lance: one version of a data set, whatever is written to it meanwhile; read forward fragment by fragment."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.connectors.parted import Forward, PartedSource
from fct_infer.errors import FctError, GalleryError, ResourceError, UsageError
from fct_infer.gallery.source import Schema
from fct_infer.identity import ModelId
from fct_infer.storage import RemotePath, read_error

EXTRA = "lance"
_BATCH_BYTES = 4 << 20
_ID_ROWS = 16384
_FIRST_ROWS = 64  # taken by their numbers, before a scan that decodes a whole batch begins
_BUFFER_BYTES = 64 << 20  # what a scan may have read and not yet given out; Lance itself takes 2 GiB
_PLACE = re.compile(r", /\S+:\d+:\d+\s*$")  # in Lance's source
_NETWORK = re.compile(r"Generic (S3|GCS) error|error sending request|timed out")
_REMOTE = ("s3", "gs", "gcs")  # that Lance reads by itself


@dataclass(frozen=True)
class _Fragment:
    """A fragment that holds rows: its number in the data set, and that of its first row over all of them."""

    number: int
    rows: int
    first_row: int


class LanceSource(PartedSource):
    """The newest version of a data set when it is opened. Rows that were deleted are not there.

    Attributes:
        version: of the data set.
        columns: what is read, and what is not.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path, self.version = path, 0  # the newest
        with lance_errors(path):
            dataset = self.opened()
            self.version, schema = int(dataset.version), dataset.schema
            fragments = [(each.fragment_id, each.count_rows(), each.metadata) for each in dataset.get_fragments()]
        self._kinds = {field.name: field.type for field in schema}
        self.columns = arrays.columns_of(path, schema, options)
        self._said = schema.field(self.columns.embedding).metadata
        self._fragments: list[_Fragment] = []
        rows = 0
        for number, count, _ in fragments:
            if count:
                self._fragments.append(_Fragment(number, count, rows))
                rows += count
        if not rows:
            raise GalleryError(f"{path}: is empty, it holds no rows")
        self._first_rows = [fragment.first_row for fragment in self._fragments]
        self._data_files = [path / "data" / file.path for _, _, metadata in fragments for file in metadata.files]
        schema_read = self._read_schema(rows, options)
        super().__init__(path, schema_read, [fragment.rows for fragment in self._fragments])

    @cached_property
    def model(self) -> ModelId | None:
        """As the column's metadata says, where an upgrade added it."""
        return arrays.model_said(self._said, f"{self.path}, column {self.columns.embedding!r}")

    @property
    def column_names(self) -> list[str]:
        """All columns."""
        return list(self._kinds)

    def opened(self, version: int | None = None) -> Any:
        """Return a handle of its own on the version, or another one: who writes disturbs readers of the same handle."""
        lance = optional("lance", EXTRA)
        if isinstance(self.path, RemotePath) and self.path.scheme not in _REMOTE:
            raise UsageError(f"{self.path}: Lance data sets are read from folders, s3:// and gs://")
        with lance_errors(self.path):
            return lance.dataset(str(self.path), version=version or self.version or None)

    def _read_schema(self, rows: int, options: SourceOptions) -> Schema:
        self._widths: dict[str, int] = {}

        def width_of(role: str, name: str) -> int:
            self._widths[role] = arrays.fixed_dim(self._kinds[name]) or self._first_width(name)
            return self._widths[role]

        return arrays.schema_of(rows, self.columns, self._kinds, width_of, self.path, options.allow_cast)

    def _first_width(self, name: str) -> int:
        with lance_errors(self.path):
            first = self.opened().take([0], columns=[name]).column(0).combine_chunks()
        return int(arrays.vectors(first, None, self._words(self._fragments[0]), 0, self.path).shape[1])

    @property
    def files(self) -> dict[str, Path]:
        """The data files of the version; no version changes the file of another."""
        return {file.relative_to(self.path).as_posix(): file for file in self._data_files}

    def _reading(self) -> dict[str, dict[str, Any]]:
        found = super()._reading()
        return {name: {**how, "version": self.version} for name, how in found.items()}

    def _words(self, fragment: _Fragment) -> str:
        return f"{self.path}, fragment {fragment.number}"

    def place(self, row: int) -> tuple[str, int]:
        """The fragment, and the row's number among those of it that are not deleted."""
        fragment = self._fragments[bisect_right(self._first_rows, row) - 1]
        return self._words(fragment), row - fragment.first_row

    def open_column(self, role: str) -> Forward:
        """See :class:`~fct_infer.connectors.parted.PartedSource`."""
        name, dim, rows = self.columns.roles[role], self._widths.get(role), self.schema.rows
        at_once = _ID_ROWS
        if dim is not None:
            at_once = max(1, min(65536, _BATCH_BYTES // (dim * arrays.stored_dtype(self._kinds[name]).itemsize)))
        dataset = self.opened()

        def batches(first: int) -> Generator[NDArray[Any], None, None]:
            for array, fragment, row in self._arrays(dataset, name, first, at_once):
                if dim is None:
                    yield arrays.ids(array, self._words(fragment), row, self.path)
                else:
                    yield arrays.vectors(array, dim, self._words(fragment), row, self.path)

        return Forward(batches, range(rows), rows, str(self.path))  # reading may begin at any row

    def _arrays(
        self, dataset: Any, name: str, first: int, at_once: int
    ) -> Generator[tuple[Any, _Fragment, int], None, None]:
        """Yield a column from row ``first`` on, with the fragment and the number of the first row there."""
        start = bisect_right(self._first_rows, first) - 1
        for fragment in self._fragments[start:]:
            row = max(0, first - fragment.first_row)
            if first > fragment.first_row or fragment is self._fragments[start]:
                stop = min(fragment.rows, row + _FIRST_ROWS)
                with lance_errors(self.path):
                    numbers = range(fragment.first_row + row, fragment.first_row + stop)
                    taken = dataset.take(list(numbers), columns=[name]).column(0).combine_chunks()
                yield taken, fragment, row
                row = stop
            if row < fragment.rows:
                for batch in self._scanned(dataset, name, fragment, row, at_once):
                    yield batch.column(0), fragment, row
                    row += batch.num_rows
            if row != fragment.rows:
                raise GalleryError(f"{self._words(fragment)}: ends after {row} rows, {fragment.rows} were announced")

    def _scanned(self, dataset: Any, name: str, fragment: _Fragment, row: int, at_once: int) -> Iterator[Any]:
        with lance_errors(self.path):
            scanner = dataset.scanner(
                columns=[name],
                fragments=[dataset.get_fragment(fragment.number)],
                offset=row or None,
                batch_size=at_once,
                batch_readahead=1,
                fragment_readahead=1,
                io_buffer_size=_BUFFER_BYTES,
                scan_in_order=True,
            )
            yield from scanner.to_batches()


@contextmanager
def lance_errors(path: Path) -> Iterator[None]:
    """Turn what Lance raises on a data set that cannot be read into one line that names it."""
    try:
        yield
    except (FctError, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # Lance panics on some damaged files, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        words = _PLACE.sub("", str(error).splitlines()[0])[:300] if str(error) else type(error).__name__
        cause = error if isinstance(error, Exception) else RuntimeError(words)
        message = f"{path}: cannot be read as Lance: {words}"
        if _NETWORK.search(words):
            raise ResourceError(message) from cause
        raise read_error(message, cause) from cause
