"""Where an upgrade goes, and the unfinished work that waits there: a folder is one, a table in a database another.

Three things that a folder has apart can be one elsewhere: the rows, the record that a part is done, and the step that
makes all of it what readers see. So they are asked of one object, :class:`Work`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from fct_infer.errors import OutputError
from fct_infer.gallery.manifest import GalleryManifest
from fct_infer.gallery.sink import Receipt, Sink
from fct_infer.gallery.source import Part, Rows, Source
from fct_infer.identity import ModelId

Atomicity: TypeAlias = Literal["rename", "transaction", "commit", "alias", "manifest-last", "none"]
Progress: TypeAlias = Callable[[str, int, int], None]


class Job(Protocol):
    """What a destination has to know of an upgrade; a plan is one."""

    @property
    def gallery(self) -> Source:
        """What is upgraded, as :meth:`Destination.adopt` returned it."""

    @property
    def new_dim(self) -> int:
        """Width of the new rows."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float16."""

    @property
    def new_model(self) -> ModelId | None:
        """Whose vectors the new rows are, as far as that is known."""

    @property
    def reads_side(self) -> bool:
        """Whether the transformation takes the source's side-information."""

    @property
    def is_in_order(self) -> bool:
        """Whether rows are taken in order, as a FAISS index does: after a damaged part all are repeated."""

    @property
    def index_wanted(self) -> tuple[str, str]:
        """The index and the metric that were asked for, as the user wrote them."""

    @property
    def no_device(self) -> str | None:
        """Why it runs on the CPU although a device was looked for; None if that is not so."""

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for unfinished work to be resumed; strict JSON."""

    def transform(self, old: Rows, side: Rows | None) -> Rows:
        """Return the published values (n, new_dim) of rows that came besides those of the parts.

        Raises:
            NonFiniteError: a row, or its result, is not finite.
        """


class Work(Protocol):
    """The unfinished upgrade at its destination; in use by nobody else until it is closed.

    Attributes:
        is_published: an earlier run has published it; :meth:`publish` only cleans up what that has left.
        repeated: parts that were done and found damaged, and which are therefore done again.
    """

    is_published: bool
    repeated: list[str]

    @property
    def is_ready(self) -> bool:
        """Whether all that is left is :meth:`publish`."""

    @property
    def finished(self) -> Mapping[str, Mapping[str, Any]]:
        """What is recorded of the parts that are done, by their names."""

    def open_sink(self) -> Sink:
        """Return what writes rows of parts; a sink is used by one thread, several may be open."""

    def record(self, part: Part, receipt: Receipt) -> None:
        """Record a part as done, whose writer has committed; durable when this returns. From any thread."""

    def infos(self) -> dict[str, Any]:
        """Return what :meth:`finish` was given, once it :attr:`is_ready` or :attr:`is_published`."""

    def settle(self) -> None:
        """Bring what is written up to date with the source, where that lives on while it is upgraded."""

    def read_back(self, rows: int, seed: int) -> tuple[Sequence[int | str], Rows, Rows | None, Rows]:
        """Return some rows drawn at random, to be recomputed.

        Returns:
            Their numbers, or where they lie; ``old`` and ``side`` as they are, ``new`` as it was written.
        """

    def finish(self, infos: dict[str, Any], manifest: GalleryManifest) -> None:
        """Make all durable but the last step: what was done, in strict JSON, and what the result is."""

    def publish(self) -> None:
        """Let readers see it, whole; an earlier version is gone, or kept, as the destination says."""

    def failed_gate(self) -> None:
        """Remember that it may not be published as it is: with other settings it is begun again unasked."""

    def discard(self) -> None:
        """Drop all that is not published."""

    def close(self) -> None:
        """Let go of all but the source; what is recorded stays for the next run."""


class Destination(Protocol):
    """Where the result goes, before there is work.

    Attributes:
        name: the folder, or the URL without a password: what messages and reports say.
        atomicity: how :meth:`Work.publish` keeps its promise.
        holds_index: whether a FAISS index can lie beside the rows; where not, ``index`` settings mean its own.
    """

    atomicity: Atomicity
    holds_index: bool

    @property
    def name(self) -> Path | str:
        """See above."""

    def adopt(self, source: Source) -> Source:
        """Return what is upgraded: the source, or, where it is upgraded in place, as its unfinished work has it.

        That other source takes over what the given one holds, so that closing it closes both.
        """

    def check(self, source: Source, dim: int, dtype: np.dtype[Any]) -> None:
        """Refuse what cannot be carried there, before any work.

        Raises:
            GalleryError, UsageError: what it is.
        """

    def check_replaceable(self, *, force: bool) -> None:
        """Refuse to replace what is there.

        Raises:
            OutputError: it is no result of an upgrade, or is not to be replaced.
        """

    def check_room(self, wanted: int) -> None:
        """Raise a ResourceError if so many bytes are surely too many."""

    def begun_with(self) -> dict[str, Any]:
        """Return the identity of unfinished work, which another process may be at; empty without."""

    def promises(self, job: Job) -> dict[str, str]:
        """Return what a dry run says of it: ``readers``, ``writers``, ``resumes`` ..., a sentence each."""

    def open_work(self, job: Job, *, restart: bool, force: bool, progress: Progress | None) -> Work:
        """Begin, or go on with unfinished work of the same identity.

        Args:
            job: the upgrade.
            restart: drop unfinished work instead.
            force: replace a finished result.
            progress: told of the rows whose finished parts have been checked.

        Raises:
            OutputError: in use, not to be replaced, or unfinished work belongs to other inputs or settings.
        """


class SinkSpec(Protocol):
    """How another process opens what writes rows of parts; picklable."""

    def open(self, source: Source) -> Sink:
        """Return a sink for rows of the source, to be used by one thread."""


@runtime_checkable
class SharedDestination(Protocol):
    """A destination whose :class:`Work` is a :class:`SharedWork`."""

    def check_shared(self) -> None:
        """Raise a UsageError if other processes do not see what it is, before any work."""


@runtime_checkable
class SharedWork(Protocol):
    """Unfinished work that several processes, maybe of several machines, write parts of."""

    def sink_spec(self) -> SinkSpec:
        """Return how they write into what this process has begun."""


def check_same_upgrade(place: str, begun: dict[str, Any], job: Job) -> None:
    """Refuse to go on with work that another upgrade began.

    Args:
        place: where that work is.
        begun: its identity.
        job: the upgrade that found it.

    Raises:
        OutputError: the identities differ; names in what.
    """
    identity = job.identity()
    if different := _differences(begun, identity):
        raise OutputError(
            f"{place} holds unfinished work of another upgrade; different: {'; '.join(different)}. "
            f"{_other_device(begun, identity, job.no_device)}--restart drops it and begins again"
        )


def _other_device(before: dict[str, Any], now: dict[str, Any], no_device: str | None) -> str:
    """Say how to go on if it is the device that changed, for with ``--device auto`` nobody asked for another one."""
    was, new = (each["settings"].get("device") for each in (before, now))
    if was == new:
        return ""
    why = f"Now {no_device}. " if no_device else ""
    return f"{why}A CPU and a device differ in the last bits: --device {was} goes on, "


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Name the leaves in which two identities differ, at most five of them."""
    found: list[str] = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{where}{key} ")
        elif old != new:
            found.append(f"{where}{key} (was {_short(old)}, is {_short(new)})")
    return found[:5] + (["..."] if len(found) > 5 else [])


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 20 else text[:12] + "..."
