"""``upgrade_gallery``: plan, run, verify, publish."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer import __version__, _core
from fct_infer.cuda import cuda_status
from fct_infer.errors import GalleryError, GateError
from fct_infer.gallery import GalleryManifest, Part, Source, SourceReader, sample_rows
from fct_infer.gallery.destination import Destination, Progress, Work
from fct_infer.index import IndexBuilder, WarmStart, exact_neighbours, index_infos, make_builder, tune_nprobe
from fct_infer.machine import usable_cpus
from fct_infer.storage import DigestedFile, write_json
from fct_infer.transformation import Float32Array, Transformation, check_transformation
from fct_infer.upgrade.append import is_up_to_date, published_report, take_over, unchanged_parts
from fct_infer.upgrade.meaning import check_before_work, exact_search, measure_meaning, searched_by_index
from fct_infer.upgrade.plan import SEED, Plan, make_plan
from fct_infer.upgrade.report import Meaning, UpgradeReport, Verification
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.stream import (
    IndexFeeder,
    blocks_of,
    index_rows,
    labels_of_rows,
    run_streams,
    transform_rows,
)
from fct_infer.upgrade.verify import corpus_blocks, read_block, verify_cosine
from fct_infer.upgrade.work import FolderWork, own_work

RECALL_QUERIES = 100
RECALL_K = 10
SAME_BYTES_ON = {  # elsewhere results differ in the last bits
    "cpu": "CPUs with the same instruction set",
    "cuda": "cards of the same model, with the same cuBLASLt; not on a CPU",
}


def upgrade_gallery(
    gallery: str | Path | Source,
    h: Transformation,
    dest: str | Path | Destination,
    *,
    settings: Settings | None = None,
    restart: bool = False,
    force: bool = False,
    append: bool = False,
    progress: Progress | None = None,
) -> UpgradeReport:
    """Apply ``h`` to every row of a gallery, build its index, verify both and publish them as ``dest`` in one step.

    Work happens in ``<dest>.partial``. A run that was killed is resumed by the same call and ends with the same
    embeddings, ids and index, byte for byte, as one that was not.

    Args:
        gallery: folder with ``embeddings/``, and ``side_information/`` and ``ids/`` if there are any; or what
            :func:`fct_infer.open_source` opened.
        h: transformation (arXiv 2112.02805) whose dims fit the gallery.
        dest: folder to create; or the URL of a table and its new column, as text or opened by
            :func:`fct_infer.connectors.open_destination`.
        settings: see :class:`Settings`; the defaults suit most galleries.
        restart: drop unfinished work instead of resuming it.
        force: replace a finished ``dest`` once the new one is complete.
        append: take over from a finished ``dest`` the shards whose files in the gallery have not changed since, and
            transform the others; where rows were only added behind them, its index is extended. If nothing has changed,
            return its report. See :mod:`fct_infer.upgrade.append`.
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
    plan = make_plan(gallery, h, dest, settings or Settings())
    if append:
        unchanged_parts(plan)  # says now what is in the way
        if is_up_to_date(plan):
            return published_report(plan)
    plan.check_resources()
    run = _Run(plan, progress)
    run.timings["plan"] = time.perf_counter() - started
    check_before_work(plan)
    work = plan.destination.open_work(plan, restart=restart, force=force or append, progress=progress)
    try:
        if work.is_published:  # killed after the rename
            report = UpgradeReport.of(work.infos())
            work.discard()
            return report
        if append:
            assert isinstance(work, FolderWork)  # unchanged_parts has refused anything else
            with own_work():
                take_over(plan, work, progress)
        report = run.to_the_end(work)
    except GateError:
        work.failed_gate()
        raise
    except GalleryError:
        work.discard()  # the input has to change, so this work could never be resumed
        plan.check_unchanged()  # a file that is edited while it is read looks like a malformed one
        raise
    finally:
        run.at_the_end.close()
        work.close()
    return report


class _Run:
    """One pass through the stages, with the seconds each took."""

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self.plan, self.progress = plan, progress
        self.timings: dict[str, float] = {}
        self.at_the_end = ExitStack()  # what is to be given back whatever happens
        self.queries: Float32Array = np.empty((0, plan.new_dim), np.float32)  # rows of the gallery that try the index

    def to_the_end(self, work: Work) -> UpgradeReport:
        plan = self.plan
        if work.is_ready:  # killed between the last check and the rename
            report = UpgradeReport.of(work.infos())
            if plan.known and not report.meaning:
                report = replace(report, meaning=self._probe(work, None))
            work.publish()
            return report
        if work.repeated:
            self._report(f"upgrade {len(work.repeated)} damaged shards again", 0)
        done = work.finished
        resumed_rows = sum(part.rows for part in plan.gallery.parts() if part.name in done)
        builder = None
        if plan.index:
            assert isinstance(work, FolderWork)  # what else holds no FAISS index
            with self._timed("train_index"):
                builder = self._trained_builder(work)
            self._in_order(work, builder, set(done))
        else:
            self._stream(work, None, tuple(part for part in plan.gallery.parts() if part.name not in done))
        work.settle()
        with self._timed("verify"):
            try:
                verification = self._verify(work, builder)
            except GateError:
                plan.check_unchanged()  # rows that were edited meanwhile are not what was transformed
                raise
        meaning: tuple[Meaning, ...] = ()
        if plan.known:
            with self._timed("probe"):
                meaning = self._probe(work, builder)
        with self._timed("finish"):
            report = self._finish(work, builder, verification, meaning, resumed_rows)
        work.publish()
        return report

    def _trained_builder(self, work: FolderWork) -> IndexBuilder:
        """Return the empty index, trained on a random sample of transformed rows; trained once per upgrade."""
        plan, index = self.plan, self.plan.index
        assert index is not None
        h, asked = plan.transformation, plan.settings.index_device
        threads = min(
            h.threads, usable_cpus()
        )  # more would only cost FAISS's OpenMP, which ends the process if refused
        builder = make_builder(index, threads, plan.index_device, plan.index_memory, required=asked != "auto")
        self.at_the_end.callback(builder.close)
        trained = work.journal.all("trained")
        if trained:
            builder.load_trained(work.trained_index, trained[-1]["sha256"], trained[-1].get("left_out", 0))
            if "lists" in trained[-1]:
                builder.placement["lists"] = trained[-1]["lists"]
            return builder
        if not builder.needs_training:
            return builder
        self._report("train index", 0)
        rows = sample_rows(plan.gallery.schema.rows, index.training_rows, SEED)
        warm = None
        if plan.old_lists is not None:
            warm = WarmStart(plan.old_lists.of(rows, labels_of_rows(plan, rows)), plan.old_lists.count)
        builder.train(index_rows(transform_rows(plan, rows), plan.settings.metric), warm)
        outcome = {} if warm is None else {"lists": builder.placement["lists"]}
        work.journal.append("trained", **vars(builder.save(work.trained_index)), **outcome)
        return builder

    def _in_order(self, work: FolderWork, builder: IndexBuilder, done: set[str]) -> None:
        """Feed the index all parts in their order, those that are finished from the disk, the others as they are made.

        Of a run that was killed the finished ones come first; of a gallery that grew they may be any.
        """
        self._stream(work, builder, ())
        written = [part for part in self.plan.gallery.parts() if part.name in done]
        for is_done, group in groupby(self.plan.gallery.parts(), key=lambda part: part.name in done):
            parts = tuple(group)
            if is_done:
                missing = tuple(part for part in parts if part.first_row + part.rows > builder.loaded_rows)
                with self._timed("replay"), own_work():
                    self._replay(work, builder, missing, written)
            else:
                self._stream(work, builder, parts)
                written = sorted([*written, *parts], key=lambda part: part.first_row)

    def _replay(self, work: FolderWork, builder: IndexBuilder, finished: tuple[Part, ...], written: list[Part]) -> None:
        """Feed the index parts that an earlier run finished, of all that are written: its own memory of them died."""
        source, names = work.open_written(written), {part.name for part in finished}
        first = {part.name: part.first_row for part in finished}
        parts = [part for part in source.parts() if part.name in names]
        feeder = IndexFeeder(self.plan, finished, builder)
        with closing(feeder), SourceReader(source) as reader:
            for part, start, stop in blocks_of(parts, self.plan.block_rows):
                feeder(read_block(self.plan, reader, part, start, stop))
                self._report("index finished shards", first[part.name] + stop)

    def _stream(self, work: Work, builder: IndexBuilder | None, parts: tuple[Part, ...]) -> None:
        """Transform parts; the seconds of several calls add up."""
        stages = dict.fromkeys(("read", "transform", "write", "index"), 0.0)
        with self._timed("stream"):
            if parts:
                stages |= run_streams(self.plan, parts, work, builder, self.progress)
        self.timings |= {stage: self.timings.get(stage, 0.0) + seconds for stage, seconds in stages.items()}

    def _verify(self, work: Work, builder: IndexBuilder | None) -> Verification:
        plan = self.plan
        self._report("verify", 0)
        verification = verify_cosine(plan, *work.read_back(plan.settings.verify_rows, SEED + 1))
        if builder is None:
            return verification
        assert isinstance(work, FolderWork)
        with own_work():
            written = work.open_written(plan.gallery.parts())
        if builder.rows != written.schema.rows:
            raise GateError(f"the index holds {builder.rows} rows, the gallery {written.schema.rows}")
        rows = sample_rows(written.schema.rows, RECALL_QUERIES, SEED + 2)
        own_ids = labels_of_rows(plan, rows)
        with own_work():
            self.queries = index_rows(written.read_rows(rows, with_side=False)[0], plan.settings.metric)
            recall = self._recall(builder, written, own_ids)
        return replace(verification, queries=len(rows), recall_at_10=recall)

    def _recall(self, builder: IndexBuilder, written: Source, own_ids: NDArray[np.int64]) -> float:
        """Measure recall@10 against exact search over all published rows, choosing nprobe on the way."""
        limit, metric = self.plan.settings.min_recall, self.plan.settings.metric
        blocks = corpus_blocks(self.plan, written, self._report)
        exact = exact_neighbours(self.queries, blocks, RECALL_K + 1, metric, builder.threads)
        recall = tune_nprobe(builder, self.queries, own_ids, exact, limit)
        if limit is not None and not recall >= limit:
            way_out = "--force --restart trains one on all rows" if builder.loaded_rows else "choose another --index"
            raise GateError(f"recall@{RECALL_K} of the index is {recall:.3f}, below {limit}; {way_out}")
        return recall

    def _probe(self, work: Work, builder: IndexBuilder | None) -> tuple[Meaning, ...]:
        """Measure what was written by what is known of the new model."""
        plan = self.plan
        assert isinstance(work, FolderWork)  # of other destinations no probe is taken
        self._report("probe", 0)
        with own_work():
            written = work.open_written(plan.gallery.parts())
            if builder is not None:
                return measure_meaning(plan, written, searched_by_index(builder), "index")
            blocks = corpus_blocks(plan, written, lambda _, rows: self._report("probe", rows))
            search = exact_search(blocks, plan.settings.metric)
            return measure_meaning(plan, written, search, "exact search")

    def _finish(
        self,
        work: Work,
        builder: IndexBuilder | None,
        verification: Verification,
        meaning: tuple[Meaning, ...],
        resumed_rows: int,
    ) -> UpgradeReport:
        """Write index, infos and manifest; after this only the last step is missing."""
        plan = self.plan
        plan.check_unchanged()
        done = work.finished
        files = {
            name: DigestedFile(**file)
            for part in plan.gallery.parts()
            for name, file in done[part.name]["files"].items()
        }
        index = None
        if builder is not None:
            assert isinstance(work, FolderWork)
            self._report("save index", 0)
            path = work.gallery / "index.faiss"
            files["index.faiss"] = builder.save(path)
            index = index_infos(builder, path, self.queries, verification.recall_at_10 or 0.0)
            files["index_infos.json"] = write_json(work.gallery / "index_infos.json", index)
        report = UpgradeReport(
            dest=plan.dest,
            rows=plan.gallery.schema.rows,
            shards=len(plan.gallery.parts()),
            resumed_rows=resumed_rows,
            settings=plan.result_settings(),
            timings=self.timings,
            verification=verification,
            meaning=meaning,
            models=plan.models,
            index=index,
            device=plan.device,
            index_placement=builder.placement if builder else None,
            precision_choice=plan.transformation.choice,
            duplicate_ids=plan.gallery.id_facts.duplicates,
        )
        infos = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **report.as_dict(),
            "limits": {
                "min_cosine": plan.min_cosine,
                "min_recall": plan.settings.min_recall,
                "min_probe": plan.settings.min_probe,
            },
            "execution": {
                "threads": plan.transformation.threads,
                "block_rows": plan.block_rows,
                "shards_at_once": plan.shards_at_once,
                "kernels": plan.transformation.executable.description,
                "device_memory": plan.transformation.device_memory,
                "same_bytes_on": SAME_BYTES_ON[plan.device_kind],
            },
            "inputs": plan.identity(),
            "versions": _versions(plan.device_kind),
        }
        manifest = GalleryManifest(
            rows=plan.gallery.schema.rows,
            dim=plan.new_dim,
            dtype=plan.dtype.name,
            metric=plan.settings.metric,
            transformation=plan.transformation.digest,
            ids=plan.gallery.id_facts.use,
            indexed_rows=builder.rows - builder.left_out if builder else None,
            files=files,
            model=plan.new_model,
            old_model=plan.old_model,
        )
        work.finish(infos, manifest)
        return report

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def _report(self, stage: str, done: int) -> None:
        if self.progress:
            self.progress(stage, done, self.plan.gallery.schema.rows)


def _versions(device_kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"fct_infer": __version__, "onednn": _core.onednn_version, "cpus": os.cpu_count()}
    found["cpu_instruction_set"] = _core.cpu_instruction_set()
    if device_kind == "cuda":
        status = cuda_status()
        found |= {"driver": status.driver, "cublaslt": status.cublaslt}
    for package in ("numpy", "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "nvidia-cublas"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
