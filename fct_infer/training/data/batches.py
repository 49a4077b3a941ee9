"""Rows of data in shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from fct_infer.errors import ArrayError, UsageError


class Batches(Protocol):
    """What the training loop needs of a data source."""

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """All that the coming epochs depend on; their states are kept with an unfinished run."""
        ...

    def share(self, rank: int, processes: int) -> None:
        """From now on, hand out only the part of each batch that process ``rank`` of several works on."""
        ...

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, in a new order every time."""
        ...


LEAST_ROWS = 2  # of a batch, in each process: batch norm has no variance of one


def batch_ends(rows: int, batch_size: int, processes: int = 1) -> list[int]:
    """Return where the batches of some rows end: all are whole but the last.

    What is left over is a batch of its own, or joins the one before it if that would be too few rows for batch norm.

    Args:
        rows: at least :data:`LEAST_ROWS`.
        batch_size: rows of a whole batch.
        processes: that share each batch.
    """
    whole, left = divmod(rows, batch_size)
    ends = [batch_size * number for number in range(1, whole + 1)]
    if left >= LEAST_ROWS * processes or not ends:
        return [*ends, rows] if left else ends
    return [*ends[:-1], rows]


class ShuffledRows:
    """Row numbers in batches.

    Args:
        rows: how many there are.
        batch_size: rows a batch.
        seed: of their order.
        keep_rest: whether the rows that fill no batch are one as well, see :func:`batch_ends`; they are left out
            otherwise, as a loss wants that compares the rows of a batch with each other.

    Raises:
        ArrayError: fewer rows than one batch, or than any batch can have.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, *, keep_rest: bool = False) -> None:
        if rows < (wanted := LEAST_ROWS if keep_rest else batch_size):
            raise ArrayError(f"training data: got {rows} rows, wanted at least {wanted}, one batch")
        self._rows, self._batch_size, self._keep_rest = rows, batch_size, keep_rest
        self._rank, self._processes = 0, 1
        self.generator = torch.Generator().manual_seed(seed)

    def share(self, rank: int, processes: int) -> None:
        """See :class:`Batches`."""
        if self._batch_size % processes:
            raise UsageError(f"a batch of {self._batch_size} rows cannot be shared evenly by {processes} devices")
        self._rank, self._processes = rank, processes

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._ends())

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the (n,) int64 row numbers of each batch of one epoch."""
        order = torch.randperm(self._rows, generator=self.generator)
        for start, end in pairwise([0, *self._ends()]):
            yield order[start:end][self._rank :: self._processes]

    def _ends(self) -> list[int]:
        kept = self._rows if self._keep_rest else self._rows - self._rows % self._batch_size
        return batch_ends(kept, self._batch_size, self._processes)


class TensorBatches:
    """Batches of tensors that fit in memory, one row of each at a time; arguments as of :class:`ShuffledRows`.

    Raises:
        ArrayError: the tensors differ in length, or hold fewer rows than one batch.
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int, keep_rest: bool = False) -> None:
        lengths = sorted({len(tensor) for tensor in tensors})
        if len(lengths) != 1:
            raise ArrayError(f"training data: got {lengths} rows, wanted one length")
        self._tensors, self._rows = tensors, ShuffledRows(lengths[0], batch_size, seed, keep_rest=keep_rest)
        self.generators = (self._rows.generator,)

    def share(self, rank: int, processes: int) -> None:
        """See :class:`Batches`."""
        self._rows.share(rank, processes)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, in a new order every time."""
        for rows in self._rows:
            yield tuple(tensor[rows] for tensor in self._tensors)
