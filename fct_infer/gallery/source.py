"""What rows are read from, whatever format they lie in: a source has a schema and parts, and parts are read by rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GalleryError
from fct_infer.gallery.fingerprint import fingerprint, packed_fingerprints
from fct_infer.gallery.sampling import sample_rows
from fct_infer.identity import ModelId, NamedModel, model_id

if TYPE_CHECKING:
    from fct_infer.gallery.ids import IdFacts

Rows: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Schema:
    """What a source holds, known before any row is read.

    Attributes:
        rows: over all parts.
        old_dim, side_dim: widths; ``side_dim`` is None without side-information.
        embedding_dtype, side_dtype: float32 or float16, as :meth:`PartReader.read_into` gives them.
        id_dtype: int64 (uint64 in a folder that holds that), bytes or str; a str or bytes dtype of size 0 if the width
            is known only from the rows. None without ids, then the row number stands for the id.
        columns: the name of what is read in each role (``embedding``, ``side``, ``id``), for the roles that have one.
        other_columns: what else lies there and is not read.
    """

    rows: int
    old_dim: int
    embedding_dtype: np.dtype[Any]
    side_dim: int | None = None
    side_dtype: np.dtype[Any] | None = None
    id_dtype: np.dtype[Any] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    other_columns: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's vectors as they are read."""
        side = self.side_dim * self.side_dtype.itemsize if self.side_dim and self.side_dtype else 0
        return self.old_dim * self.embedding_dtype.itemsize + side


@dataclass(frozen=True, slots=True)
class Part:
    """What is read, written and repeated as one: a shard, some row groups, a range of rows. Picklable.

    Attributes:
        name: unique within the source, and sorted as the parts are; a file name without its suffix.
        rows, first_row: ``rows`` rows, the first of them number ``first_row`` over all parts.
    """

    name: str
    rows: int
    first_row: int


class PartReader(Protocol):
    """The rows of one part; a context manager. Reading forward is fast in every format, going back may begin again."""

    def read_into(self, start: int, stop: int, old: Rows, side: Rows | None) -> None:
        """Fill ``old`` (stop - start, old_dim) and ``side`` (stop - start, side_dim) with the part's rows.

        Raises:
            ArrayError: a buffer does not fit the schema.
            GalleryError: rows cannot be read as vectors; names the file and the row.
        """
        ...

    def read_ids(self, start: int, stop: int) -> Rows:
        """Return the ids of rows ``start`` to ``stop``; row numbers over all parts if there are none."""
        ...

    def move_to(self, part: Part) -> bool:
        """Read another part from now on, if it lies in what is open; False, and nothing has changed, if it does not."""
        ...

    def __enter__(self) -> PartReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


Sample: TypeAlias = tuple[NDArray[np.int64], Rows, Rows | None]
"""Sorted row numbers (n,), ``old`` (n, old_dim), ``side`` (n, side_dim) or None."""


class Source(ABC):
    """Where vectors lie; a context manager, closed by whoever opened it.

    Attributes:
        path: what the user named; of what lies in a database its URL, without a password.
        schema: what lies there.
        capabilities: ``random_rows``: any row is read about as fast as the next one; without, what lies before it (in
            its row group, batch or chunk) is decoded, too.
        opened_by: what another process opens it by, with ``open_source``; None where it was made otherwise.
    """

    path: Path | str
    capabilities: frozenset[str] = frozenset({"random_rows"})
    opened_by: ClassVar[tuple[Path | str, Any] | None] = None

    def __repr__(self) -> str:
        schema = self.schema
        side = f" + {schema.side_dim}" if schema.side_dim is not None else ""
        ids = "none" if schema.id_dtype is None else schema.id_dtype.name
        rows = f"{schema.rows:,} rows of {schema.old_dim}{side} {schema.embedding_dtype.name}, ids {ids}"
        return f"{type(self).__name__}({self.path}: {rows}, {len(self.parts()):,} parts)"

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """What it holds."""

    @property
    @abstractmethod
    def files(self) -> Mapping[str, Path]:
        """The files it is read from, by the names they have in its fingerprint."""

    def rows_of_first(self, files: int) -> int:
        """Return how many rows, from the first on, come from so many first files alone, and are so cut into parts.

        A source whose files all decide about all rows has none before its last one.
        """
        return self.schema.rows if files == len(self.files) else 0

    def added_files(self) -> list[Path]:
        """Return files that have come since the source was opened, and would be read if it were opened now."""
        return []

    @cached_property
    def model(self) -> ModelId | None:
        """Whose vectors the rows are; None where nothing says so."""
        return None

    def say_model(self, model: NamedModel | None) -> Self:
        """Take a user's word for whose vectors the rows are, whatever the source says; None leaves it."""
        if model is not None:
            vars(self)["model"] = model_id(model)  # takes the place of what is read, in frozen sources, too
        return self

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Return the parts in the order of their rows; the same for the same files."""

    @abstractmethod
    def open_part(self, part: Part) -> PartReader:
        """Return a reader; several may be open at once, each used by one thread."""

    def close(self) -> None:  # noqa: B027 - of files nothing is open between reads
        """Let go of what is held between reads, such as a connection; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def where(self, row: int, role: str = "embedding") -> str:
        """Return where a row, a number over all parts, lies: ``x.parquet, row group 3, row 777`` (within the group)."""

    def column(self, role: str) -> str:
        """Return what is read in a role, for messages: ``x.parquet, column 'vector'``."""
        name = self.schema.columns.get(role)
        return f"{self.path}, column {name!r}" if name else str(self.path)

    def ids_file(self, part: Part) -> Path | None:
        """Return a .npy file that holds the part's ids and nothing else, to be copied; None if they are to be read."""
        return None

    def fingerprint(self) -> Mapping[str, dict[str, Any]]:
        """Return the :func:`fingerprint` of every file by its name, and how rows come from them; strict JSON."""
        of_files = ((name, fingerprint(path)) for name, path in self.files.items())
        return packed_fingerprints(chain(of_files, self._reading().items()))

    def _reading(self) -> dict[str, dict[str, Any]]:
        """Return what else than the files decides the rows and the parts, by a name that no file has."""
        return {"read as": {**self.schema.columns, "parts": len(self.parts())}}

    @cached_property
    def id_facts(self) -> IdFacts:
        """What is to be known of all ids; read once, at first use."""
        from fct_infer.gallery.ids import examine_ids

        return examine_ids(self)

    def check_upgradable(self, indexed: bool) -> None:
        """Check what only an upgrade needs: that ids can be told from "nothing found".

        Args:
            indexed: whether an index is built, whose searches say "nothing found" by an id.

        Raises:
            GalleryError: an id means "nothing found": -1, or an empty text; or ids are binary, of several lengths.
        """
        if indexed and self.id_facts.use == "binary" and self.id_facts.uneven:
            raise GalleryError(
                f"{self.column('id')}: ids are bytes with control characters, of several lengths, which an index gives "
                "back as long as the longest; store them as wide as each other, or as text"
            )
        if indexed and self.id_facts.nothing is not None:
            raise GalleryError(f"{self.id_facts.nothing}, which searches give for nothing found; give it another id")

    def part_of(self, row: int) -> Part:
        """Return the part that holds a row, a number over all parts."""
        parts = self.parts()
        return parts[max(0, bisect_right(parts, row, key=lambda each: each.first_row) - 1)]

    def read_rows(self, rows: NDArray[np.int64], with_side: bool = True) -> tuple[Rows, Rows | None]:
        """See :func:`fct_infer.gallery.rows.read_rows`."""
        from fct_infer.gallery.rows import read_rows

        return read_rows(self, rows, with_side)

    def sample(self, rows: int, seed: int) -> Sample:
        """Return ``rows`` rows drawn without repetition, all if there are no more."""
        chosen = sample_rows(self.schema.rows, rows, seed)
        return chosen, *self.read_rows(chosen)


class SourceReader:
    """Parts of a source, read one after the other; closed when the next one is opened, unless that lies in the same."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._part: Part | None = None
        self._reader: PartReader | None = None

    def at(self, part: Part) -> PartReader:
        """Return the reader of a part; valid until another part is asked for."""
        if self._reader is not None and self._part is not part and not self._reader.move_to(part):
            self.close()
        if self._reader is None:
            self._reader = self._source.open_part(part)
        self._part = part
        return self._reader

    def close(self) -> None:
        """Close what is open; a second call does nothing."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.__exit__(None, None, None)

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
