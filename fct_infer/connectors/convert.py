"""From any source to the gallery folder that an upgrade takes, in one pass and in bounded memory."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.parted import PART_BYTES
from fct_infer.connectors.registry import open_source
from fct_infer.connectors.report import Report
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery import NpyShardWriter, write_npy
from fct_infer.gallery.model_file import write_model
from fct_infer.gallery.output import new_gallery
from fct_infer.gallery.source import Part, Schema, Source, SourceReader
from fct_infer.identity import model_text

Progress: TypeAlias = Callable[[str, int, int], None]

BLOCK_BYTES = 4 << 20  # read and written at once


@dataclass(frozen=True)
class ConvertReport(Report):
    """Result of :func:`convert`.

    Attributes:
        gallery: the published folder.
        rows, shards: its size.
        old_dim, side_dim: widths; ``side_dim`` is None without side-information.
        dtype: of the embeddings.
        ids: dtype of the ids; None without.
        columns: role (embedding, side, id) to the name that was read in it.
        left_out: columns that were not read.
        model: whose vectors they are.
        seconds: of reading and writing.
    """

    gallery: Path
    rows: int
    shards: int
    old_dim: int
    side_dim: int | None
    dtype: str
    ids: str | None
    columns: dict[str, str]
    left_out: tuple[str, ...]
    model: str
    seconds: float

    @property
    def next_command(self) -> str:
        """What to type next."""
        return f"fct-upgrade-gallery {shlex.quote(str(self.gallery))} --transformation BUNDLE -o DEST"

    def hints(self) -> dict[str, str]:
        """See :class:`~fct_infer.connectors.report.Report`."""
        return {"next_command": self.next_command}


def convert(
    source: str | Path,
    dest: str | Path,
    options: SourceOptions | None = None,
    *,
    rows_per_shard: int | None = None,
    dtype: Literal["float32", "float16"] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write the rows of ``source`` as a gallery folder ``dest``, published in one step when it is whole.

    Args:
        source: what :func:`~fct_infer.connectors.open_source` opens.
        dest: folder to create.
        options: columns, ids and what is allowed.
        rows_per_shard: by default about 128 MiB.
        dtype: of embeddings and side-information; by default as they are read.
        force: replace a gallery at ``dest``.
        progress: called as ``progress(stage, rows_done, rows)``.

    Raises:
        GalleryError: a row is no finite vector of the right width, or overflows ``dtype``; names file and row.
        UsageError: columns must be named, or a value makes no sense.
        OutputError: ``dest`` exists or is in use.
        ResourceError: disk full or another I/O error.
    """
    options = options or SourceOptions()
    if rows_per_shard is not None and rows_per_shard < 1:
        raise UsageError(f"rows_per_shard is {rows_per_shard}, wanted at least 1")
    started = time.perf_counter()
    with (
        open_source(source, options) as opened,
        new_gallery(dest, _inputs(opened, options), force=force) as folder,
    ):
        schema, model = opened.schema, opened.model
        shards = _Shards(folder, schema, dtype, rows_per_shard)
        with shards, SourceReader(opened) as reader:
            done = 0
            for part in opened.parts():
                for old, side, ids in _blocks(schema, reader, part):
                    shards.write(
                        _finite(opened, old, done, shards.dtype, "embedding"),
                        None if side is None else _finite(opened, side, done, shards.side_dtype, "side-information"),
                        ids,
                    )
                    done += len(old)
                    if progress:
                        progress("convert", done, schema.rows)
        if model is not None:
            write_model(folder, model)
    return ConvertReport(
        Path(dest),
        schema.rows,
        shards.count,
        schema.old_dim,
        schema.side_dim,
        shards.dtype.name,
        shards.id_dtype,
        schema.columns,
        schema.other_columns,
        model_text(model),
        time.perf_counter() - started,
    )


def _inputs(source: Source, options: SourceOptions) -> list[Path]:
    return ([source.path] if isinstance(source.path, Path) else []) + ([options.ids] if options.ids else [])


def _blocks(
    schema: Schema, reader: SourceReader, part: Part
) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]]:
    """Yield old, side and ids of a part's rows, some at a time; the buffers are used again."""
    rows = min(part.rows, rows_of_block(schema))
    old = np.empty((rows, schema.old_dim), schema.embedding_dtype)
    side = None if schema.side_dim is None else np.empty((rows, schema.side_dim), schema.side_dtype)
    for start in range(0, part.rows, rows):
        count = min(rows, part.rows - start)
        extra = None if side is None else side[:count]
        reader.at(part).read_into(start, start + count, old[:count], extra)
        ids = None if schema.id_dtype is None else reader.at(part).read_ids(start, start + count)
        yield old[:count], extra, ids


def rows_of_block(schema: Schema) -> int:
    """Return the rows to read at once."""
    return max(1, min(65536, BLOCK_BYTES // (schema.old_dim * schema.embedding_dtype.itemsize)))


def _finite(source: Source, rows: NDArray[Any], first: int, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Return rows in ``dtype``, all of them finite."""
    with np.errstate(over="ignore"):
        narrowed = rows.astype(dtype, copy=False)
    if not np.isfinite(narrowed).all():
        row = int(np.argmin(np.isfinite(narrowed).all(axis=1)))
        fault = f"does not fit {dtype}" if np.isfinite(rows[row]).all() else "holds NaN or infinity"
        raise GalleryError(f"{source.where(first + row)}: {what} {fault}")
    return narrowed


class _Shards:
    """The gallery's files: vectors are written as they come, ids once their shard is whole."""

    def __init__(self, folder: Path, schema: Schema, dtype: str | None, rows_per_shard: int | None) -> None:
        self._folder, self._schema = folder, schema
        self.dtype = np.dtype(dtype or schema.embedding_dtype)
        self.side_dtype = np.dtype(dtype or schema.side_dtype or self.dtype)
        row_bytes = schema.old_dim * self.dtype.itemsize + (schema.side_dim or 0) * self.side_dtype.itemsize
        self._rows_per_shard = rows_per_shard or max(1, PART_BYTES // row_bytes)
        self._stack, self._left, self._written = ExitStack(), 0, 0
        self._old: NpyShardWriter | None = None
        self._side: NpyShardWriter | None = None
        self._ids: list[NDArray[Any]] = []
        self.count, self.id_dtype = 0, None if schema.id_dtype is None else schema.id_dtype.name

    def write(self, old: NDArray[Any], side: NDArray[Any] | None, ids: NDArray[Any] | None) -> None:
        """Append rows, over as many shards as they take."""
        start = 0
        while start < len(old):
            if self._left == 0:
                self._begin()
            stop = min(len(old), start + self._left)
            for writer, rows in ((self._old, old), (self._side, side)):
                if writer is not None and rows is not None:
                    writer.write_rows(rows[start:stop])
            if ids is not None:
                self._ids.append(np.array(ids[start:stop]))
            self._left -= stop - start
            self._written += stop - start
            start = stop
            if self._left == 0:
                self._end()

    def _begin(self) -> None:
        schema, name = self._schema, f"{self.count:06d}.npy"
        self._left = rows = min(self._rows_per_shard, schema.rows - self._written)
        path = self._folder / "embeddings" / name
        self._old = self._writer(path, rows, schema.old_dim, self.dtype)
        if schema.side_dim is not None:
            path = self._folder / "side_information" / name
            self._side = self._writer(path, rows, schema.side_dim, self.side_dtype)

    def _writer(self, path: Path, rows: int, dim: int, dtype: np.dtype[Any]) -> NpyShardWriter:
        writer = NpyShardWriter(path, rows, dim, dtype)
        self._stack.enter_context(writer)
        return writer

    def _end(self) -> None:
        for writer in (self._old, self._side):
            if writer is not None:
                writer.commit()
        if self._ids:
            write_npy(self._folder / "ids" / f"{self.count:06d}.npy", np.concatenate(self._ids))
        self._stack.close()
        self._old, self._side, self._ids = None, None, []
        self.count += 1

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
