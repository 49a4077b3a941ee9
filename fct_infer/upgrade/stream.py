"""The stages around the C++ pipeline: read blocks of parts, write new parts, feed the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event, Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.device_arrays import CardRows
from fct_infer.errors import ArrayError, FctError, GalleryError, NonFiniteError, ResourceError
from fct_infer.gallery import Part, PartWriter, SourceReader, read_row_ids
from fct_infer.gallery.destination import Progress, Work
from fct_infer.index import IndexBuilder
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.plan import Plan

Rows: TypeAlias = NDArray[Any]
_LEAST_SQUARE = 4e-24  # of a norm that is surely above 1e-12, whatever float32 rounds


def blocks_of(parts: Sequence[Part], block_rows: int) -> Iterator[tuple[Part, int, int]]:
    """Yield (part, start, stop): the order in which every stage sees the rows. A block never spans two parts."""
    for part in parts:
        for start in range(0, part.rows, block_rows):
            yield part, start, min(start + block_rows, part.rows)


class BlockReader:
    """Fills the pipeline's input buffers, one block a call; returns the rows read, 0 at the end or if asked to stop."""

    def __init__(self, plan: Plan, parts: Sequence[Part], stop: Event) -> None:
        self._stop = stop
        self._blocks = blocks_of(parts, plan.block_rows)
        self._reader = SourceReader(plan.gallery)

    def __call__(self, old: Rows, side: Rows | None) -> int:
        """Read the next block."""
        part, start, stop = next(self._blocks, (None, 0, 0))
        if part is None or self._stop.is_set():
            return 0
        rows = stop - start
        self._reader.at(part).read_into(start, stop, old[:rows], None if side is None else side[:rows])
        return rows

    def close(self) -> None:
        """Close the part being read, if any."""
        self._reader.close()


class PartsWriter:
    """Writes blocks to a sink; a part is recorded once all of it is durable."""

    def __init__(self, plan: Plan, parts: Sequence[Part], work: Work, wrote: Callable[[int], None]) -> None:
        self._work, self._wrote = work, wrote
        self._blocks = blocks_of(parts, plan.block_rows)
        self._sink = work.open_sink()
        self._writer: PartWriter | None = None

    def __call__(self, new: Rows) -> None:
        """Write the next block."""
        part, start, stop = next(self._blocks)
        if start == 0:
            self._writer = self._sink.open_part(part)
        assert self._writer is not None
        self._writer.write(new)
        if stop == part.rows:
            self._work.record(part, self._writer.commit())
            self._writer = None
        self._wrote(stop - start)

    def close(self) -> None:
        """Drop a part that was not finished, if any."""
        self._sink.close()
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


class IndexFeeder:
    """Adds blocks of published values to the index under the labels of :func:`index_labels`.

    Rows that an index which is extended holds already are passed over.
    """

    def __init__(self, plan: Plan, parts: Sequence[Part], builder: IndexBuilder) -> None:
        self._plan, self._builder = plan, builder
        self._blocks = blocks_of(parts, plan.block_rows)
        self._ids = SourceReader(plan.gallery)

    def __call__(self, new: Rows, on_card: int = 0) -> None:
        """Add the next block; ``on_card`` is where on the card its :func:`index_rows` lie too, 0 if they do not."""
        part, start, stop = next(self._blocks)
        held = min(max(0, self._builder.loaded_rows - part.first_row - start), stop - start)
        if held:
            new, start, on_card = new[held:], start + held, 0
        if start == stop:
            return
        ids, added = index_labels(self._plan, self._ids, part, start, stop), 0
        if on_card and (self._plan.settings.metric != "cosine" or _are_normalized_on_card(new)):
            added = self._builder.add_device_rows(CardRows(on_card, *new.shape), ids)
        if added < len(ids):
            self._builder.add(index_rows(new[added:], self._plan.settings.metric), ids[added:])

    def close(self) -> None:
        """Close the part whose ids are read, if any."""
        self._ids.close()


def kept_on_card(plan: Plan, builder: IndexBuilder | None) -> str:
    """Return what the pipeline leaves on the card: the index's rows, where one card computes and takes them."""
    if builder is None or not builder.takes_device_rows or builder.placement["add"] != plan.transformation.device:
        return "none"
    if plan.kept_bytes == 0:
        return "none"
    return "normalized" if plan.settings.metric == "cosine" else "rows"


def index_rows(new: Rows, metric: str) -> Float32Array:
    """Return published rows as the index takes them: float32, L2-normalised for the cosine metric; zero stays zero."""
    rows = np.asarray(new, np.float32)
    if metric == "cosine":
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        rows = (rows / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
    return rows


def _are_normalized_on_card(new: Rows) -> bool:
    """Whether a card, which divides by no less than 1e-12, makes of published rows what :func:`index_rows` does.

    Where it does not, zero rows included, which the builder leaves out, the rows come from the CPU.
    """
    squares = np.einsum("ij,ij->i", new, new, dtype=np.float32)
    return bool((squares > _LEAST_SQUARE).all())


def index_labels(plan: Plan, reader: SourceReader, part: Part, start: int, stop: int) -> NDArray[np.int64]:
    """Return the int64 labels under which the index holds some rows of a part: their ids, or row numbers.

    ``plan.gallery`` decides which; ``reader`` reads it, or what was written of it.
    """
    if plan.gallery.id_facts.use != "labels":
        return np.arange(part.first_row + start, part.first_row + stop, dtype=np.int64)
    return reader.at(part).read_ids(start, stop).astype(np.int64)


def labels_of_rows(plan: Plan, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels under which the index holds some rows (sorted numbers over all parts)."""
    if plan.gallery.id_facts.use != "labels":
        return rows
    return read_row_ids(plan.gallery, rows).astype(np.int64)


class _RowCount:
    """Rows written so far, by whichever thread, for the progress line."""

    def __init__(self, plan: Plan, done: int, progress: Progress | None) -> None:
        self._rows, self._done, self._progress, self._lock = plan.gallery.schema.rows, done, progress, Lock()

    def __call__(self, rows: int) -> None:
        with self._lock:
            self._done += rows
            if self._progress:
                self._progress("transform", self._done, self._rows)


def run_streams(
    plan: Plan,
    parts: Sequence[Part],
    work: Work,
    builder: IndexBuilder | None,
    progress: Progress | None,
) -> dict[str, float]:
    """Upgrade ``parts`` into ``work``, so many at once as planned, recording each.

    When this returns or raises, no thread of it is left: whoever called may let go of the work.

    Returns:
        Seconds at work by stage; of several parts at once, their mean.

    Raises:
        GalleryError: an input cannot be read, or a row of it (or its result) is not finite.
        ResourceError: the disk is full or fails.
    """
    stop = Event()
    count = _RowCount(plan, plan.gallery.schema.rows - sum(part.rows for part in parts), progress)
    shares = equal_shares(parts, plan.shards_at_once)
    threads = max(1, plan.transformation.threads // len(shares))

    def run(share: Sequence[Part]) -> dict[str, float]:
        return _run_stream(plan, share, work, builder, count, stop, threads)

    if len(shares) == 1:
        return run(parts)
    pool, futures = ThreadPoolExecutor(len(shares)), []
    try:
        for share in shares:
            try:
                futures.append(pool.submit(run, share))
            except RuntimeError as error:  # Python's word for a limit on threads
                raise ResourceError(f"shards_at_once is {len(shares)}, but {error}") from error
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:  # all have ended, or one has failed, or we were interrupted: the others end early
        stop.set()
        while not all(future.done() for future in futures):
            with suppress(BaseException):  # interrupted once more
                wait(futures)
        pool.shutdown()
    times = [future.result() for future in futures]
    return {stage: sum(each[stage] for each in times) / len(times) for stage in times[0]}


def equal_shares(parts: Sequence[Part], count: int) -> list[list[Part]]:
    """Share out parts so that each share has about as many rows; at most ``count``, none empty, each in order."""
    shares: list[list[Part]] = [[] for _ in range(min(count, len(parts)))]
    rows = [0] * len(shares)
    for part in sorted(parts, key=lambda part: part.rows, reverse=True):
        lightest = rows.index(min(rows))
        shares[lightest].append(part)
        rows[lightest] += part.rows
    return [sorted(share, key=lambda part: part.first_row) for share in shares]


def _run_stream(
    plan: Plan,
    parts: Sequence[Part],
    work: Work,
    builder: IndexBuilder | None,
    wrote: Callable[[int], None],
    stop: Event,
    threads: int,
) -> dict[str, float]:
    """Upgrade parts one after the other; once asked to stop, leave the one in work."""
    h, schema = plan.transformation, plan.gallery.schema
    reader = BlockReader(plan, parts, stop)
    writer = PartsWriter(plan, parts, work, wrote)
    feeder = IndexFeeder(plan, parts, builder) if builder else None
    try:
        times = _core.run_pipeline(
            h.executable,
            read=reader,
            write=writer,
            index=feeder,
            block_rows=plan.block_rows,
            threads=threads,
            old_dtype=schema.embedding_dtype.name,
            side_dtype=(schema.side_dtype or schema.embedding_dtype).name,
            out_dtype=plan.dtype.name,
            side_is_old=plan.side_is_old,
            keep_on_device=kept_on_card(plan, builder),
        )
    except NonFiniteError as error:
        raise non_finite_row(plan, error, _row_in_gallery(parts, error.row)) from error
    finally:
        for stage in (reader, writer, feeder):
            if stage is not None:
                stage.close()
    return {stage: times[stage] for stage in ("read", "transform", "write", "index")}


def _row_in_gallery(parts: Sequence[Part], row: int) -> int:
    """Return the number over all parts of the gallery of a row counted over some of them."""
    for part in parts:
        if row < part.rows:
            return part.first_row + row
        row -= part.rows
    raise IndexError(f"row {row} is behind the last of {len(parts)} parts")


def transform_rows(plan: Plan, rows: NDArray[np.int64]) -> Rows:
    """Return the published values of some rows (sorted numbers over all parts), in the published dtype."""
    try:
        return plan.transform(*plan.gallery.read_rows(rows, with_side=plan.reads_side))
    except NonFiniteError as error:
        raise non_finite_row(plan, error, int(rows[error.row])) from error


def non_finite_row(plan: Plan, error: NonFiniteError, row: int) -> FctError:
    """Return the error that names file and row instead of a place in a block."""
    if error.array == "result":
        return GalleryError(
            f"{plan.gallery.where(row)}: its transformed value does not fit {plan.dtype.name}; "
            "try --dtype float32, or --normalize"
        )
    role = {"old": "embedding", "side": "side"}.get(error.array)
    if role is None:
        return ArrayError(str(error))
    if role == "side" and plan.side_is_old:
        role = "embedding"
    return GalleryError(f"{plan.gallery.where(row, role)} holds NaN or infinity")
