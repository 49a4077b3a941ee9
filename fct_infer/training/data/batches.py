"""Rows of data in shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class ShuffledRows:
    """Row numbers in batches of one size; the last, smaller batch is left out, as batch norm wants.

    Raises:
        ArrayError: fewer rows than one batch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < batch_size:
            raise ArrayError(f"training data: got {rows} rows, wanted at least {batch_size}, one batch")
        self._rows, self._batch_size = rows, batch_size
        self._rank, self._processes = 0, 1
        self.generator = torch.Generator().manual_seed(seed)

    def share(self, rank: int, processes: int) -> None:
        """See :class:`Batches`."""
        if self._batch_size % processes:
            raise UsageError(f"a batch of {self._batch_size} rows cannot be shared evenly by {processes} devices")
        self._rank, self._processes = rank, processes

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._rows // self._batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the (n,) int64 row numbers of each batch of one epoch."""
        order = torch.randperm(self._rows, generator=self.generator)
        for rows in torch.split(order, self._batch_size)[: len(self)]:
            yield rows[self._rank :: self._processes]


class TensorBatches:
    """Batches of tensors that fit in memory, one row of each at a time.

    Raises:
        ArrayError: the tensors differ in length, or hold fewer rows than one batch.
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int) -> None:
        lengths = sorted({len(tensor) for tensor in tensors})
        if len(lengths) != 1:
            raise ArrayError(f"training data: got {lengths} rows, wanted one length")
        self._tensors, self._rows = tensors, ShuffledRows(lengths[0], batch_size, seed)
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
