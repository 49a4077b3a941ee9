"""Parquet as what is published: a file a part, with every other column of a Parquet source carried along."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import arrow_arrays as arrays
from fct_infer.connectors.arrow_arrays import MODEL_KEY
from fct_infer.connectors.ids import WithIds
from fct_infer.connectors.options import EMBEDDING_NAMES, ID_NAMES, SourceOptions
from fct_infer.connectors.parquet import ParquetSource
from fct_infer.connectors.parted import Forward
from fct_infer.errors import ArrayError, GalleryError, UsageError
from fct_infer.gallery.sink import PartWriter, Receipt, ids_receipt
from fct_infer.gallery.source import Part, Source, SourceReader
from fct_infer.identity import ModelId
from fct_infer.storage import DigestedFile, DurableWriter

_GROUP_BYTES = 16 << 20  # of a row group, before it is encoded; all of it is in memory at once


class ParquetSink:
    """``embeddings/NAME.parquet`` for a part of that name, and ``ids/NAME.npy``, which an index reads.

    The new vectors, a list of fixed size, take the place of the old ones under their name; where the source is Parquet
    too, all its other columns stay as they are, with the schema's metadata.

    Args:
        folder: to write into.
        source: whose ids and other columns are carried along.
        dim, dtype: of the new rows.
    """

    def __init__(self, folder: Path, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        self._folder, self._source, self._dim, self._dtype = folder, source, dim, dtype
        self._ids = SourceReader(source)
        table = source.inner if isinstance(source, WithIds) else source
        self._origin = table if isinstance(table, ParquetSource) else None
        if self._origin is not None:
            _check_carried(self._origin)
        if hidden := [part.name for part in source.parts() if part.name[0] in "._"]:
            raise UsageError(f"shard {hidden[0]}: Parquet folders are read without such names; publish npy")
        self._others: Forward | None = None
        self._columns = self._named()
        self.schema = self._new_schema()
        self.plain = _leaves_but_vectors(self.schema)
        row_bytes = dim * dtype.itemsize
        self.rows_of_group = max(
            1, _GROUP_BYTES // max(row_bytes, self._origin.stored_row_bytes if self._origin else 0)
        )

    def say_model(self, model: ModelId) -> None:
        """See :class:`~fct_infer.gallery.sink.NamingSink`."""
        said = json.dumps(model.as_dict()).encode()
        self.schema = self.schema.with_metadata({**(self.schema.metadata or {}), MODEL_KEY: said})

    def open_part(self, part: Part) -> PartWriter:
        """See :class:`~fct_infer.gallery.sink.Sink`."""
        return _PartWriter(self, self._folder / "embeddings" / f"{part.name}.parquet", part, self._dim, self._dtype)

    def as_source(self) -> WrittenParquet:
        """See :class:`~fct_infer.gallery.sink.Sink`."""
        return WrittenParquet(self._folder / "embeddings", self._columns)

    def close(self) -> None:
        """See :class:`~fct_infer.gallery.sink.Sink`."""
        self._ids.close()
        if self._others is not None:
            self._others.close()

    def _named(self) -> dict[str, str]:
        """Return the columns of the new vectors and of the ids; those of the source, where it has them."""
        taken = [] if self._origin is None else self._origin.column_names
        columns = {} if self._origin is None else {"embedding": self._origin.columns.embedding}
        columns.setdefault("embedding", _free(EMBEDDING_NAMES, taken))
        if self._source.schema.id_dtype is not None:
            own = None if self._origin is not self._source else self._source.schema.columns["id"]
            others = [name for name in taken if name.lower() in ID_NAMES]
            if own is None and others:
                raise UsageError(
                    f"ids lie beside, and {self._source.path} has a column {others[0]!r}, which would be read "
                    "as the ids of DEST; publish npy, or take that column and leave --ids out"
                )
            columns["id"] = own or _free(ID_NAMES, taken)
        return columns

    def _new_schema(self) -> Any:
        arrow = arrays.pyarrow()
        new = arrow.list_(arrow.field("element", arrow.from_numpy_dtype(self._dtype)), self._dim)
        schema = arrow.schema([]) if self._origin is None else _without_model(self._origin.arrow_schema)
        name = self._columns["embedding"]
        if name in schema.names:
            place = schema.get_field_index(name)
            schema = schema.set(place, arrow.field(name, new, False, _metadata(schema.field(place))))
        else:
            schema = schema.append(arrow.field(name, new, False))
        if "id" in self._columns and self._columns["id"] not in schema.names:
            schema = schema.insert(0, arrow.field(self._columns["id"], self._id_type(), False))
        return schema

    def _id_type(self) -> Any:
        arrow, dtype = arrays.pyarrow(), self._source.schema.id_dtype
        assert dtype is not None
        if dtype.kind in "iu":
            return arrow.from_numpy_dtype(dtype)
        if dtype.kind == "U":
            return arrow.string()
        return arrow.binary((self._source.id_facts.use == "binary" and dtype.itemsize) or -1)

    def table(self, part: Part, start: int, vectors: NDArray[Any]) -> Any:
        """Return the rows of a part from ``start`` on as an Arrow table of the schema, around their new vectors."""
        arrow, stop = arrays.pyarrow(), start + len(vectors)
        name = self._columns["embedding"]
        kind, values = self.schema.field(name).type, arrow.array(vectors.reshape(-1))
        found = {name: arrow.FixedSizeListArray.from_arrays(values, type=kind)}
        if self._origin is not None and len(self._origin.column_names) > 1:
            self._others = self._others or self._origin.open_others()
            pieces = list(self._others.pieces(part.first_row + start, part.first_row + stop))
            others = arrow.Table.from_batches(pieces)
            found |= {name: others.column(name) for name in others.column_names}
        if "id" in self._columns and self._columns["id"] not in found:
            ids = self._ids.at(part).read_ids(start, stop)
            found[self._columns["id"]] = _ids_column(ids, self._id_type())
        columns = [_cast(found[field.name], field.type) for field in self.schema]
        return arrow.Table.from_arrays(columns, schema=self.schema)

    def ids_of(self, part: Part) -> Receipt:
        """Write the ids of a part for the index."""
        return ids_receipt(self._folder, self._source, self._ids, part)


class _PartWriter:
    """Gathers blocks until they are a row group, so that the file does not depend on how rows were cut into blocks."""

    def __init__(self, sink: ParquetSink, path: Path, part: Part, dim: int, dtype: np.dtype[Any]) -> None:
        self._sink, self._part = sink, part
        self._rows = np.empty((min(part.rows, sink.rows_of_group), dim), dtype)
        self._gathered, self._written = 0, 0
        self._file = DurableWriter(path)
        self._output = _Output(self._file)
        try:
            self._writer = arrays.pyarrow("parquet").ParquetWriter(
                self._output,
                sink.schema,
                use_dictionary=sink.plain,  # vectors do not repeat: to look for it costs five times the rest
                compression=dict.fromkeys(sink.plain, "snappy") or "none",
            )
        except BaseException:
            self._file.abort()
            raise

    def write(self, block: NDArray[Any]) -> None:
        done = 0
        if self._written + self._gathered + len(block) > self._part.rows:
            raise ArrayError(f"{self._file.path}: more rows than the {self._part.rows} promised")
        while done < len(block):
            count = min(len(block) - done, len(self._rows) - self._gathered)
            self._rows[self._gathered : self._gathered + count] = block[done : done + count]
            self._gathered += count
            done += count
            if self._gathered == len(self._rows):
                self._write_group()

    def _write_group(self) -> None:
        if self._gathered:
            table = self._sink.table(self._part, self._written, self._rows[: self._gathered])
            self._writer.write_table(table, row_group_size=self._gathered)
            self._written += self._gathered
            self._gathered = 0

    def commit(self) -> Receipt:
        self._write_group()
        if self._written != self._part.rows:
            raise ArrayError(f"{self._file.path}: {self._written} rows written, promised {self._part.rows}")
        self._writer.close()
        file: DigestedFile = self._file.commit()
        return {f"embeddings/{self._file.path.name}": file} | self._sink.ids_of(self._part)

    def abort(self) -> None:
        self._output.is_dropped = True
        with suppress(Exception):  # whatever state it is in; not closed, it writes its footer when it is collected
            self._writer.close()
        self._file.abort()


class _Output(io.RawIOBase):
    """What pyarrow writes to; closing it leaves the file open, which is committed or dropped by its owner."""

    def __init__(self, file: DurableWriter) -> None:
        super().__init__()
        self._file, self.is_dropped = file, False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data) if self.is_dropped else self._file.write(data)


class WrittenParquet(ParquetSource):
    """Files that a sink wrote; a part is a file."""

    def __init__(self, folder: Path, columns: Mapping[str, str]) -> None:
        super().__init__(folder, SourceOptions(columns["embedding"], id_column=columns.get("id")))

    def _cut(self, groups: Any) -> tuple[Part, ...]:
        parts: dict[str, Part] = {}
        for group in self._groups:
            name = group.file.stem
            before = parts.get(name)
            parts[name] = Part(
                name, group.rows + (before.rows if before else 0), before.first_row if before else group.first_row
            )
        return tuple(parts.values())


def _leaves_but_vectors(schema: Any) -> list[str]:
    """Return the paths of all columns as Parquet has them, one for each field of a nested one; vectors left out."""
    parquet, empty = arrays.pyarrow("parquet"), io.BytesIO()
    parquet.write_metadata(schema, empty)
    vectors = tuple(f"{field.name}." for field in schema if arrays.is_vector(field.type))
    paths = (column.path for column in parquet.ParquetFile(empty).schema)
    return [path for path in paths if not path.startswith(vectors)]


def _check_carried(source: ParquetSource) -> None:
    """Refuse columns that would be lost without a word.

    Raises:
        GalleryError: a file has other columns than the first one, or the names of folders are columns.
    """
    if source.different is not None:
        raise GalleryError(
            f"{source.different}: has other columns than {source.first_file}, so not all can be carried along; "
            "choose the format npy"
        )
    partition = next((part for name in source.files for part in name.split("/")[:-1] if "=" in part), None)
    if partition is not None:
        raise GalleryError(
            f"{source.path}: the folder {partition} is a column, which is not carried along; choose the format npy"
        )


def _without_model(schema: Any) -> Any:
    """Return a schema that does not say of the new vectors that they are the old model's."""
    if MODEL_KEY not in (schema.metadata or {}):
        return schema
    return schema.with_metadata({key: value for key, value in schema.metadata.items() if key != MODEL_KEY})


def _metadata(field: Any) -> dict[bytes, bytes]:
    """Return a field's metadata without the extension type that its old values were of."""
    return {name: value for name, value in (field.metadata or {}).items() if not name.startswith(b"ARROW:extension")}


def _ids_column(ids: NDArray[Any], kind: Any) -> Any:
    """Return ids as a column; those of bytes whole, with the NULs at the end of a fixed width."""
    values = [each.ljust(kind.byte_width, b"\0") for each in ids.tolist()] if _is_fixed(kind) else ids.tolist()
    return arrays.pyarrow().array(values, kind)


def _is_fixed(kind: Any) -> bool:
    return bool(arrays.pyarrow("types").is_fixed_size_binary(kind))


def _free(names: tuple[str, ...], taken: list[str]) -> str:
    lower = {name.lower() for name in taken}
    more = (f"{names[0]}_{number}" for number in count(2))
    return next(name for name in chain(names, more) if name not in lower)


def _cast(column: Any, wanted: Any) -> Any:
    return column if column.type == wanted else column.cast(wanted)
