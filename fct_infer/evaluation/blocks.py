"""Work on rows that are independent of each other, block by block: on threads of this process, or by workers elsewhere.

The blocks are the same whoever does them, because BLAS may round otherwise where a product has other numbers of rows.
So nothing that is measured depends on how many threads or workers there are.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_info

from fct_infer.errors import GalleryError, UnsupportedError, UsageError
from fct_infer.evaluation.checks import AnyEmbeddings, Embeddings, StoredEmbeddings
from fct_infer.evaluation.parallel import Progress, for_each_block
from fct_infer.evaluation.reading import read_named
from fct_infer.gallery import Part
from fct_infer.gallery.jobs import Workers

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_MOST_PARTS = 1024  # enough for hundreds of workers; each costs some milliseconds, and the sending of what it finds


class Work(Protocol[T_co]):
    """What is done; picklable, if its embeddings are only named. What comes of several blocks adds up by ``+``.

    Attributes:
        embeddings: what it reads.
        rows: how many rows of whatever it works on; at least one.
        block_rows: of each block.
    """

    @property
    def embeddings(self) -> Sequence[AnyEmbeddings]:
        """See above, like the next two."""

    @property
    def rows(self) -> int:
        """See above."""

    @property
    def block_rows(self) -> int:
        """See above."""

    def open(self, embeddings: Sequence[Embeddings]) -> Callable[[Sequence[slice]], T_co]:
        """Return what does some blocks one after the other, on any thread; errors are those of the embeddings."""
        ...


def do_blocks(
    work: Work[T],
    record: Callable[[T], None],
    *,
    threads: int | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> None:
    """Do all blocks of a work.

    Args:
        work: what is done.
        record: told of what came of some blocks, one call at a time, in any order.
        threads: of this process; by default all cores it may use.
        workers: who does them instead.
        progress: called with rows done and rows in all.

    Raises:
        UnsupportedError: workers cannot read an array of this process, or compute otherwise than it.
        UsageError: ``threads`` is below one, or given for workers.
        GalleryError: workers do not see the same embeddings.
        FctError: as ``work`` and ``workers`` raise.
    """
    if workers is not None:
        _do_elsewhere(work, record, workers, threads, progress)
        return
    do, lock = work.open([read_named(each) for each in work.embeddings]), Lock()

    def do_one(block: slice) -> None:
        found = do([block])
        with lock:
            record(found)

    for_each_block(work.rows, work.block_rows, do_one, threads, progress)


def _do_elsewhere(
    work: Work[T], record: Callable[[T], None], workers: Workers, threads: int | None, progress: Progress | None
) -> None:
    if threads is not None:
        raise UsageError(f"threads is {threads}, but workers elsewhere do it; each has as many as it has CPUs")
    named, done = _named(work), 0

    def record_part(part: Part, found: BlocksDone[T]) -> None:
        nonlocal done
        for each in named:
            each.seen[:] = each.seen or [found.seen[each]]
            if each.seen != [found.seen[each]]:
                raise GalleryError(
                    f"{each.path}: was changed meanwhile, or differs on {found.worker} from other machines"
                )
        record(found.result)
        done += part.rows
        if progress is not None:
            progress(done, work.rows)

    job = BlocksJob(work, workers.cpus, None if workers.mixed_cpus else kernels())
    workers.each(job, _parts(work.rows, work.block_rows, workers.cpus), record_part)


def _named(work: Work[Any]) -> list[StoredEmbeddings]:
    """Return the embeddings of a work for workers elsewhere.

    Raises:
        UnsupportedError: they cannot read them.
    """
    for each in work.embeddings:
        if not isinstance(each, StoredEmbeddings):
            raise UnsupportedError(
                f"an array of shape {each.shape} is in the memory of this process, where other processes cannot read "
                "it; name the file it is from"
            )
    return [each for each in work.embeddings if isinstance(each, StoredEmbeddings)]


def _parts(rows: int, block_rows: int, threads: int) -> list[Part]:
    """Cut the rows into parts of whole blocks, at least one for each of a worker's threads."""
    blocks = -(-rows // block_rows)
    step = max(threads, -(-blocks // _MOST_PARTS)) * block_rows
    starts = range(0, rows, step)
    return [Part(f"block-{at // block_rows:07d}", min(step, rows - at), at) for at in starts]


@dataclass(frozen=True)
class BlocksDone(Generic[T]):
    """What came of a part; picklable.

    Attributes:
        result: of its blocks, added up.
        seen: SHA-256 of the embeddings that the worker read.
        worker: on which machine, for messages.
    """

    result: T
    seen: dict[StoredEmbeddings, str]
    worker: str


@dataclass(frozen=True)
class BlocksJob(Generic[T]):
    """Blocks of a work on workers elsewhere; see :class:`~fct_infer.gallery.jobs.Job`. A part is some whole blocks.

    Attributes:
        work: what is done.
        threads: of each worker.
        kernels: what computes on the driver; None: any will do.
    """

    work: Work[T]
    threads: int
    kernels: str | None

    def open(self) -> AbstractContextManager[Callable[[Part], BlocksDone[T]]]:
        """Read the embeddings; have what does a part.

        Raises:
            UnsupportedError: this machine computes by other kernels.
            FctError: as for :func:`~fct_infer.evaluation.reading.read_named`, or a row cannot be compared.
        """
        machine, own = socket.gethostname(), kernels()
        if self.kernels not in (None, own):
            raise UnsupportedError(
                f"{machine} computes by {own}, the driver by {self.kernels}: scores would differ in their last bits; "
                "take machines of one kind, or accept it with --mixed-cpus"
            )
        names = _named(self.work)
        read = {each: read_named(each) for each in dict.fromkeys(names)}  # one file may be both queries and gallery
        seen = {each: hashlib.sha256(array.data).hexdigest() for each, array in read.items()}
        do = self.work.open([read[each] for each in names])
        return nullcontext(lambda part: BlocksDone(self._do(do, part), seen, machine))

    def _do(self, do: Callable[[Sequence[slice]], T], part: Part) -> T:
        step, end = self.work.block_rows, part.first_row + part.rows
        blocks = [slice(at, min(at + step, end)) for at in range(part.first_row, end, step)]
        shares = [blocks[first :: self.threads] for first in range(min(self.threads, len(blocks)))]
        found: list[Any] = []
        for_each_block(len(shares), 1, lambda number: found.append(do(shares[number.start])), self.threads, None)
        added: T = reduce(add, found)
        return added


def kernels() -> str:
    """Say what computes scores in this process: NumPy, the instructions it found, its BLAS."""
    config = np.show_config(mode="dicts")
    assert isinstance(config, dict)
    instructions = config["SIMD Extensions"]
    newest = (instructions.get("found") or instructions.get("baseline") or ["nothing more"])[-1]
    built = config["Build Dependencies"]["blas"]
    blas = {
        f"{pool['internal_api']} {pool['version']} for {pool.get('architecture', 'any')}"
        for pool in threadpool_info()
        if pool["user_api"] == "blas" and "numpy" in pool["filepath"]
    }
    return f"NumPy {np.__version__} with {newest}, {', '.join(sorted(blas)) or built['name']} {built['version']}"
