"""What a user knows of the new model, by which the meaning of new rows can be told: float64 only compares h with h."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import SourceOptions, opened_source
from fct_infer.connectors.ids import read_truth
from fct_infer.connectors.joining import gather_rows, id_kind, join_by_id, rows_of_ids
from fct_infer.connectors.options import integer_or_text
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery import Source, read_row_ids, sample_rows
from fct_infer.identity import check_same_model
from fct_infer.measuring import directions
from fct_infer.transformation import Float32Array, Transformation

PROBED_ROWS = 1000  # of what is given: a share of them is known to 1.6 %
FEWEST = 20  # of fewer a share says nothing


@dataclass(frozen=True)
class Probe:
    """Rows of the new model whose place in the gallery is known.

    Attributes:
        pairs: embeddings by the new model of some items of the gallery: what :func:`fct_infer.open_source` opens, or
            has opened. With ids they are matched by id (by row number, where the gallery has no ids); without, row i
            is of the gallery's row i, and there are as many.
        ids: ids of the pairs' rows, in a file beside.
        column: that holds the pairs' embeddings, where that is not clear.
        queries: queries by the new model.
        truth: ids of each query's right rows, as ``fct-fit --truth`` takes them.
        id_column: that holds the ids of the pairs, or of the file beside; by default the one that is called as that of
            the gallery's ids, or by a usual name.

    Raises:
        UsageError: nothing is given, or queries without truth.
    """

    pairs: str | Path | Source | None = None
    ids: str | Path | None = None
    column: str | None = None
    queries: str | Path | Source | None = None
    truth: str | Path | None = None
    id_column: str | None = None

    def __post_init__(self) -> None:
        if (self.queries is None) != (self.truth is None):
            raise UsageError("--probe-queries and --probe-truth go together")
        if self.pairs is None and self.queries is None:
            raise UsageError("a probe wants pairs (--probe) or queries (--probe-queries)")
        if self.pairs is None and any(each is not None for each in (self.ids, self.column, self.id_column)):
            raise UsageError("--probe-ids, --probe-id-column and --probe-column are of the rows of --probe")


@dataclass(frozen=True)
class Known:
    """Vectors of the new model, and which rows of the gallery are right for them.

    Attributes:
        name: ``pairs`` or ``queries``.
        vectors: (n, d_new) float32, n from 20 to :data:`PROBED_ROWS`.
        rows: (n,) int64 row of the gallery that is right; of several the first.
        right: (n, t) ids of all rows that are right, some more than once; row numbers in a gallery without ids.
        given: how many there were, of which these were drawn.
        left_out: how many of those the gallery has no right row for.
    """

    name: str
    vectors: Float32Array
    rows: NDArray[np.int64]
    right: NDArray[Any]
    given: int
    left_out: int


def read_probe(
    probe: Probe, gallery: Source, h: Transformation, seed: int, *, unit_length: bool = False
) -> tuple[Known, ...]:
    """Read what is known and find it in the gallery.

    Args:
        probe: what the user gave.
        gallery: about to be upgraded.
        h: the transformation.
        seed: of the sample that is drawn.
        unit_length: whether new rows are given length 1; then the vectors are, too.

    Raises:
        UsageError: ids of another kind than the gallery's, or there are none to match by.
        ModelMismatchError: a file says it is of another model than the transformation's new one.
        GalleryError: a file is malformed, rows are of another width, too few of them are in the gallery, or an id
            occurs twice.
    """
    found = []
    if probe.pairs is not None:
        with _opened_pairs(probe, gallery, h) as source:
            found.append(_pairs(source, gallery, seed))
    if probe.queries is not None:
        assert probe.truth is not None
        with _opened(probe.queries, "--probe-queries", h, SourceOptions(allow_cast=True)) as source:
            found.append(_queries(source, probe.truth, gallery, seed))
    if unit_length:
        found = [replace(known, vectors=directions(known.vectors).astype(np.float32)) for known in found]
    return tuple(found)


def _pairs(source: Source, gallery: Source, seed: int) -> Known:
    rows = source.schema.rows
    if source.schema.id_dtype is not None:
        in_gallery, in_source, _ = join_by_id(gallery, source, (str(gallery.path), str(source.path)))
    elif rows == gallery.schema.rows:
        in_gallery = in_source = np.arange(rows)
    else:
        raise UsageError(
            f"{source.path}: has {rows:,} rows without ids, the gallery {gallery.schema.rows:,}; "
            "name ids with --probe-ids or their column with --probe-id-column"
        )
    matched = len(in_gallery)
    _check_enough("pairs", matched, f"{source.path}, {rows:,} rows,", gallery)
    chosen = sample_rows(matched, PROBED_ROWS, seed)
    chosen = chosen[np.argsort(in_gallery[chosen], kind="stable")]
    in_gallery, in_source = in_gallery[chosen], in_source[chosen]
    right = integer_or_text(read_row_ids(gallery, in_gallery), gallery.column("id"))[:, None]
    vectors, _ = gather_rows(source, in_source, with_side=False)
    return Known("pairs", vectors, in_gallery, right, rows, rows - matched)


def _queries(source: Source, given: str | Path, gallery: Source, seed: int) -> Known:
    truth = integer_or_text(read_truth(given), str(given))
    if (count := len(truth)) != source.schema.rows:
        raise GalleryError(f"{given}: is of {count:,} queries, {source.path} holds {source.schema.rows:,}")
    wanted = gallery.schema.id_dtype or np.dtype(np.int64)
    if id_kind(truth.dtype) != id_kind(wanted):
        raise UsageError(f"{given}: names {id_kind(truth.dtype)} as ids, those of the gallery are {id_kind(wanted)}")
    rows = rows_of_ids(gallery, truth.ravel()).reshape(truth.shape)
    known = np.flatnonzero((rows >= 0).any(axis=1))
    _check_enough("queries", len(known), f"{given}, {count:,} queries,", gallery)
    chosen = known[sample_rows(len(known), PROBED_ROWS, seed)]
    rows, truth = rows[chosen], truth[chosen]
    first = np.argmax(rows >= 0, axis=1)[:, None]
    right = np.where(rows >= 0, truth, np.take_along_axis(truth, first, 1))  # those no row has are not looked for
    rows = np.take_along_axis(rows, first, 1)[:, 0]
    if (different := len(np.unique(rows))) < FEWEST:
        raise GalleryError(f"{given}: names {different} different rows, a probe wants at least {FEWEST}")
    vectors, _ = gather_rows(source, chosen, with_side=False)
    return Known("queries", vectors, rows, right, count, count - len(known))


@contextmanager
def _opened_pairs(probe: Probe, gallery: Source, h: Transformation) -> Iterator[Source]:
    """Open pairs; of their columns the one that is called as the gallery's ids are comes before one of a usual name."""
    assert probe.pairs is not None
    beside = None if probe.ids is None else Path(probe.ids)
    options = SourceOptions(probe.column, id_column=probe.id_column, ids=beside, allow_cast=True)
    with _opened(probe.pairs, "--probe", h, options) as source:
        name = gallery.schema.columns.get("id")
        is_said = isinstance(probe.pairs, Source) or beside is not None or probe.id_column is not None
        if is_said or name not in source.schema.other_columns:
            yield source
            return
    with _opened(probe.pairs, "--probe", h, replace(options, id_column=name)) as source:
        yield source


@contextmanager
def _opened(given: str | Path | Source, flag: str, h: Transformation, options: SourceOptions) -> Iterator[Source]:
    with ExitStack() as held:
        try:
            source = held.enter_context(opened_source(given, options))
        except UsageError as error:
            said = str(error)  # of options, which here have other names
            for theirs, ours in (("--embedding-column", "--probe-column"), ("--id-column", "--probe-id-column")):
                said = said.replace(theirs, ours)
            error.args = (said,)
            raise
        _check(source, flag, h)
        yield source


def _check(source: Source, flag: str, h: Transformation) -> None:
    if source.schema.old_dim != h.new_dim:
        raise GalleryError(
            f"{source.column('embedding')}: rows are {source.schema.old_dim} wide, the transformation's results "
            f"{h.new_dim}; {flag} wants vectors of the model that it leads to"
        )
    check_same_model(
        (f"{flag} {source.path}", source.model),
        ("the transformation makes vectors", h.new_model),
        "a probe wants vectors of the model that it leads to",
    )


def _check_enough(what: str, count: int, where: str, gallery: Source) -> None:
    if count < FEWEST:
        raise GalleryError(
            f"{where} and {gallery.path} have {count} {what} in common, a probe wants at least {FEWEST}: "
            "are the ids those of the gallery?"
        )
