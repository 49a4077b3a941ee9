"""The rows of an upgraded gallery as a new column of the Lance data set they were made from, by one commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.arrow_arrays import MODEL_KEY
from fct_infer.connectors.convert import rows_of_block
from fct_infer.connectors.lance_dataset import EXTRA, LanceSource, lance_errors
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.connectors.registry import open_source
from fct_infer.connectors.report import Report
from fct_infer.errors import ArtifactError, FctError, GalleryError, GateError, OutputError, ResourceError, UsageError
from fct_infer.gallery import MANIFEST_NAME, read_manifest, sample_rows
from fct_infer.gallery.rows import read_row_ids
from fct_infer.gallery.source import Source, SourceReader
from fct_infer.storage import ReadFile, location, sha256_of_file
from fct_infer.storage.strict_json import parse_strict

Progress: TypeAlias = Callable[[str, int, int], None]
MARK_KEY = b"fct_infer.manifest"  # of a column: the SHA-256 of the manifest of the gallery it was
_CHECKED_ROWS = 1024
_SEED = 20211202
_MAX_INFOS_BYTES = 1 << 30


@dataclass(frozen=True)
class AddedColumn(Report):
    """Result of :func:`add_column`.

    Attributes:
        dataset, column: where the new rows are.
        rows, dim, dtype: of the column.
        version, version_before: of the data set, now and before.
    """

    dataset: Path
    column: str
    rows: int
    dim: int
    dtype: str
    version: int
    version_before: int

    @property
    def undo(self) -> str:
        """Python that takes the column out again, and leaves what others have written since."""
        return f"lance.dataset({str(self.dataset)!r}).drop_columns([{self.column!r}])"

    def hints(self) -> dict[str, str]:
        """See :class:`~fct_infer.connectors.report.Report`."""
        return {"undo": self.undo}


def add_column(gallery: str | Path, dataset: str | Path, column: str, progress: Progress | None = None) -> AddedColumn:
    """Write the embeddings of a published gallery as a new column of the data set that it was upgraded from.

    The rows become part of the data set by one commit, or not at all; indexes and other columns stay as they are. What
    a killed run leaves are files that no version names, which ``cleanup_old_versions`` removes.

    Args:
        gallery: folder that an upgrade published.
        dataset: the Lance data set that was its source. Other columns may have come since, but no row may have.
        column: name of the new column.
        progress: called as ``progress(stage, rows_done, rows)``.

    Raises:
        UsageError: the data set has a column of that name.
        GalleryError: the gallery was made from something else, or rows of the data set have changed since.
        ArtifactError: the gallery is not a published one, or is damaged.
        OutputError: the data set was changed meanwhile; nothing was committed.
        GateError: the data set gives back other rows than were written; the column was taken out again.
        ResourceError: disk full or another I/O error; nothing was committed.
    """
    folder, place = location(gallery), location(dataset)
    _check_digests(folder)
    read_as = _read_as(folder)
    target = LanceSource(place, SourceOptions(read_as.get("embedding"), id_column=read_as.get("id")))
    written = open_source(folder)  # a folder: nothing is open
    _check_rows(target, written, read_as["version"], folder)
    lance, names = optional("lance", EXTRA), target.column_names
    if not column or column in names:
        raise UsageError(f"{place}: has a column {column!r} already; it has {', '.join(map(repr, names))}")
    with lance_errors(place):
        handle = target.opened()
        metadata, schema = [], None
        with SourceReader(written) as reader:
            mark = sha256_of_file(folder / MANIFEST_NAME)
            blocks = _Blocks(written, reader, new_field(written, column, mark), progress)
            for fragment in handle.get_fragments():
                with _write_errors(place):
                    found, schema = fragment.merge_columns(blocks.of(fragment.count_rows()))
                metadata.append(found)
    try:
        merged = lance.LanceDataset.commit(
            str(place), lance.LanceOperation.Merge(metadata, schema), read_version=target.version, max_retries=0
        )
    except (OSError, RuntimeError) as error:
        if "conflict" in str(error).lower():
            raise OutputError(f"{place}: was changed by another writer meanwhile; nothing was committed") from error
        raise ResourceError(f"{place}: cannot be committed: {str(error).splitlines()[0][:300]}") from error
    report = AddedColumn(
        place, column, written.schema.rows, written.schema.old_dim, written.schema.embedding_dtype.name,
        int(merged.version), target.version,
    )  # fmt: skip
    _check_written(report, written, lance)
    return report


def _check_digests(folder: Path) -> None:
    for name, file in read_manifest(folder).files.items():
        if not name.startswith("index") and sha256_of_file(folder / name) != file.sha256:
            raise ArtifactError(f"{folder / name}: is damaged: its SHA-256 is not that of manifest.json")


def _read_as(folder: Path) -> dict[str, Any]:
    """Return which columns and which version of a Lance data set a gallery was upgraded from."""
    path = folder / "upgrade_infos.json"
    with ReadFile(path) as file:
        if file.size > _MAX_INFOS_BYTES:
            raise ArtifactError(f"{path}: is {file.size:,} bytes long")
        infos = parse_strict(file.read(file.size))
    try:
        found = infos["inputs"]["gallery"]["read as"]
        found["version"] = int(found["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise GalleryError(f"{folder}: was not upgraded from a Lance data set") from error
    assert isinstance(found, dict)
    return found


def _check_rows(target: LanceSource, written: Source, version: int, folder: Path) -> None:
    """Refuse a data set whose rows are not those that were upgraded, one by one in this order."""
    with lance_errors(target.path):
        then, now = (_rows_of(target.opened(each)) for each in (version, target.version))
    if then != now or target.schema.rows != written.schema.rows:
        raise GalleryError(
            f"{target.path}: rows have come, gone or changed since version {version}, from which {folder} was "
            f"upgraded; now it is version {target.version}: upgrade it again"
        )
    rows = sample_rows(written.schema.rows, _CHECKED_ROWS, _SEED)
    if written.schema.id_dtype is None or target.schema.id_dtype is None:
        return
    differ = np.flatnonzero(read_row_ids(target, rows) != read_row_ids(written, rows))
    if len(differ):
        row = int(rows[differ[0]])
        raise GalleryError(
            f"{target.where(row, 'id')}: is not the id of row {row} in {folder}; is it another data set?"
        )


def _rows_of(dataset: Any) -> list[tuple[Any, ...]]:
    """Return what tells the rows of a version and their order: columns that come change neither."""
    return [
        (each.fragment_id, each.physical_rows, str(each.metadata.deletion_file)) for each in dataset.get_fragments()
    ]


def new_field(written: Source, column: str, mark: str) -> Any:
    """Return the new column: what it holds, which gallery it was, and whose vectors they are where that is known."""
    arrow, schema = arrays.pyarrow(), written.schema
    said = {MARK_KEY: mark.encode()}
    if written.model is not None:
        said[MODEL_KEY] = json.dumps(written.model.as_dict()).encode()
    kind = arrow.list_(arrow.from_numpy_dtype(schema.embedding_dtype), schema.old_dim)
    return arrow.field(column, kind, metadata=said)


def is_added(dataset: str | Path, column: str) -> str | None:
    """Return the SHA-256 of the manifest of the gallery that a column was added from.

    Empty if there is such a column, and it was not added by :func:`add_column`; None if there is none.

    Raises:
        GalleryError: it is no Lance data set.
    """
    schema = _newest(location(dataset)).schema
    if column not in schema.names:
        return None
    said: bytes = (schema.field(column).metadata or {}).get(MARK_KEY, b"")
    return said.decode(errors="replace")


def vector_columns(dataset: str | Path) -> dict[str, bool]:
    """Return the columns that hold vectors, and whether an upgrade added each.

    Raises:
        GalleryError: it is no Lance data set.
    """
    schema = _newest(location(dataset)).schema
    return {field.name: MARK_KEY in (field.metadata or {}) for field in schema if arrays.is_vector(field.type)}


def drop_column(dataset: str | Path, column: str) -> int:
    """Take a column out again that was added; what others have written since stays. Return the new version.

    Raises:
        UsageError: there is no such column, or it was not added by an upgrade.
        ResourceError: the commit failed.
    """
    place = location(dataset)
    if not is_added(place, column):
        raise UsageError(f"{place}: has no column {column!r} that an upgrade added")
    handle = _newest(place)
    with _write_errors(place):
        handle.drop_columns([column])
    return int(handle.version)


def _newest(place: Path) -> Any:
    with lance_errors(place):
        return optional("lance", EXTRA).dataset(str(place))


class _Blocks:
    """The new rows as Arrow, fragment after fragment."""

    def __init__(self, written: Source, reader: SourceReader, field: Any, progress: Progress | None) -> None:
        self._written, self._reader, self._progress = written, reader, progress
        self._schema, self._done = arrays.pyarrow().schema([field]), 0

    def of(self, rows: int) -> Any:
        """Return a reader of the next rows."""
        return arrays.pyarrow().RecordBatchReader.from_batches(self._schema, self._batches(rows))

    def _batches(self, rows: int) -> Iterator[Any]:
        arrow, schema, most = arrays.pyarrow(), self._written.schema, rows_of_block(self._written.schema)
        end = self._done + rows
        while self._done < end:
            part = self._written.part_of(self._done)
            start = self._done - part.first_row
            stop = min(part.rows, start + most, start + end - self._done)
            block = np.empty((stop - start, schema.old_dim), schema.embedding_dtype)
            self._reader.at(part).read_into(start, stop, block, None)
            values = arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), schema.old_dim)
            self._done += len(block)
            if self._progress:
                self._progress("write column", self._done, schema.rows)
            yield arrow.RecordBatch.from_arrays([values], schema=self._schema)


@contextmanager
def _write_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, FctError):
            raise
        words = str(error).splitlines()[0][:300]
        raise ResourceError(f"{place}: cannot be written: {words}; nothing was committed") from error


def _check_written(report: AddedColumn, written: Source, lance: Any) -> None:
    """Compare what the data set gives back with the gallery; take the column out if they differ."""
    source = LanceSource(report.dataset, SourceOptions(report.column))
    rows = sample_rows(report.rows, _CHECKED_ROWS, _SEED)
    same = source.schema.rows == report.rows
    if same:
        (found, _), (expected, _) = source.read_rows(rows, False), written.read_rows(rows, False)
        same = found.tobytes() == expected.tobytes()
    if not same:
        lance.dataset(str(report.dataset)).drop_columns([report.column])
        raise GateError(f"{report.dataset}: gives back other rows than were written; the column was taken out again")
