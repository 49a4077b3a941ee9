"""Ids from a file beside the vectors: one a row, in the order of the rows. They are held in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.options import ID_NAMES, integer_or_text
from fct_infer.connectors.parted import check_range
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery import read_npy
from fct_infer.gallery.source import Part, PartReader, Schema, Source
from fct_infer.identity import ModelId
from fct_infer.storage import ReadFile, location


def read_ids(path: Path, column: str | None) -> NDArray[Any]:
    """Return the ids in a .txt (a line each), .npy, .csv or .parquet file as int64, bytes or str.

    Text that is whole numbers throughout, written as Python writes them, is taken as int64.

    Raises:
        UsageError: another suffix, or a column that is not there.
        GalleryError: the file is malformed.
    """
    readers = {".txt": _read_txt, ".npy": _read_npy, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: ids are read from {', '.join(readers)} files")
    ids = readers[path.suffix.lower()](path, column)
    if not len(ids):
        raise GalleryError(f"{path}: is empty, it holds no ids")
    return ids


def read_truth(path: str | Path) -> NDArray[Any]:
    """Read the ids of the right gallery rows of each query.

    Of a ``.npy`` file (n_q,) or (n_q, t), ids repeated as needed; of a .txt, .csv or .parquet file one a query.

    Returns:
        (n_q, t) integers, bytes or str.

    Raises:
        UsageError: another suffix.
        GalleryError: missing, malformed or truncated, or another dtype or shape; names the file.
    """
    path = location(path)
    truth = read_npy(path) if path.suffix.lower() == ".npy" else read_ids(path, None)
    if truth.ndim not in (1, 2) or truth.dtype.kind not in "iuUS" or 0 in truth.shape:
        raise GalleryError(f"{path}: is {truth.dtype} {truth.shape}, wanted (queries,) or (queries, n) ids")
    return truth.reshape(len(truth), -1)


def _read_npy(path: Path, _column: str | None) -> NDArray[Any]:
    ids = read_npy(path)
    if ids.ndim != 1:
        raise GalleryError(f"{path}: has shape {ids.shape}, wanted (rows,)")
    return integer_or_text(ids, str(path), 0)


def _text(path: Path) -> str:
    with ReadFile(path) as file:
        raw = file.read(file.size)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GalleryError(f"{path}: is not UTF-8 text: {error}") from error


def _read_txt(path: Path, _column: str | None) -> NDArray[Any]:
    lines = _text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return _from_text([line.removesuffix("\r") for line in lines], path)


def _read_csv(path: Path, column: str | None) -> NDArray[Any]:
    try:
        rows = list(csv.reader(io.StringIO(_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise GalleryError(f"{path}: is not CSV: {error}") from error
    if not rows:
        return np.empty(0, np.int64)
    if len(rows[0]) == 1 and (other := next((mark for mark in ";\t" if mark in rows[0][0]), None)):
        raise GalleryError(f"{path}: its fields are divided by {other!r}, wanted commas")
    place = rows[0].index(_choose(path, rows[0], column))
    for row, fields in enumerate(rows[1:]):
        if len(fields) != len(rows[0]):
            raise GalleryError(f"{path}, row {row}: has {len(fields)} fields, the header has {len(rows[0])}")
    return _from_text([fields[place] for fields in rows[1:]], path)


def _read_parquet(path: Path, column: str | None) -> NDArray[Any]:
    from fct_infer.connectors.parquet import opened

    with opened(path) as parquet:
        names = [field.name for field in parquet.schema_arrow if arrays.is_id(field.type)]
        name = _choose(path, names, column)
        found, done = [], 0
        for batch in parquet.iter_batches(65536, columns=[name], use_threads=False):
            found.append(arrays.ids(batch.column(0), str(path), done, path))
            done += batch.num_rows
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _choose(path: Path, names: list[str], column: str | None) -> str:
    if column is not None:
        if column not in names:
            raise UsageError(f"{path}: has no column {column!r}; it has {', '.join(map(repr, names))}")
        return column
    usual = next((name for wanted in ID_NAMES for name in names if name.lower() == wanted), None)
    if usual is None and len(names) != 1:
        raise UsageError(f"{path}: which column holds the ids? Name it with --id-column")
    return usual or names[0]


def _from_text(values: list[str], path: Path) -> NDArray[Any]:
    row = next((row for row, value in enumerate(values) if not value), None)
    if row is not None:
        raise GalleryError(f"{path}, row {row}: has no id")
    try:
        numbers = np.array([int(value) for value in values], np.int64)
        if all(str(number) == value for number, value in zip(numbers.tolist(), values, strict=True)):
            return numbers
    except (ValueError, OverflowError):
        pass
    return arrays.text_ids(values, "U", str(path), 0)


class WithIds(Source):
    """A source (``inner``) whose ids come from an array.

    Raises:
        GalleryError: there are more or fewer ids than rows.
    """

    def __init__(self, source: Source, ids: NDArray[Any], path: Path) -> None:
        if len(ids) != source.schema.rows:
            raise GalleryError(f"{path}: holds {len(ids)} ids, the source has {source.schema.rows} rows")
        self.inner, self._ids, self._ids_path = source, ids, path
        self.path, self.capabilities = source.path, source.capabilities

    @cached_property
    def schema(self) -> Schema:
        """That of the source, with the ids."""
        schema = self.inner.schema
        return replace(schema, id_dtype=self._ids.dtype, columns=schema.columns | {"id": self._ids_path.name})

    @property
    def files(self) -> Mapping[str, Path]:
        """Those of the source, and the ids."""
        return {**self.inner.files, f"ids beside: {self._ids_path.name}": self._ids_path}

    @cached_property
    def model(self) -> ModelId | None:
        """That of the source."""
        return self.inner.model

    def parts(self) -> Sequence[Part]:
        """Those of the source."""
        return self.inner.parts()

    def open_part(self, part: Part) -> PartReader:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return _ReaderWithIds(self.inner.open_part(part), part, self._ids)

    def close(self) -> None:
        """See :class:`~fct_infer.gallery.source.Source`."""
        self.inner.close()

    def where(self, row: int, role: str = "embedding") -> str:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return f"{self._ids_path}, row {row}" if role == "id" else self.inner.where(row, role)

    def column(self, role: str) -> str:
        """See :class:`~fct_infer.gallery.source.Source`."""
        return str(self._ids_path) if role == "id" else self.inner.column(role)

    def check_upgradable(self, indexed: bool) -> None:
        """Check the ids, and the source without them."""
        self.inner.check_upgradable(indexed=False)
        super().check_upgradable(indexed)


class _ReaderWithIds:
    def __init__(self, reader: PartReader, part: Part, ids: NDArray[Any]) -> None:
        self._reader, self._part, self._ids = reader, part, ids
        self.read_into = reader.read_into

    def read_ids(self, start: int, stop: int) -> NDArray[Any]:
        """Return the ids of the part's rows."""
        check_range(start, stop, self._part.rows)
        return self._ids[self._part.first_row + start : self._part.first_row + stop]

    def move_to(self, part: Part) -> bool:
        """See :class:`~fct_infer.gallery.source.PartReader`."""
        if not self._reader.move_to(part):
            return False
        self._part = part
        return True

    def __enter__(self) -> _ReaderWithIds:
        self._reader.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__(None, None, None)
