"""Who runs the parts of a plan: threads of this process, or workers elsewhere; one process alone keeps the books.

An executor reads, transforms and writes parts. The driver, which called it, records what is durable, builds or gathers
the index, verifies and publishes. So a part may be done twice, and a worker may die at any moment: what counts is what
was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Protocol

from fct_infer.errors import ResourceError
from fct_infer.gallery import Part, Sink
from fct_infer.gallery.destination import Progress, SinkSpec
from fct_infer.gallery.sink import Receipt
from fct_infer.index import IndexBuilder
from fct_infer.index.parts import IndexOrder
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.stream import Outlet, Watch, kept_on_device, run_stream


@dataclass(frozen=True)
class PartDone:
    """A part that is durable; picklable.

    Attributes:
        part: which.
        files: what it was written to.
        index: :meth:`~fct_infer.index.parts.IndexPart.as_record` of its part of the index; None without one.
        seconds: at work, by stage.
        worker: who did it, for messages.
    """

    part: Part
    files: Receipt
    index: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""


@dataclass(frozen=True)
class Task:
    """Parts of a plan that are to be done.

    Attributes:
        plan: of the upgrade.
        parts: in the order of their rows.
        open_sink: returns what a thread of this process writes to.
        record: to be told of every part once it is durable, from any thread of this process; durable when it returns.
        builder: of the index, to be fed in order, for an executor that feeds it; else None.
        watch: to be shown the rows that the builder is fed with.
        index: what a worker elsewhere builds the part of the index by that belongs to a part; None: it builds none.
        progress: told of rows, which are counted over the whole gallery.
        sink: opens what a worker elsewhere writes to; None where only this process can.
    """

    plan: Plan
    parts: Sequence[Part]
    open_sink: Callable[[], Sink]
    record: Callable[[PartDone], None]
    builder: IndexBuilder | None = None
    watch: Watch | None = None
    index: IndexOrder | None = None
    progress: Progress | None = None
    sink: SinkSpec | None = None


class Executor(Protocol):
    """Runs parts.

    Attributes:
        name: for people.
        feeds_index: whether it feeds the index in order as rows are made; else its workers build parts of it, or the
            driver makes it of what is written.
    """

    name: str
    feeds_index: bool

    def check(self, plan: Plan) -> None:
        """Refuse a plan that cannot be run here, before any work.

        Raises:
            UsageError, UnsupportedError: why.
        """

    def run(self, task: Task) -> dict[str, float]:
        """Upgrade all parts of a task; when this returns or raises, nobody writes any more whom the driver would heed.

        Returns:
            Seconds at work by stage: ``read``, ``transform``, ``write``, ``index``.

        Raises:
            GalleryError: an input cannot be read, or a row of it (or its result) is not finite.
            ResourceError: the disk is full or fails.
        """


class ThreadsExecutor:
    """Threads of this process: a pipeline, or as many at once as are planned."""

    name = "threads"
    feeds_index = True

    def check(self, plan: Plan) -> None:
        """Whatever can be planned can be run."""

    def run(self, task: Task) -> dict[str, float]:
        """See :class:`Executor`; of several parts at once the seconds are their mean."""
        shares = equal_shares(task.parts, task.plan.shards_at_once)
        streams = _Streams(task, max(1, task.plan.transformation.threads // len(shares)))
        if len(shares) == 1:
            return streams.run(task.parts)
        pool, futures = ThreadPoolExecutor(len(shares)), []
        try:
            for share in shares:
                try:
                    futures.append(pool.submit(streams.run, share))
                except RuntimeError as error:  # Python's word for a limit on threads
                    raise ResourceError(f"shards_at_once is {len(shares)}, but {error}") from error
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # all have ended, or one has failed, or we were interrupted: the others end early
            streams.stop.set()
            while not all(future.done() for future in futures):
                with suppress(BaseException):  # interrupted once more
                    wait(futures)
            pool.shutdown()
        times = [future.result() for future in futures]
        return {stage: sum(each[stage] for each in times) / len(times) for stage in times[0]}


class _Streams:
    """The streams of one task, which share what stops them and the rows that are counted."""

    def __init__(self, task: Task, threads: int) -> None:
        self._task, self._threads = task, threads
        self.stop = Event()
        self._count = RowCount(task)

    def run(self, parts: Sequence[Part]) -> dict[str, float]:
        task = self._task
        outlet = Outlet(task.open_sink(), self._record, self._count, self.stop)
        kept = kept_on_device(task.plan, task.builder)
        return run_stream(
            task.plan,
            parts,
            outlet,
            threads=self._threads,
            builder=task.builder,
            watch=task.watch,
            keep_on_device=kept,
        )

    def _record(self, part: Part, files: Receipt) -> None:
        self._task.record(PartDone(part, files))


class RowCount:
    """Rows done so far, by whichever thread, for the progress line; those of other parts are done."""

    def __init__(self, task: Task) -> None:
        self._rows, self._progress, self._lock = task.plan.gallery.schema.rows, task.progress, Lock()
        self._done = self._rows - sum(part.rows for part in task.parts)

    def __call__(self, rows: int) -> None:
        """Count rows."""
        with self._lock:
            self._done += rows
            if self._progress:
                self._progress("transform", self._done, self._rows)


def equal_shares(parts: Sequence[Part], count: int) -> list[list[Part]]:
    """Share out parts so that each share has about as many rows; at most ``count``, none empty, each in order."""
    shares: list[list[Part]] = [[] for _ in range(min(count, len(parts)))]
    rows = [0] * len(shares)
    for part in sorted(parts, key=lambda part: part.rows, reverse=True):
        lightest = rows.index(min(rows))
        shares[lightest].append(part)
        rows[lightest] += part.rows
    return [sorted(share, key=lambda part: part.first_row) for share in shares]
