"""Where new rows go, part by part, in whatever format; the npy folder is the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fct_infer.gallery.layout import Gallery
from fct_infer.gallery.source import Part, Source, SourceReader
from fct_infer.gallery.writer import NpyShardWriter, write_ids
from fct_infer.identity import ModelId
from fct_infer.storage import DigestedFile

Receipt: TypeAlias = dict[str, DigestedFile]
"""The files a part was written to, by their names inside the gallery; all are durable."""


class PartWriter(Protocol):
    """One part, written in the order of its rows."""

    def write(self, block: NDArray[Any]) -> None:
        """Append a C-contiguous (n, dim) block of the sink's dtype.

        Raises:
            ArrayError: it does not fit, or the part has fewer rows.
            GalleryError: what is carried along cannot be read from the source.
            ResourceError: disk full or another I/O error.
        """
        ...

    def commit(self) -> Receipt:
        """Make the part durable with all that is carried along; all rows must have been written."""
        ...

    def abort(self) -> None:
        """Drop what was written, unless it is committed; never raises."""
        ...


class Sink(Protocol):
    """A folder that new rows are written to; used by one thread, as many sinks may be open as there are threads."""

    def open_part(self, part: Part) -> PartWriter:
        """Return the writer of a part of the source; one at a time."""
        ...

    def as_source(self) -> Source:
        """Return what is committed as a source that has the same parts, by name.

        Raises:
            GalleryError: something is missing or malformed.
        """
        ...

    def close(self) -> None:
        """Close what is read of the source; a second call does nothing."""
        ...


@runtime_checkable
class NamingSink(Protocol):
    """A sink whose files themselves have a place for whose vectors they hold."""

    def say_model(self, model: ModelId) -> None:
        """Say so in every part that is opened from now on."""
        ...


class FolderSink:
    """The project's own layout: ``embeddings/NAME.npy`` and ``ids/NAME.npy`` for a part of that name.

    Args:
        folder: to write into.
        source: whose ids are carried along.
        dim, dtype: of the new rows.
    """

    def __init__(self, folder: Path, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        self._folder, self._source, self._dim, self._dtype = folder, source, dim, dtype
        self._ids = SourceReader(source)

    def open_part(self, part: Part) -> PartWriter:
        """See :class:`Sink`."""
        writer = NpyShardWriter(self._folder / "embeddings" / f"{part.name}.npy", part.rows, self._dim, self._dtype)
        return _FolderPart(writer, self._folder, self._source, self._ids, part)

    def as_source(self) -> Gallery:
        """See :class:`Sink`."""
        return Gallery.open(self._folder)

    def close(self) -> None:
        """See :class:`Sink`."""
        self._ids.close()


class _FolderPart:
    def __init__(self, writer: NpyShardWriter, folder: Path, source: Source, ids: SourceReader, part: Part) -> None:
        self._folder, self._source, self._ids, self._part = folder, source, ids, part
        self._writer = writer
        self.write, self.abort = writer.write_rows, writer.abort

    def commit(self) -> Receipt:
        files = {f"embeddings/{self._part.name}.npy": self._writer.commit()}
        return files | ids_receipt(self._folder, self._source, self._ids, self._part)


def ids_receipt(folder: Path, source: Source, reader: SourceReader, part: Part) -> Receipt:
    """Write ``ids/NAME.npy`` of a part, which an index reads; an empty receipt where there are no ids."""
    if source.schema.id_dtype is None:
        return {}
    name = f"ids/{part.name}.npy"
    return {name: write_ids(folder / name, source, reader, part)}
