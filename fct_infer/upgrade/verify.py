"""Checks between the last written row and publishing: nothing is published on trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import GateError
from fct_infer.gallery import Part, Source, SourceReader
from fct_infer.reference import apply_float64, row_cosines
from fct_infer.threadpools import one_blas_thread
from fct_infer.transformation import Float32Array, Transformation
from fct_infer.upgrade.computation import Rows
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.report import NORM_QUANTILES, Verification
from fct_infer.upgrade.stream import blocks_of, index_labels, index_rows

SEARCHED_AT_ONCE = 4096  # rows at least
ROWS_ALONE = 64  # that are recomputed one by one


def verify_cosine(plan: Plan, names: Sequence[int | str], old: Rows, side: Rows | None, stored: Rows) -> Verification:
    """Recompute sampled rows from the inputs and compare them with what was read back.

    In float64, or, if no program holds the transformation, once more by its own runtime, in other batches.

    Args:
        plan: of the upgrade.
        names: of the n rows: their numbers, or where they lie.
        old, side: (n, d) as they are.
        stored: (n, d_new) as read back.

    Raises:
        GateError: the lowest cosine is below the limit; names the row.
    """
    h = plan.transformation
    if plan.side_is_old:
        side = old
    if h.program is not None:
        with one_blas_thread():  # others would spin where FAISS is to try the index
            recomputed_by, expected = "float64", apply_float64(h.program, old, side)
    else:
        recomputed_by, expected = h.backend, _recomputed(h, old, side).astype(np.float64)
    cosines = row_cosines(expected, stored.astype(np.float64))
    worst = int(np.argmin(cosines))
    if not cosines[worst] >= plan.min_cosine:
        name = names[worst]
        where = f"row {name}" if isinstance(name, int) else name
        raise GateError(
            f"{where}: cosine {cosines[worst]:.6f} to its recomputation is below {plan.min_cosine}; "
            f"computed in {h.precision}. {_way_out(h)}"
        )
    return Verification(
        rows=len(names),
        recomputed_by=recomputed_by,
        min_cosine=float(cosines[worst]),
        mean_cosine=float(cosines.mean()),
        worst_row=names[worst],
        norms_before=_norms(old),
        norms_after=_norms(stored),
    )


def _norms(rows: Rows) -> tuple[float, ...]:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    return tuple(np.quantile(lengths, NORM_QUANTILES).tolist())


def _recomputed(h: Transformation, old: Rows, side: Rows | None) -> Float32Array:
    """Run rows in other company than in the upgrade: some alone, from all over the sample, all in the opposite order.

    A model that mixes the rows of a batch would compute the same once more in the same batch.
    """
    turned = h(*(np.ascontiguousarray(rows[::-1]) for rows in (old, side) if rows is not None))
    found = np.ascontiguousarray(turned[::-1])
    for row in np.unique(np.linspace(0, len(old) - 1, ROWS_ALONE).astype(np.int64)):
        found[row] = h(old[row : row + 1], None if side is None else side[row : row + 1])[0]
    return found


def _way_out(h: Transformation) -> str:
    accept = "--min-cosine sets another limit and goes on with the work done"
    return accept if h.precision == "fp32" else f"--precision fp32 is more exact and begins again by itself; {accept}"


def read_block(plan: Plan, reader: SourceReader, part: Part, start: int, stop: int) -> Rows:
    """Return published rows ``start`` to ``stop`` of a part from the disk."""
    new = np.empty((stop - start, plan.new_dim), plan.dtype)
    reader.at(part).read_into(start, stop, new, None)
    return new


def corpus_blocks(
    plan: Plan, written: Source, report: Callable[[str, int], None]
) -> Iterator[tuple[Float32Array, NDArray[np.int64]]]:
    """Yield all published rows with their ids, as the index takes them, in pieces of some thousand rows or more.

    Small shards come together: what is done once a piece would cost more than the rows of one.
    """
    pieces: list[tuple[Float32Array, NDArray[np.int64]]] = []
    waiting = 0
    with SourceReader(written) as reader:
        for part, start, stop in blocks_of(written.parts(), plan.block_rows):
            rows = index_rows(read_block(plan, reader, part, start, stop), plan.settings.metric)
            pieces.append((rows, index_labels(plan, reader, part, start, stop)))
            waiting += stop - start
            if waiting >= SEARCHED_AT_ONCE:
                yield _together(pieces)
                pieces, waiting = [], 0
                report("verify", part.first_row + stop)
    if pieces:
        yield _together(pieces)
    report("verify", written.schema.rows)


def _together(pieces: list[tuple[Float32Array, NDArray[np.int64]]]) -> tuple[Float32Array, NDArray[np.int64]]:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate([rows for rows, _ in pieces]), np.concatenate([ids for _, ids in pieces])
