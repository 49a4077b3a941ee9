"""A table of an engine that takes vectors by key, as the destination of an upgrade."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fct_infer.connectors.engine_url import EngineUrl
from fct_infer.connectors.keyed_source import KeyedSource, LiveKeys
from fct_infer.connectors.keyed_store import Store, Target
from fct_infer.connectors.keyed_work import KeyedWork
from fct_infer.connectors.options import SourceOptions
from fct_infer.errors import UsageError
from fct_infer.gallery import Source
from fct_infer.gallery.destination import Atomicity, Job, Progress


class KeyedDestination:
    """See :class:`~fct_infer.gallery.destination.Destination`.

    Args:
        url: of the table that is upgraded, with ``column=``, the new version's name.
        open_target: opens the table for reading and the version for writing.

    Raises:
        UsageError: the URL names no column.
    """

    holds_index = False

    def __init__(self, url: EngineUrl, open_target: Callable[[EngineUrl, SourceOptions], tuple[Store, Target]]) -> None:
        self.url, self.name, self._open = url, url.name, open_target
        if not url.column:
            raise UsageError(f"{self.name}: names no version for the new vectors; add &column=embedding_v2")
        self._source: LiveKeys | None = None

    @property
    def target(self) -> Target:
        """Known once the source is."""
        assert self._source is not None
        return self._source.target

    @property
    def atomicity(self) -> Atomicity:
        """See :class:`Target`."""
        return self.target.atomicity

    def adopt(self, source: Source) -> LiveKeys:
        """Return the table as it is upgraded in place.

        Raises:
            UsageError: the source is another table.
        """
        if not isinstance(source, KeyedSource) or source.store.url.place != self.url.place:
            raise UsageError(
                f"{self.name}: a table is upgraded where it is, so DEST has to name the table that SOURCE is, and its "
                f"new column; SOURCE is {source.path}"
            )
        source.close()  # some engines open a database for one purpose at a time
        self._source = LiveKeys(*self._open(self.url, source.options), source.options)
        return self._source

    def check(self, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        """What the engine cannot keep depends on the index, too: see :meth:`promises` and :meth:`open_work`."""

    def check_replaceable(self, *, force: bool) -> None:
        """Refuse names that are taken by something else than an upgrade's result."""
        self.target.check_free()

    def check_room(self, wanted: int) -> None:
        """If the engine's disk fills up, work is kept."""

    def begun_with(self) -> dict[str, Any]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        book = self.target.book()
        return dict(book["identity"]) if book else {}

    def promises(self, job: Job) -> dict[str, str]:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        self._check_index(job)
        return self.target.promises()

    def _check_index(self, job: Job) -> None:
        self.target.check(job.new_dim, job.dtype, *job.index_wanted)

    def open_work(self, job: Job, *, restart: bool, force: bool, progress: Progress | None) -> KeyedWork:
        """See :class:`~fct_infer.gallery.destination.Destination`."""
        self._check_index(job)
        return KeyedWork(self.target, job, restart=restart, progress=progress)
