"""What rows are read from, whatever format they lie in: a source has a schema and parts, and parts are read by rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Schema:
    """What a source holds, known before any row is read.

    Attributes:
        rows: over all parts.
        old_dim, side_dim: widths; ``side_dim`` is None without side-information.
        embedding_dtype, side_dtype: float32 or float16, as :meth:`PartReader.read_into` gives them.
        id_dtype: int64, bytes or str; a str or bytes dtype of size 0 if the width is known only from the rows. None
            without ids, then the row number stands for the id.
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


@dataclass(frozen=True)
class Part:
    """What is read, written and repeated as one: a shard, a row group, a file. Picklable.

    Attributes:
        name: unique within the source, and sorted as the parts are.
        rows, first_row: ``rows`` rows, the first of them number ``first_row`` over all parts.
        key: where it lies, for the source that made it.
    """

    name: str
    rows: int
    first_row: int
    key: tuple[str | int, ...] = ()


class PartReader(Protocol):
    """The rows of one part; a context manager. Reading forward is fast in every format, going back may begin again."""

    def read_into(self, start: int, stop: int, old: NDArray[Any], side: NDArray[Any] | None) -> None:
        """Fill ``old`` (stop - start, old_dim) and ``side`` (stop - start, side_dim) with the part's rows.

        Raises:
            ArrayError: a buffer does not fit the schema.
            GalleryError: rows cannot be read as vectors; names the file and the row.
        """
        ...

    def read_ids(self, start: int, stop: int) -> NDArray[Any]:
        """Return the ids of rows ``start`` to ``stop``; row numbers over all parts if there are none."""
        ...

    def __enter__(self) -> PartReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


Sample: TypeAlias = tuple[NDArray[np.int64], NDArray[Any], NDArray[Any] | None]
"""Sorted row numbers (n,), ``old`` (n, old_dim), ``side`` (n, side_dim) or None."""


class Source(Protocol):
    """Where vectors lie."""

    schema: Schema

    def parts(self) -> Sequence[Part]:
        """Return the parts in the order of their rows; the same for the same files."""
        ...

    def open_part(self, part: Part) -> PartReader:
        """Return a reader; several may be open at once, each used by one thread."""
        ...

    def sample(self, rows: int, seed: int) -> Sample:
        """Return ``rows`` rows drawn without repetition, all if there are no more."""
        ...

    def where(self, row: int) -> str:
        """Return where a row, a number over all parts, lies: ``x.parquet, row group 3, row 777`` (within the group)."""
        ...
