"""How another process has the same source, and the same sink: by name, or as they are."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.registry import open_sink, open_source
from fct_infer.errors import GalleryError, UnsupportedError
from fct_infer.gallery.ids import IdFacts
from fct_infer.gallery.sink import NamingSink, Sink
from fct_infer.gallery.source import Schema, Source
from fct_infer.identity import ModelId


@dataclass(frozen=True)
class SourceSpec:
    """What a source is opened by; picklable.

    Attributes:
        path, options: as :func:`~fct_infer.connectors.open_source` took them.
        pickled: in place of them, a source that was made otherwise.
        schema, parts: what has to be found: what it holds, and in how many parts.
        id_facts: what is known of all ids, so that nobody has to read them all again.
    """

    path: Path | str
    options: SourceOptions | None
    pickled: bytes | None
    schema: Schema
    parts: int
    id_facts: IdFacts

    @classmethod
    def of(cls, source: Source) -> SourceSpec:
        """Describe a source; its ids are examined if they have not been.

        Raises:
            UnsupportedError: it cannot be opened elsewhere: it lives in this process, or in a transaction.
            GalleryError: its ids cannot be read.
        """
        path, options = source.opened_by or (source.path, None)
        pickled = None
        if source.opened_by is None:
            try:
                pickled = pickle.dumps(source)
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                raise UnsupportedError(f"{source.path}: another process cannot read it: {error}") from error
        path = path.absolute() if isinstance(path, Path) else path
        if options is not None and options.ids is not None:
            options = replace(options, ids=options.ids.absolute())
        return cls(path, options, pickled, source.schema, len(source.parts()), source.id_facts)

    def open(self) -> Source:
        """Open the source.

        Raises:
            GalleryError: it is not there, or no longer what it was.
            MissingExtraError: this machine lacks the format's library.
        """
        if self.pickled is not None:
            source: Source = pickle.loads(self.pickled)  # of the process that handed out the work
        else:
            source = open_source(self.path, self.options)
        if source.schema != self.schema or len(source.parts()) != self.parts:
            source.close()
            raise GalleryError(f"{self.path}: was changed while the gallery was upgraded, or differs on this machine")
        vars(source)["id_facts"] = self.id_facts
        return source


@dataclass(frozen=True)
class FolderSinkSpec:
    """See :class:`~fct_infer.gallery.destination.SinkSpec`; a folder that all who write into it see by one name.

    Attributes:
        kind: of :data:`~fct_infer.connectors.registry.SINKS`.
        folder: that rows are written into.
        dim, dtype: of the new rows.
        model: whose vectors they are, if that is known.
    """

    kind: str
    folder: Path
    dim: int
    dtype: np.dtype[Any]
    model: ModelId | None = None

    def open(self, source: Source) -> Sink:
        """Return a sink for rows of a source, to be used by one thread."""
        sink = open_sink(self.kind, self.folder, source, self.dim, self.dtype)
        if self.model is not None and isinstance(sink, NamingSink):
            sink.say_model(self.model)
        return sink
