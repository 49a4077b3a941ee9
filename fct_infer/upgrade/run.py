"""``upgrade_gallery``: plan, run, verify, publish."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from fct_infer.errors import GalleryError, GateError
from fct_infer.gallery import Part, Source, SourceReader, sample_rows
from fct_infer.gallery.destination import Destination, Progress, SharedWork, Work
from fct_infer.gallery.jobs import Workers
from fct_infer.index import IndexBuilder, WarmStart, make_builder
from fct_infer.machine import usable_cpus
from fct_infer.notebook import shows_progress
from fct_infer.storage import DigestedFile
from fct_infer.transformation import Transformation, check_transformation
from fct_infer.upgrade.append import is_up_to_date, published_report, take_over, unchanged_parts
from fct_infer.upgrade.checks import Checks
from fct_infer.upgrade.executor import Executor, PartDone, Task, ThreadsExecutor
from fct_infer.upgrade.finish import Outcome, finish
from fct_infer.upgrade.index_parts import IndexParts
from fct_infer.upgrade.meaning import check_before_work
from fct_infer.upgrade.plan import SEED, Plan
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.report import Meaning, UpgradeReport
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.stream import IndexFeeder, blocks_of, index_rows, labels_of_rows
from fct_infer.upgrade.verify import read_block
from fct_infer.upgrade.work import FolderWork, own_work


@shows_progress
def upgrade_gallery(
    gallery: str | Path | Source,
    h: Transformation,
    dest: str | Path | Destination,
    *,
    settings: Settings | None = None,
    restart: bool = False,
    force: bool = False,
    append: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> UpgradeReport:
    """Apply ``h`` to every row of a gallery, build its index, verify both and publish them as ``dest`` in one step.

    Work happens in ``<dest>.partial``. A run that was killed is resumed by the same call and ends with the same
    embeddings, ids and index, byte for byte, as one that was not.

    Args:
        gallery: folder with ``embeddings/``, and ``side_information/`` and ``ids/`` if there are any; or what
            :func:`fct_infer.open_source` opened, which stays open unless it is upgraded in place.
        h: transformation (arXiv 2112.02805) whose dims fit the gallery.
        dest: folder to create; or the URL of a table and its new column, as text or opened by
            :func:`fct_infer.connectors.open_destination`.
        settings: see :class:`Settings`; the defaults suit most galleries.
        restart: drop unfinished work instead of resuming it.
        force: replace a finished ``dest`` once the new one is complete.
        append: take over from a finished ``dest`` the shards whose files in the gallery have not changed since, and
            transform the others; where rows were only added behind them, its index is extended. If nothing has changed,
            return its report. See :mod:`fct_infer.upgrade.append`.
        executor: who runs the parts; by default threads of this process, see :mod:`fct_infer.upgrade.executor`.
        progress: called as ``progress(stage, rows_done, rows)``.

    Raises:
        GalleryError: the gallery is malformed, does not fit ``h``, or holds a row that is not finite.
        UsageError: a setting makes no sense.
        GateError: verification failed; nothing was published, the work is kept.
        ResourceError: not enough disk or memory; what is finished is kept.
        OutputError: ``dest`` exists, is in use, or holds unfinished work of another upgrade.
    """
    check_transformation(h)
    started = time.perf_counter()
    with make_plan(gallery, h, dest, settings or Settings(), append=append) as plan:
        executor = executor or ThreadsExecutor()
        executor.check(plan)
        if append:
            unchanged_parts(plan)  # says now what is in the way
            if is_up_to_date(plan):
                return published_report(plan)
        plan.check_resources()
        run = _Run(plan, executor, progress)
        run.timings["plan"] = time.perf_counter() - started
        check_before_work(plan)
        return run.upgrade(restart=restart, force=force, append=append)


class _Run:
    """One pass through the stages, with the seconds each took."""

    def __init__(self, plan: Plan, executor: Executor, progress: Progress | None) -> None:
        self.plan, self.executor, self.progress = plan, executor, progress
        self.timings: dict[str, float] = {}
        self.at_the_end = ExitStack()  # what is to be given back whatever happens
        self.workers = self.at_the_end.enter_context(ExitStack())  # those elsewhere, as long as parts are to be done
        self.checks = Checks(plan, self._report)

    def upgrade(self, *, restart: bool, force: bool, append: bool) -> UpgradeReport:
        """Begin the work, or go on with it, until it is published."""
        plan, progress = self.plan, self.progress
        work = plan.destination.open_work(plan, restart=restart, force=force or append, progress=progress)
        try:
            if work.is_published:  # killed after the rename
                report = UpgradeReport.of(work.infos())
                work.publish()
                return report
            if append:
                assert isinstance(work, FolderWork)  # unchanged_parts has refused anything else
                with own_work():
                    take_over(plan, work, progress)
            return self._to_the_end(work)
        except GateError:
            work.failed_gate()
            raise
        except GalleryError:
            work.discard()  # the input has to change, so this work could never be resumed
            plan.check_unchanged()  # a file that is edited while it is read looks like a malformed one
            raise
        finally:
            self.at_the_end.close()
            work.close()

    def _to_the_end(self, work: Work) -> UpgradeReport:
        plan = self.plan
        if work.is_ready:  # killed between the last check and the rename
            report = UpgradeReport.of(work.infos())
            if plan.known and not report.meaning:
                report = replace(report, meaning=self.checks.probe(work, None))
            work.publish()
            return report
        if work.repeated:
            self._report(f"upgrade {len(work.repeated)} damaged shards again", 0)
        done = work.finished
        resumed_rows = sum(part.rows for part in plan.gallery.parts() if part.name in done)
        builder = self._run_parts(work, set(done))
        work.settle()
        with self._timed("verify"):
            try:
                verification = self.checks.verify(work, builder)
            except GateError:
                plan.check_unchanged()  # rows that were edited meanwhile are not what was transformed
                raise
        meaning: tuple[Meaning, ...] = ()
        if plan.known:
            with self._timed("probe"):
                meaning = self.checks.probe(work, builder)
        if builder is not None:
            self._report("save index", 0)
        outcome = Outcome(
            verification, meaning, builder, self.checks.queries, resumed_rows, self.timings, self.executor.name
        )
        report = finish(plan, work, outcome)
        work.publish()
        return report

    def _run_parts(self, work: Work, done: set[str]) -> IndexBuilder | None:
        """Do what is not done, and return the index with all rows, if there is to be one."""
        todo = tuple(part for part in self.plan.gallery.parts() if part.name not in done)
        if todo and isinstance(self.executor, Workers):  # that there are none is said before an index is trained
            self.workers.enter_context(self.executor.session())
        if not self.plan.index:
            self._stream(work, todo)
            self._let_workers_go(work)
            return None
        assert isinstance(work, FolderWork)  # what else holds no FAISS index
        with self._timed("train_index"):
            builder, trained = self._trained_builder(work)
        self.checks.begin(builder)
        index = IndexParts(self.plan, work, builder, trained, self.checks.watch)
        if self.executor.feeds_index and not index.is_sharded:
            self._in_order(work, builder, done)
            return builder
        self._stream(work, todo, index=index)
        self._let_workers_go(work)
        with self._timed("index"), own_work():
            if (gathered := index.gathered(self._report)) is not None:
                return gathered
            parts = self.plan.gallery.parts()
            self._replay(work, builder, parts, parts)
        return builder

    def _let_workers_go(self, work: Work) -> None:
        """Of threads nothing is left; a worker elsewhere may have been given up with a file half written."""
        self.workers.close()
        if not self.executor.feeds_index and isinstance(work, FolderWork):
            work.drop_unrecorded()

    def _trained_builder(self, work: FolderWork) -> tuple[IndexBuilder, DigestedFile | None]:
        """Return the empty index, trained on a random sample of transformed rows, once per upgrade; and its file."""
        plan, index = self.plan, self.plan.index
        assert index is not None
        h, asked = plan.transformation, plan.settings.index_device
        threads = min(
            h.threads, usable_cpus()
        )  # more would only cost FAISS's OpenMP, which ends the process if refused
        builder = make_builder(index, threads, plan.index_device, plan.index_memory, required=asked != "auto")
        self.at_the_end.callback(builder.close)
        if trained := work.journal.all("trained"):
            record = trained[-1]
            file = DigestedFile(record["size"], record["sha256"])
            builder.load_trained(work.trained_index, file.sha256, record.get("left_out", 0))
            if "lists" in record:
                builder.placement["lists"] = record["lists"]
            return builder, file
        if not builder.needs_training:
            return builder, None
        self._report("train index", 0)
        rows = sample_rows(plan.gallery.schema.rows, index.training_rows, SEED)
        warm = None
        if plan.old_lists is not None:
            warm = WarmStart(plan.old_lists.of(rows, labels_of_rows(plan, rows)), plan.old_lists.count)
        builder.train(index_rows(plan.transform_rows(rows), plan.metric), warm)
        outcome = {} if warm is None else {"lists": builder.placement["lists"]}
        file = builder.save(work.trained_index)
        work.journal.append("trained", **vars(file), **outcome)
        return builder, file

    def _in_order(self, work: FolderWork, builder: IndexBuilder, done: set[str]) -> None:
        """Feed the index all parts in their order, those that are finished from the disk, the others as they are made.

        Of a run that was killed the finished ones come first; of a gallery that grew they may be any.
        """
        self._stream(work, ())
        written = [part for part in self.plan.gallery.parts() if part.name in done]
        for is_done, group in groupby(self.plan.gallery.parts(), key=lambda part: part.name in done):
            parts = tuple(group)
            if is_done:
                missing = tuple(part for part in parts if part.first_row + part.rows > builder.loaded_rows)
                with self._timed("replay"), own_work():
                    self._replay(work, builder, missing, written)
            else:
                self._stream(work, parts, builder)
                written = sorted([*written, *parts], key=lambda part: part.first_row)

    def _replay(
        self, work: FolderWork, builder: IndexBuilder, finished: Sequence[Part], written: Sequence[Part]
    ) -> None:
        """Feed the index parts that an earlier run finished, of all that are written: its own memory of them died."""
        source, names = work.open_written(written), {part.name for part in finished}
        first = {part.name: part.first_row for part in finished}
        parts = [part for part in source.parts() if part.name in names]
        feeder = IndexFeeder(self.plan, finished, builder, self.checks.watch)
        with closing(feeder), SourceReader(source) as reader:
            for part, start, stop in blocks_of(parts, self.plan.block_rows):
                feeder(read_block(self.plan, reader, part, start, stop))
                self._report("index finished shards", first[part.name] + stop)

    def _stream(
        self,
        work: Work,
        parts: tuple[Part, ...],
        builder: IndexBuilder | None = None,
        index: IndexParts | None = None,
    ) -> None:
        """Have parts done; the seconds of several calls add up."""

        def record(done: PartDone) -> None:
            if index is not None:
                index.record(done)
            work.record(done.part, done.files)

        sink = work.sink_spec() if isinstance(work, SharedWork) else None
        stages = dict.fromkeys(("read", "transform", "write", "index"), 0.0)
        order = None if index is None or self.executor.feeds_index else index.order_of_workers
        task = Task(self.plan, parts, work.open_sink, record, builder, self.checks.watch, order, self.progress, sink)
        with self._timed("stream"):
            if parts:
                stages |= self.executor.run(task)
        self.timings |= {stage: self.timings.get(stage, 0.0) + seconds for stage, seconds in stages.items()}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def _report(self, stage: str, done: int) -> None:
        if self.progress:
            self.progress(stage, done, self.plan.gallery.schema.rows)
