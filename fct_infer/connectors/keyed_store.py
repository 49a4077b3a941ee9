"""What an engine has to do so that its tables are read by key and upgraded where they are.

A :class:`Store` gives rows by their keys. A :class:`Target` takes new vectors by key, each with a digest of what it was
computed from. From these two alone follow reading in parts, resuming, catching up with what was changed, and verifying:
a new vector is right if and only if its digest is that of its row.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.engine_url import EngineUrl
from fct_infer.connectors.options import Columns, SourceOptions, check_shape, find_columns, read_dtype
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery.destination import Atomicity
from fct_infer.gallery.source import Rows
from fct_infer.storage.closing import closed_if_refused

Keys: TypeAlias = NDArray[Any]
"""(n,) int64 or str, sorted, each once."""


@dataclass(frozen=True)
class Field:
    """A column of vectors.

    Attributes:
        name: of the column.
        dim: its width.
        stored, dtype: as it lies there, and as it is read.
    """

    name: str
    dim: int
    stored: np.dtype[Any]
    dtype: np.dtype[Any]


def make_field(name: str, dim: int, stored: np.dtype[Any], where: str, allow_cast: bool) -> Field:
    """Return a field whose width and dtype are checked.

    Raises:
        GalleryError: it is empty, too wide, or would be narrowed unasked.
    """
    text = f"{where}, column {name!r}"
    check_shape(1, dim, text)
    return Field(name, dim, stored, read_dtype(stored, text, allow_cast))


def find_keyed_columns(
    url: EngineUrl, vectors: Sequence[str], scalars: Sequence[str], options: SourceOptions
) -> Columns:
    """Return which columns are read, one of them the key; see :func:`fct_infer.connectors.options.find_columns`."""
    if options.ids is not None:
        raise UsageError(f"{url.name}: rows have an order only by their key, so no ids lie beside")
    columns = find_columns(url.name, vectors, scalars, options)
    if columns.id is None:
        raise UsageError(f"{url.name}: which column tells its rows apart? Name it with --id-column")
    return columns


@dataclass(frozen=True)
class Page:
    """Some rows.

    Attributes:
        keys: (n,) in the order that was asked for; rows that are not there are left out.
        old: (n, old_dim).
        side: (n, side_dim); None if it is not read.
        payload: what a row carries besides, a strict JSON object each; empty if it was not asked for.
    """

    keys: Keys
    old: Rows
    side: Rows | None = None
    payload: Sequence[Mapping[str, Any]] = ()

    def digests(self) -> NDArray[np.int64]:
        """Return 64 bits of each row that differ where anything differs that its new vector, or copy, depends on."""
        old = np.ascontiguousarray(self.old)
        side = None if self.side is None else np.ascontiguousarray(self.side)
        found = np.empty(len(old), np.int64)
        for row in range(len(old)):
            state = blake2b(old[row].tobytes(), digest_size=8)
            if side is not None:
                state.update(side[row].tobytes())
            if self.payload:
                state.update(json.dumps(self.payload[row], sort_keys=True, ensure_ascii=True).encode())
            found[row] = int.from_bytes(state.digest(), "little", signed=True)
        return found


def page_of(
    wanted: Keys, keys: Sequence[Any] | Keys, old: Rows, side: Rows | None, payload: Sequence[Any] = ()
) -> Page:
    """Return rows that came in any order in that of the keys that were asked for.

    Raises:
        GalleryError: a key came twice, or one that was not asked for.
    """
    found = np.asarray(keys, wanted.dtype)
    if len(foreign := found[~np.isin(found, wanted)]):
        raise GalleryError(
            f"key {foreign[0].item()!r} was found by another one: its column takes them for equal, as where case does "
            "not count; name another key"
        )
    order = np.argsort(found, kind="stable")
    found = found[order]
    if len(found) and (twice := found[1:] == found[:-1]).any():
        raise GalleryError(f"key {found[1:][twice][0].item()!r} is there twice")
    rows = [payload[place] for place in order] if len(payload) else []
    return Page(found, old[order], None if side is None else side[order], rows)


def check_keys(keys: Keys, url: EngineUrl, name: str) -> Keys:
    """Return keys sorted.

    Raises:
        GalleryError: there are none, or one is there twice.
    """
    if not len(keys):
        raise GalleryError(f"{url.name}: is empty, it holds no rows")
    keys = np.sort(keys)
    if (twice := keys[1:] == keys[:-1]).any():
        raise GalleryError(
            f"{url.name}: {name!r} does not tell the rows apart, {keys[1:][twice][0].item()!r} is there twice; name "
            "another key with --id-column"
        )
    return keys


def chunks(keys: Keys, rows: int) -> Iterator[Keys]:
    """Yield keys, at most ``rows`` at a time."""
    for start in range(0, len(keys), rows):
        yield keys[start : start + rows]


class Store(ABC):
    """A table or collection, open for reading from any thread.

    Attributes:
        url: that names it.
        columns: what is read in which role.
        fields: the vectors by role, ``embedding`` and ``side`` if there is any.
        page_rows: rows that are asked for at once.
    """

    url: EngineUrl
    columns: Columns
    fields: dict[str, Field]
    page_rows = 8192

    @abstractmethod
    def keys(self) -> Keys:
        """Return the keys of all rows, sorted."""

    @abstractmethod
    def page(self, keys: Keys, *, with_side: bool, with_payload: bool = False) -> Page:
        """Return the rows of some keys, those of them that are there.

        Raises:
            GalleryError: a row has no vector, or one of another width; names its key.
            ResourceError: the engine cannot be asked.
        """

    @property
    def files(self) -> dict[str, Path]:
        """Files whose changes say that rows may have changed."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what else makes it the same table."""
        return {}

    def where(self, key: Any) -> str:
        """Return where a row lies, for people: ``items.id = 42``."""
        return f"{self.url.table}.{self.columns.id} = {key}"

    @abstractmethod
    def close(self) -> None:
        """Let go; a second call does nothing."""


class Target(ABC):
    """The new version of a table's embeddings, in the same database.

    Attributes:
        url: of the table, and the version's name as ``column``.
        atomicity: how :meth:`show` keeps its promise.
        follows_writers: whether the engine itself notes which rows are written, so that none is missed.
        carries_payload: whether new rows are whole rows, and what is not vectors is copied.
    """

    url: EngineUrl
    atomicity: Atomicity = "transaction"
    follows_writers = False
    carries_payload = False

    @property
    @abstractmethod
    def original(self) -> str:
        """What the version is called that was there before all upgrades."""

    def waiting(self, version: str) -> int:
        """Return how many rows were written since a version was made, where the engine notes that."""
        return 0

    def check(self, dim: int, dtype: np.dtype[Any], index: str, metric: str) -> None:
        """Refuse what the engine cannot keep, before any work: all hold float32 and make indexes of their own, or none.

        Raises:
            UsageError: it cannot.
        """
        if dtype != np.float32:
            raise UsageError(f"{self.url.name}: holds new vectors as float32, {dtype} was asked for")
        if index not in ("auto", "none"):
            raise UsageError(f"{self.url.name}: index {index!r} is for folders; wanted auto or none")

    @abstractmethod
    def check_free(self) -> None:
        """Raise an OutputError if a name is taken by something that no upgrade made."""

    @abstractmethod
    def promises(self) -> dict[str, str]:
        """Return what a dry run says: ``makes``, ``readers``, ``writers``, ``resumes``."""

    @abstractmethod
    def book(self) -> dict[str, Any] | None:
        """Return what is recorded of the version; None if it was not begun."""

    @abstractmethod
    def write_book(self, book: dict[str, Any]) -> None:
        """Record it, strict JSON, durably."""

    @abstractmethod
    def create(self, dim: int, dtype: np.dtype[Any], metric: str) -> None:
        """Make the version, empty, and let readers see the original by the view or alias if there is none yet."""

    @abstractmethod
    def drop(self) -> None:
        """Remove the version and its record."""

    @abstractmethod
    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """Return the keys that have a new vector, sorted, and the digest of what each was computed from."""

    @abstractmethod
    def upsert(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """Write new vectors by key, over those that are there; durable when :meth:`transaction` ends, or at once."""

    def marks(self, keys: Keys) -> NDArray[np.int64]:
        """Return the digest of what the new vector of each key was computed from; 0 where there is none.

        Raises:
            UsageError: the engine has no transactions, so nothing is replaced there.
        """
        raise self._has_no_transactions()

    def replace(self, keys: Keys, new: Rows, marks: NDArray[np.int64] | None = None) -> int:
        """Put better vectors in place of new ones, of rows that have one; in a transaction. Return of how many.

        Args:
            keys, new: sorted, each once, and their vectors.
            marks: if given, only rows whose :meth:`marks` are still these.

        Raises:
            UsageError: the engine has no transactions.
        """
        raise self._has_no_transactions()

    def _has_no_transactions(self) -> UsageError:
        return UsageError(f"{self.url.name}: vectors are replaced in PostgreSQL, SQLite and DuckDB only")

    @abstractmethod
    def delete(self, keys: Keys) -> None:
        """Delete the new vectors of some keys."""

    @abstractmethod
    def vectors(self, keys: Keys) -> Page:
        """Return new vectors as they lie there, as ``old`` of a page."""

    def changed(self) -> Keys:
        """Return the keys that were written since; of a target that follows writers."""
        return np.empty(0, np.int64)

    def settled(self, keys: Keys) -> None:
        """Forget that some rows were written; of a target that follows writers."""
        del keys

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Do something as one, where the engine can, with writers held up where there may be some."""

    @abstractmethod
    def show(self, version: str) -> None:
        """Let readers see a version; the original by the name of its column."""

    @abstractmethod
    def shown(self) -> str | None:
        """Return which version readers see; None if nothing says so."""

    @abstractmethod
    def books(self) -> dict[str, dict[str, Any]]:
        """Return the records of all versions of the table, by version, in the order in which they were begun."""

    @abstractmethod
    def close(self) -> None:
        """Let go; a second call does nothing."""


_S = TypeVar("_S", bound=Store)


def with_target(store: _S, make: Callable[[EngineUrl, _S], Target]) -> tuple[_S, Target]:
    """Return a store and the target made of it; the store is closed where there is none."""
    with closed_if_refused(store):
        return store, make(store.url, store)
