"""The stages around the C++ pipeline: read blocks of shards, write new shards, feed the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.device_arrays import CardRows
from fct_infer.errors import ArrayError, FctError, GalleryError, NonFiniteError, ResourceError
from fct_infer.gallery import Gallery, NpyShardWriter, Shard, ShardReader
from fct_infer.index import IndexBuilder
from fct_infer.storage import DigestedFile, copy_file
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.journal import Journal
from fct_infer.upgrade.plan import Plan

Rows: TypeAlias = NDArray[Any]
_LEAST_SQUARE = 4e-24  # of a norm that is surely above 1e-12, whatever float32 rounds
Progress: TypeAlias = Callable[[str, int, int], None]


def blocks_of(shards: Sequence[Shard], block_rows: int) -> Iterator[tuple[Shard, int, int]]:
    """Yield (shard, start, stop): the order in which every stage sees the rows. A block never spans two shards."""
    for shard in shards:
        for start in range(0, shard.rows, block_rows):
            yield shard, start, min(start + block_rows, shard.rows)


class BlockReader:
    """Fills the pipeline's input buffers, one block a call; returns the rows read, 0 at the end or if asked to stop."""

    def __init__(self, plan: Plan, shards: Sequence[Shard], stop: Event) -> None:
        self._stop = stop
        self._blocks = blocks_of(shards, plan.block_rows)
        self._reader: ShardReader | None = None

    def __call__(self, old: Rows, side: Rows | None) -> int:
        """Read the next block."""
        shard, start, stop = next(self._blocks, (None, 0, 0))
        if shard is None or self._stop.is_set():
            return 0
        if self._reader is None:
            self._reader = ShardReader(shard)
        rows = stop - start
        self._reader.read_into(start, stop, old[:rows], None if side is None else side[:rows])
        if stop == shard.rows:
            self.close()
        return rows

    def close(self) -> None:
        """Close the shard being read, if any."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class ShardWriter:
    """Writes blocks to new shards; a shard is journalled once it and its ids are durable."""

    def __init__(
        self, plan: Plan, shards: Sequence[Shard], folder: Path, journal: Journal, wrote: Callable[[int], None]
    ) -> None:
        self._plan, self._folder, self._journal, self._wrote = plan, folder, journal, wrote
        self._blocks = blocks_of(shards, plan.block_rows)
        self._writer: NpyShardWriter | None = None

    def __call__(self, new: Rows) -> None:
        """Write the next block."""
        shard, start, stop = next(self._blocks)
        if start == 0:
            path = self._folder / "embeddings" / shard.embeddings.name
            self._writer = NpyShardWriter(path, shard.rows, self._plan.new_dim, self._plan.dtype)
        assert self._writer is not None
        self._writer.write_rows(new)
        if stop == shard.rows:
            self._finish(shard, self._writer.commit())
            self._writer = None
        self._wrote(stop - start)

    def _finish(self, shard: Shard, embeddings: DigestedFile) -> None:
        files = {f"embeddings/{shard.embeddings.name}": vars(embeddings)}
        if shard.ids is not None:
            files[f"ids/{shard.ids.name}"] = vars(copy_file(shard.ids, self._folder / "ids" / shard.ids.name))
        self._journal.append("shard", name=shard.name, rows=shard.rows, files=files)

    def close(self) -> None:
        """Drop a shard that was not finished, if any."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


class IndexFeeder:
    """Adds blocks of published values to the index under the labels of :func:`index_ids`."""

    def __init__(self, plan: Plan, shards: Sequence[Shard], builder: IndexBuilder) -> None:
        self._plan, self._builder = plan, builder
        self._blocks = blocks_of(shards, plan.block_rows)

    def __call__(self, new: Rows, on_card: int = 0) -> None:
        """Add the next block; ``on_card`` is where on the card its :func:`index_rows` lie too, 0 if they do not."""
        shard, start, stop = next(self._blocks)
        ids, added = index_ids(self._plan.gallery, shard, start, stop), 0
        if on_card and (self._plan.settings.metric != "cosine" or _are_normalized_on_card(new)):
            added = self._builder.add_device_rows(CardRows(on_card, *new.shape), ids)
        if added < len(ids):
            self._builder.add(index_rows(new[added:], self._plan.settings.metric), ids[added:])


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


def index_ids(gallery: Gallery, shard: Shard, start: int, stop: int) -> NDArray[np.int64]:
    """Return the int64 labels under which the index holds some rows of a shard: their ids, or row numbers.

    ``gallery`` decides which; ``shard`` may be one of it or the same shard of what was written.
    """
    if gallery.id_facts.use != "labels":
        return np.arange(shard.first_row + start, shard.first_row + stop, dtype=np.int64)
    with ShardReader(shard) as reader:
        return reader.read_ids(start, stop).astype(np.int64)


def ids_of_rows(gallery: Gallery, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ids under which the index holds some rows (numbers over all shards)."""
    places = map(gallery.locate, rows.tolist())
    return np.concatenate([index_ids(gallery, shard, row, row + 1) for shard, row in places])


class _RowCount:
    """Rows written so far, by whichever thread, for the progress line."""

    def __init__(self, plan: Plan, done: int, progress: Progress | None) -> None:
        self._rows, self._done, self._progress, self._lock = plan.gallery.rows, done, progress, Lock()

    def __call__(self, rows: int) -> None:
        with self._lock:
            self._done += rows
            if self._progress:
                self._progress("transform", self._done, self._rows)


def run_streams(
    plan: Plan,
    shards: Sequence[Shard],
    folder: Path,
    journal: Journal,
    builder: IndexBuilder | None,
    progress: Progress | None,
) -> dict[str, float]:
    """Upgrade ``shards`` into ``folder``, so many at once as planned, journalling each.

    When this returns or raises, no thread of it is left: whoever called may let go of the folder.

    Returns:
        Seconds at work by stage; of several shards at once, their mean.

    Raises:
        GalleryError: an input cannot be read, or a row of it (or its result) is not finite.
        ResourceError: the disk is full or fails.
    """
    stop = Event()
    count = _RowCount(plan, plan.gallery.rows - sum(shard.rows for shard in shards), progress)
    parts = equal_parts(shards, plan.shards_at_once)
    threads = max(1, plan.transformation.threads // len(parts))

    def run(part: Sequence[Shard]) -> dict[str, float]:
        return _run_stream(plan, part, folder, journal, builder, count, stop, threads)

    if len(parts) == 1:
        return run(shards)
    pool, futures = ThreadPoolExecutor(len(parts)), []
    try:
        for part in parts:
            try:
                futures.append(pool.submit(run, part))
            except RuntimeError as error:  # Python's word for a limit on threads
                raise ResourceError(f"shards_at_once is {len(parts)}, but {error}") from error
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:  # all have ended, or one has failed, or we were interrupted: the others end early
        stop.set()
        while not all(future.done() for future in futures):
            with suppress(BaseException):  # interrupted once more
                wait(futures)
        pool.shutdown()
    times = [future.result() for future in futures]
    return {stage: sum(each[stage] for each in times) / len(times) for stage in times[0]}


def equal_parts(shards: Sequence[Shard], count: int) -> list[list[Shard]]:
    """Share out shards so that each part has about as many rows; at most ``count`` parts, none empty, each in order."""
    parts: list[list[Shard]] = [[] for _ in range(min(count, len(shards)))]
    rows = [0] * len(parts)
    for shard in sorted(shards, key=lambda shard: shard.rows, reverse=True):
        lightest = rows.index(min(rows))
        parts[lightest].append(shard)
        rows[lightest] += shard.rows
    return [sorted(part, key=lambda shard: shard.first_row) for part in parts]


def _run_stream(
    plan: Plan,
    shards: Sequence[Shard],
    folder: Path,
    journal: Journal,
    builder: IndexBuilder | None,
    wrote: Callable[[int], None],
    stop: Event,
    threads: int,
) -> dict[str, float]:
    """Upgrade shards one after the other; once asked to stop, leave the one in work."""
    h = plan.transformation
    reader = BlockReader(plan, shards, stop)
    writer = ShardWriter(plan, shards, folder, journal, wrote)
    try:
        times = _core.run_pipeline(
            h.executable,
            read=reader,
            write=writer,
            index=IndexFeeder(plan, shards, builder) if builder else None,
            block_rows=plan.block_rows,
            threads=threads,
            old_dtype=plan.gallery.embedding_dtype.name,
            side_dtype=(plan.gallery.side_dtype or plan.gallery.embedding_dtype).name,
            out_dtype=plan.dtype.name,
            side_is_old=plan.side_is_old,
            keep_on_device=kept_on_card(plan, builder),
        )
    except NonFiniteError as error:
        raise non_finite_row(plan, error, _row_in_gallery(shards, error.row)) from error
    finally:
        reader.close()
        writer.close()
    return {stage: times[stage] for stage in ("read", "transform", "write", "index")}


def _row_in_gallery(shards: Sequence[Shard], row: int) -> int:
    """Return the number over all shards of the gallery of a row counted over some of them."""
    for shard in shards:
        if row < shard.rows:
            return shard.first_row + row
        row -= shard.rows
    raise IndexError(f"row {row} is behind the last of {len(shards)} shards")


def transform_rows(plan: Plan, rows: NDArray[np.int64]) -> Rows:
    """Return the published values of some rows (sorted numbers over all shards), in the published dtype."""
    h = plan.transformation
    old, side = read_inputs(plan, rows)
    new = np.empty((len(rows), h.new_dim), plan.dtype)
    try:
        h.apply_into(old, side, new)
    except NonFiniteError as error:
        raise non_finite_row(plan, error, int(rows[error.row])) from error
    return new


def read_inputs(plan: Plan, rows: NDArray[np.int64]) -> tuple[Rows, Rows | None]:
    """Return ``old`` and ``side`` of some rows, as the transformation takes them."""
    old, side = plan.gallery.read_rows(rows)
    if plan.transformation.side_dim == 0:
        return old, None
    return old, old if plan.side_is_old else side


def non_finite_row(plan: Plan, error: NonFiniteError, row: int) -> FctError:
    """Return the error that names shard and row instead of a place in a block."""
    shard, number = plan.gallery.locate(row)
    if error.array == "result":
        return GalleryError(
            f"{shard.embeddings}: row {number}: its transformed value does not fit {plan.dtype.name}; "
            "try --dtype float32, or --normalize"
        )
    path = {"old": shard.embeddings, "side": shard.side_information}.get(error.array)
    if path is None:
        return ArrayError(str(error))
    return GalleryError(f"{path}: row {number} holds NaN or infinity")
