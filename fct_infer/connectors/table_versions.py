"""Versions of the embeddings of a table in a database: which there are, which one readers see, and how to go back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.registry import engine_module
from fct_infer.errors import OutputError
from fct_infer.gallery.places import scheme_of

if TYPE_CHECKING:
    from fct_infer.connectors.keyed_store import Target


@dataclass(frozen=True)
class VersionFacts:
    """One version of a table's embeddings.

    Attributes:
        version: its column.
        state: ``original``, ``begun``, ``gate failed``, ``ready`` or ``published``.
        is_current: whether the view shows it.
        published: when, in ISO 8601; None for the original and for what is not.
        waiting: rows that were written since and have no new vector yet.
    """

    version: str
    state: str
    is_current: bool
    published: str | None = None
    waiting: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as strict JSON."""
        return asdict(self)


def versions(url: str) -> list[VersionFacts]:
    """Return the versions of a table's embeddings, the original first, then in the order in which they were begun.

    Raises:
        OutputError: no upgrade was begun there.
        UsageError: the URL is none.
    """
    if module := _with_own_versions(url):
        return list(module.versions(url))
    with _opened(url, None) as (target, books):
        return _listed(target, books)


def _with_own_versions(url: str) -> Any:
    """Return the module of an engine that records versions in a way of its own; None of the others."""
    scheme = scheme_of(url)
    if scheme == "lancedb":
        from fct_infer.connectors import lancedb_table

        return lancedb_table
    from fct_infer.connectors import postgres, postgres_versions

    return postgres_versions if scheme in postgres.SCHEMES else None


def _listed(target: Target, books: dict[str, dict[str, Any]]) -> list[VersionFacts]:
    shown, original = target.shown(), target.original
    known = [
        VersionFacts(version, book["state"], version == shown, book["published"], target.waiting(version))
        for version, book in books.items()
    ]
    return [VersionFacts(original, "original", shown in (original, None)), *known]


def rollback(url: str, to: str | None = None) -> str:
    """Let readers see another version; nothing is lost, so the same call goes forward again.

    Args:
        url: of the table.
        to: the version; by default the one that was published before the one that is shown now, or the original.

    Returns:
        The version that is shown now.

    Raises:
        OutputError: nothing was published, or there is no such version, or it is not published.
        UsageError: the URL is none, or the engine has nothing that could show one version or another.
    """
    if module := _with_own_versions(url):
        return str(module.rollback(url, to))
    with _opened(url, to) as (target, books):
        wanted = chosen_version(target.url.name, _listed(target, books), to)
        with target.transaction():
            target.show(wanted)
    return wanted


def chosen_version(name: str, known: list[VersionFacts], to: str | None) -> str:
    """Return which version a rollback goes to; see :func:`rollback`."""
    published = [each for each in known if each.state in ("original", "published")]
    current = next(each for each in known if each.is_current)
    before = [each for each in published if (each.published or "") < (current.published or "")]
    wanted = to or (max(before, key=lambda each: each.published or "").version if before else None)
    if wanted is None:
        raise OutputError(f"{name}: shows {current.version!r}, before which there was none")
    if wanted not in [each.version for each in published]:
        have = ", ".join(repr(each.version) for each in published)
        raise OutputError(f"{name}: has no published version {wanted!r}; it has {have}")
    return wanted


class _KeyedVersion:
    """The version that a URL's ``column`` names, whose vectors are replaced by better ones."""

    def __init__(self, url: str) -> None:
        with _opened(url, None) as (target, books):
            book = books.get(target.url.column or "")
            if book is None or book["state"] != "published":
                raise OutputError(f"{target.url.name}: has no published version {target.url.column!r}")
        self._url = url

    def marks(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """See :class:`TakesRows`."""
        order = np.argsort(ids)
        found = np.empty(len(ids), np.int64)
        with _opened(self._url, None) as (target, _):
            found[order] = target.marks(ids[order])
        return found

    def upsert(
        self,
        ids: NDArray[Any],
        vectors: NDArray[Any],
        *,
        replacing: Literal["old"] = "old",
        marks: NDArray[np.int64] | None = None,
    ) -> int:
        """See :class:`TakesRows`."""
        order = np.argsort(ids)
        with _opened(self._url, None) as (target, _), target.transaction():
            return target.replace(ids[order], vectors[order], None if marks is None else marks[order])


@runtime_checkable
class TakesRows(Protocol):
    """What takes rows of the new model in place of transformed ones."""

    def marks(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Return what tells the transformed vectors of some rows (n,) from those of the same rows, changed; 0: none.

        To be asked before a row is embedded: a vector by another mark then is not of the item that was embedded.
        """

    def upsert(
        self,
        ids: NDArray[Any],
        vectors: NDArray[Any],
        *,
        replacing: Literal["old"] = "old",
        marks: NDArray[np.int64] | None = None,
    ) -> object:
        """Replace the vectors of those rows that are there and have not been written since.

        Args:
            ids, vectors: (n,), each once, and (n, dim).
            replacing: transformed vectors.
            marks: (n,) those that :meth:`marks` gave; rows with another one now are left alone. None: without asking.
        """


def open_version(url: str) -> TakesRows:
    """Return a published version of a table, to replace its vectors by those that a new model itself has made.

    Raises:
        OutputError: there is none that is published.
        UsageError: the engine has no transactions, so that a row written meanwhile could be written over.
    """
    from fct_infer.connectors.postgres import SCHEMES

    if scheme_of(url) in SCHEMES:
        from fct_infer.connectors.postgres_replace import PostgresVersion

        return PostgresVersion(url)
    return _KeyedVersion(url)


def drop(url: str) -> None:
    """Remove the version that a URL's ``column`` names.

    Raises:
        OutputError: there is none, or readers see it.
    """
    if module := _with_own_versions(url):
        module.drop(url)
        return
    with _opened(url, None) as (target, books):
        if target.url.column not in books:
            raise OutputError(f"{target.url.name}: has no version {target.url.column!r} that an upgrade made")
        if target.shown() == target.url.column:
            raise OutputError(f"{target.url.name}: {target.url.column!r} is what readers see; roll back first")
        target.drop()


@contextmanager
def _opened(url: str, to: str | None) -> Iterator[tuple[Target, dict[str, dict[str, Any]]]]:
    """Open a table whose versions are recorded, with the columns that were read when they were made."""
    module = engine_module(url)
    parsed = module.parse(url)
    books = module.books_of(url)
    if not books:
        raise OutputError(f"{parsed.name}: no upgrade was begun here")
    known = books.get(parsed.column or to or "") or next(iter(books.values()))
    store, target = module.open_target(parsed, SourceOptions(*known["options"]))
    try:
        yield target, books
    finally:
        target.close()
        store.close()
