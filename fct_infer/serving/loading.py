"""How the rows of a mixed gallery come into memory: transformed on the way, published, or taken from a delta."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fct_infer.connectors import open_source, opened_source
from fct_infer.errors import UnsupportedError
from fct_infer.gallery.ids import id_blocks
from fct_infer.gallery.sampling import sample_rows
from fct_infer.gallery.source import Source, SourceReader
from fct_infer.index import GalleryIndex, IndexBuilder, default_factory, describe_index, load_index
from fct_infer.index.builder import Ids as Labels
from fct_infer.index.recall import exact_neighbours, tune_nprobe
from fct_infer.index.stored_ids import StoredIds
from fct_infer.machine import usable_cpus
from fct_infer.serving.rows import Bools, Ids, unit
from fct_infer.serving.segment import Segment
from fct_infer.serving.spaces import NewSpace
from fct_infer.transformation import Float32Array, Transformation, check_transformation

_BLOCK_ROWS = 8192
_RECALL_QUERIES, _RECALL_K = 200, 10
_MAX_LABEL = np.iinfo(np.int64).max

Sample: TypeAlias = Callable[[int, int], tuple[Labels, Float32Array]]
"""(count, seed) -> sorted row numbers (n,) and these rows (n, dim)."""


def published_segment(dest: Path) -> Segment:
    """Return the rows of a published gallery; see :meth:`~.mixed_gallery.MixedGallery.published`."""
    index = load_index(dest)
    with open_source(dest) as source:
        ids = all_ids(source)
    if index.stored_ids is None:
        ids = ids.astype(np.int64)
        return Segment.of(NewSpace(index), ids, False, ids)
    return Segment.of(NewSpace(index), ids, False)


def source_segment(
    source: str | Path | Source,
    h: Transformation,
    metric: str,
    index: str,
    threads: int | None,
    progress: Callable[[str, int, int], None] | None,
) -> Segment:
    """Return all rows of a source, transformed; see :meth:`~.mixed_gallery.MixedGallery.open`."""
    check_transformation(h)
    with opened_source(source) as opened:
        return _transformed(opened, h, metric, index, threads, progress)


def _transformed(
    source: Source,
    h: Transformation,
    metric: str,
    index: str,
    threads: int | None,
    progress: Callable[[str, int, int], None] | None,
) -> Segment:
    rows = source.schema.rows

    def sample(count: int, seed: int) -> tuple[Labels, Float32Array]:
        numbers, old, side = source.sample(count, seed)
        return numbers, _stored(h(old, side if h.side_dim else None), metric)

    def blocks() -> Iterator[Float32Array]:
        done = 0
        for block in new_blocks(source, h):
            yield _stored(block, metric)
            done += len(block)
            if progress:
                progress("transform", done, rows)

    factory = default_factory(rows, h.new_dim) if index == "auto" else index
    builder = IndexBuilder(factory, h.new_dim, metric, threads or usable_cpus())
    return _indexed(builder, all_ids(source), False, sample, blocks())


def fresh_segment(ids: Ids, rows: Float32Array, is_new: Bools, metric: str) -> Segment:
    """Return rows (n, dim) that are in memory under an index of their own."""

    def sample(count: int, seed: int) -> tuple[Labels, Float32Array]:
        numbers = sample_rows(len(rows), count, seed)
        return numbers, rows[numbers]

    dim = rows.shape[1]
    builder = IndexBuilder(default_factory(len(rows), dim), dim, metric, usable_cpus())
    return _indexed(builder, ids, is_new, sample, [rows])


def all_ids(source: Source) -> Ids:
    """Return the ids (n,) of a source, row numbers if it has none.

    Raises:
        UnsupportedError: they are bytes with control characters, whose NULs at the end cannot be told.
        GalleryError: one is what stands for nothing found.
    """
    source.check_upgradable(indexed=True)
    dtype = source.schema.id_dtype
    if dtype is not None and source.id_facts.use == "binary":
        raise UnsupportedError(f"{source.column('id')}: ids are binary; a gallery that changes wants integers or text")
    ids = np.concatenate([ids for _, ids in id_blocks(source)])
    return ids.astype(np.uint64 if dtype == np.uint64 else np.int64) if ids.dtype.kind in "iu" else ids


def _indexed(
    builder: IndexBuilder, ids: Ids, is_new: bool | Bools, sample: Sample, blocks: Iterable[Float32Array]
) -> Segment:
    """Return all rows under an index that is trained, filled and, where it can be, tuned, in one pass over them."""
    plan = describe_index(builder.factory, builder.dim, len(ids), builder.metric)
    is_labelled = ids.dtype.kind in "iu" and int(ids.min()) >= 0 and int(ids.max()) <= _MAX_LABEL
    if is_labelled:
        ids = ids.astype(np.int64)
    labels = ids if is_labelled else np.arange(len(ids))
    if builder.needs_training:
        builder.train(sample(plan.training_rows, 0)[1])

    def added() -> Iterator[tuple[Float32Array, Labels]]:
        start = 0
        for rows in blocks:
            of_block = labels[start : start + len(rows)]
            builder.add(rows, of_block)
            start += len(rows)
            yield rows, of_block

    if builder.nprobe is None:
        for _ in added():
            pass
    else:
        numbers, queries = sample(_RECALL_QUERIES, 1)
        exact = exact_neighbours(queries, added(), _RECALL_K + 1, builder.metric, builder.threads)
        tune_nprobe(builder, queries, labels[numbers], exact, None)
    index = GalleryIndex(builder.index, builder.metric, None if is_labelled else StoredIds([ids]))
    return Segment.of(NewSpace(index), ids, is_new, labels)


def _stored(rows: Float32Array, metric: str) -> Float32Array:
    return unit(rows) if metric == "cosine" else rows


def new_blocks(source: Source, h: Transformation | None) -> Iterator[Float32Array]:
    """Yield all rows (n, dim) float32 in the new space, some at a time: through h, or as they are if it is None.

    Raises:
        GalleryError: they cannot be read.
        ArrayError: they do not fit h, or hold NaN or infinity.
    """
    schema = source.schema
    side_dim = schema.side_dim if h is not None and h.side_dim else None
    with SourceReader(source) as reader:
        for part in source.parts():
            for start in range(0, part.rows, _BLOCK_ROWS):
                stop = min(start + _BLOCK_ROWS, part.rows)
                old = np.empty((stop - start, schema.old_dim), schema.embedding_dtype)
                side = None if side_dim is None else np.empty((stop - start, side_dim), schema.side_dtype)
                reader.at(part).read_into(start, stop, old, side)
                yield old.astype(np.float32, copy=False) if h is None else h(old, side)
