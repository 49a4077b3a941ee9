"""The stages around the C++ pipeline: read blocks of parts, write new parts, feed the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer import _core
from fct_infer.device_arrays import FinishedRows
from fct_infer.errors import NonFiniteError
from fct_infer.gallery import Part, PartWriter, Sink, SourceReader, read_row_ids
from fct_infer.gallery.sink import Receipt
from fct_infer.index import IndexBuilder
from fct_infer.transformation import Float32Array
from fct_infer.upgrade.computation import Computation, Rows
from fct_infer.upgrade.plan import Plan

Watch: TypeAlias = Callable[[Part, int, Float32Array], None]
"""Told of rows (n, dim) of a part, from which number on, as the index takes them; it may not keep them."""

_LEAST_SQUARE = 4e-24  # of a norm that is surely above 1e-12, whatever float32 rounds


def blocks_of(parts: Sequence[Part], block_rows: int) -> Iterator[tuple[Part, int, int]]:
    """Yield (part, start, stop): the order in which every stage sees the rows. A block never spans two parts."""
    for part in parts:
        for start in range(0, part.rows, block_rows):
            yield part, start, min(start + block_rows, part.rows)


class BlockReader:
    """Fills the pipeline's input buffers, one block a call; returns the rows read, 0 at the end or if asked to stop."""

    def __init__(self, plan: Computation, parts: Sequence[Part], stop: Event) -> None:
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

    def __init__(self, plan: Computation, parts: Sequence[Part], outlet: Outlet) -> None:
        self._outlet, self._sink = outlet, outlet.sink
        self._blocks = blocks_of(parts, plan.block_rows)
        self._writer: PartWriter | None = None

    def __call__(self, new: Rows) -> None:
        """Write the next block."""
        part, start, stop = next(self._blocks)
        if start == 0:
            self._writer = self._sink.open_part(part)
        assert self._writer is not None
        self._writer.write(new)
        if stop == part.rows:
            self._outlet.record(part, self._writer.commit())
            self._writer = None
        self._outlet.wrote(stop - start)

    def close(self) -> None:
        """Drop a part that was not finished, if any."""
        self._sink.close()
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


class IndexFeeder:
    """Adds blocks of published values to the index under the labels of :func:`index_labels`.

    Rows that an index which is extended holds already are passed over; ``watch`` is shown all of them.
    """

    def __init__(
        self, plan: Computation, parts: Sequence[Part], builder: IndexBuilder, watch: Watch | None = None
    ) -> None:
        self._plan, self._builder, self._watch = plan, builder, watch
        self._blocks = blocks_of(parts, plan.block_rows)
        self._ids = SourceReader(plan.gallery)

    def __call__(self, new: Rows, on_device: int = 0) -> None:
        """Add the next block; ``on_device`` is where on the device its :func:`index_rows` lie too, 0 if they do not."""
        part, start, stop = next(self._blocks)
        rows: Float32Array | None = None
        if self._watch is not None:
            rows = index_rows(new, self._plan.metric)
            self._watch(part, start, rows)
        held = min(max(0, self._builder.loaded_rows - part.first_row - start), stop - start)
        if held == stop - start:
            return
        ids, added = index_labels(self._plan, self._ids, part, start + held, stop), held
        if on_device and not held and (self._plan.metric != "cosine" or _are_normalized_on_device(new)):
            added = self._builder.add_device_rows(FinishedRows(on_device, *new.shape), ids)
        if added < stop - start:
            rest = index_rows(new[added:], self._plan.metric) if rows is None else rows[added:]
            self._builder.add(rest, ids[added - held :])

    def close(self) -> None:
        """Close the part whose ids are read, if any."""
        self._ids.close()


def kept_on_device(plan: Plan, builder: IndexBuilder | None) -> str:
    """Return what the pipeline leaves on the device: the index's rows, where one device computes and takes them."""
    if builder is None or not builder.takes_device_rows or builder.placement["add"] != plan.transformation.device:
        return "none"
    if plan.kept_bytes == 0:
        return "none"
    return "normalized" if plan.metric == "cosine" else "rows"


def index_rows(new: Rows, metric: str) -> Float32Array:
    """Return published rows as the index takes them: float32, L2-normalised for the cosine metric; zero stays zero."""
    rows = np.asarray(new, np.float32)
    if metric == "cosine":
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        rows = (rows / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
    return rows


def _are_normalized_on_device(new: Rows) -> bool:
    """Whether a device, which divides by no less than 1e-12, makes of published rows what :func:`index_rows` does.

    Where it does not, zero rows included, which the builder leaves out, the rows come from the CPU.
    """
    squares = np.einsum("ij,ij->i", new, new, dtype=np.float32)
    return bool((squares > _LEAST_SQUARE).all())


def index_labels(plan: Computation, reader: SourceReader, part: Part, start: int, stop: int) -> NDArray[np.int64]:
    """Return the int64 labels under which the index holds some rows of a part: their ids, or row numbers.

    ``plan.gallery`` decides which; ``reader`` reads it, or what was written of it.
    """
    if plan.gallery.id_facts.use != "labels":
        return np.arange(part.first_row + start, part.first_row + stop, dtype=np.int64)
    return reader.at(part).read_ids(start, stop).astype(np.int64)


def labels_of_rows(plan: Computation, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels under which the index holds some rows (sorted numbers over all parts)."""
    if plan.gallery.id_facts.use != "labels":
        return rows
    return read_row_ids(plan.gallery, rows).astype(np.int64)


@dataclass(frozen=True)
class Outlet:
    """Where the rows of a stream go, besides an index.

    Attributes:
        sink: used by this stream alone, and closed by it.
        record: told of every part that is durable.
        wrote: told of the rows written.
        stop: once set, the part in work is left.
    """

    sink: Sink
    record: Callable[[Part, Receipt], None]
    wrote: Callable[[int], None]
    stop: Event


def run_stream(
    plan: Computation,
    parts: Sequence[Part],
    outlet: Outlet,
    *,
    threads: int,
    builder: IndexBuilder | None = None,
    watch: Watch | None = None,
    keep_on_device: str = "none",
) -> dict[str, float]:
    """Upgrade parts one after the other.

    Args:
        plan: what is done to each row.
        parts: in the order in which they are read, written and fed to the index.
        outlet: where they go.
        threads: for the transformation.
        builder: of the index, if there is one to be fed meanwhile.
        watch: shown what the index is fed with.
        keep_on_device: what of each block stays on the device for the index, see :func:`kept_on_device`.

    Returns:
        Seconds at work by stage.

    Raises:
        GalleryError: an input cannot be read, or a row of it (or its result) is not finite.
        ResourceError: the disk is full or fails.
    """
    h, schema = plan.transformation, plan.gallery.schema
    reader = BlockReader(plan, parts, outlet.stop)
    writer = PartsWriter(plan, parts, outlet)
    feeder = IndexFeeder(plan, parts, builder, watch) if builder else None
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
            keep_on_device=keep_on_device,
        )
    except NonFiniteError as error:
        raise plan.non_finite_row(error, _row_in_gallery(parts, error.row)) from error
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
