"""New vectors in a collection of their own, in engines that keep collections rather than tables.

TABLE_COLUMN    the new collection: every row whole, with all it carries, and the digest of what it was computed from
TABLE_current   the alias that readers search by, where the engine has aliases
fct_upgrades    a collection with a record for each version
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fct_infer.connectors.engine_url import EngineUrl
from fct_infer.connectors.keyed_store import Store, Target
from fct_infer.errors import OutputError, UsageError
from fct_infer.gallery.destination import Atomicity

DIGEST = "fct_input"
BOOKS = "fct_upgrades"


def refuse_normalised(url: EngineUrl, what: str) -> None:
    """Refuse vectors that the engine gives back normalised, unless the user has said that h takes such.

    Raises:
        UsageError: nobody has said so.
    """
    if url.more.get("normalised") != "yes":
        raise UsageError(
            f"{url.name}: {what} keeps vectors for cosine, and gives them back normalised; h was fitted on vectors as "
            "the model gave them. If it was fitted on normalised ones, say &normalised=yes"
        )


class CollectionTarget(Target):
    """What engines with collections have in common.

    Args:
        url: of the collection and the new version.
        store: the collection.
    """

    carries_payload = True
    has_alias = True

    def __init__(self, url: EngineUrl, store: Store) -> None:
        self.url, self.store = url, store
        self.version = url.column or ""
        self.view = url.view or f"{url.table}_current"

    @property
    def original(self) -> str:
        """The collection as it was."""
        return "original"

    @property
    def atomicity(self) -> Atomicity:  # type: ignore[override]
        """By alias, where there is one; else the collection gets its name when it is complete."""
        return "alias" if self.has_alias else "rename"

    def collection_of(self, version: str) -> str:
        """Return the collection of a version."""
        return self.url.table if version == self.original else f"{self.url.table}_{version}"

    @property
    def side(self) -> str:
        """The collection of the new vectors."""
        return self.collection_of(self.version)

    # -- what an engine does -------------------------------------------------------------------------------------------

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a collection of that name."""

    @abstractmethod
    def make(self, dim: int, metric: str) -> None:
        """Make the collection of the new vectors, empty, like the original."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a collection with all in it."""

    @abstractmethod
    def alias(self) -> str | None:
        """Return the collection that the alias names; None without."""

    @abstractmethod
    def set_alias(self, name: str) -> None:
        """Let the alias name a collection, in one step."""

    @abstractmethod
    def forget(self) -> None:
        """Remove the version's record."""

    # -- Target --------------------------------------------------------------------------------------------------------

    def promises(self) -> dict[str, str]:
        """See :class:`Target`."""
        return {
            "makes": f"collection {self.side!r} with whole rows" + (f", alias {self.view!r}" if self.has_alias else ""),
            "readers": (
                f"who search by {self.view!r} see the one version or the other, whole"
                if self.has_alias
                else f"{self.side!r} gets its name when it is complete; readers choose by name, there is no alias"
            ),
            "writers": "are found by comparing all rows, once more until none differs; what is written after the last "
            "comparison is caught up with by the same command",
            "resumes": "there are no transactions: rows are written by key, so writing them twice changes nothing; "
            "two upgrades of one version notice each other, but may both have written",
        }

    def check_free(self) -> None:
        """See :class:`Target`."""
        taken = [self.side] if self.book() is None and self.has(self.side) else []
        if self.has_alias and self.has(self.view) and self.alias() is None:
            taken.append(self.view)
        elif self.has_alias and (named := self.alias()) not in (None, *map(self.collection_of, self._known())):
            raise OutputError(f"{self.url.name}: the alias {self.view!r} names {named!r}; choose another with &alias=")
        if taken:
            raise OutputError(f"{self.url.name}: {taken[0]!r} exists and was not made by an upgrade of this collection")

    def _known(self) -> list[str]:
        return [self.original, *self.books()]

    def book(self) -> dict[str, Any] | None:
        """See :class:`Target`."""
        return self.books().get(self.version)

    def create(self, dim: int, dtype: np.dtype[Any], metric: str) -> None:
        """See :class:`Target`."""
        if self.has(self.side):  # killed before its record was written, which was refused unless it is ours
            self.remove(self.side)
        self.make(dim, metric)
        if self.has_alias and self.alias() is None:
            self.set_alias(self.url.table)

    def drop(self) -> None:
        """See :class:`Target`."""
        if self.shown() == self.version:
            raise OutputError(f"{self.url.name}: {self.version!r} is what readers see; roll back first")
        if self.has(self.side):
            self.remove(self.side)
        self.forget()

    def show(self, version: str) -> None:
        """See :class:`Target`."""
        self.set_alias(self.collection_of(version))

    def shown(self) -> str | None:
        """See :class:`Target`."""
        named = self.alias() if self.has_alias else None
        return next((each for each in self._known() if self.collection_of(each) == named), None)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nothing: there are none."""
        yield
