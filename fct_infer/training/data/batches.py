"""Tensors that fit in memory, handed out in shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from fct_infer.errors import ArrayError


class Batches(Protocol):
    """What the training loop needs of a data source; a ``torch.utils.data.DataLoader`` fits."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, in a new order every time."""
        ...


class TensorBatches:
    """Rows of several tensors in batches of one size; the last, smaller batch is left out, as batch norm wants.

    Raises:
        ArrayError: the tensors differ in length, or hold fewer rows than one batch.
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int) -> None:
        lengths = sorted({len(tensor) for tensor in tensors})
        if len(lengths) != 1 or lengths[0] < batch_size:
            raise ArrayError(
                f"training data: got {lengths} rows, wanted one length of at least {batch_size}, one batch"
            )
        self._tensors, self._batch_size = tensors, batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._tensors[0]) // self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, in a new order every time."""
        order = torch.randperm(len(self._tensors[0]), generator=self._generator)
        for rows in torch.split(order, self._batch_size)[: len(self)]:
            yield tuple(tensor[rows] for tensor in self._tensors)
