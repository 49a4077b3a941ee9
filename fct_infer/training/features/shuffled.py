"""Shuffled batches of cached embeddings that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import ArrayError, UsageError
from fct_infer.training.data.batches import LEAST_ROWS, batch_ends
from fct_infer.training.data.splits import Split
from fct_infer.training.features.cached import Columns, Features, concatenate

CHUNK_ROWS = 256
BUFFER_ROWS = 65_536


class FeatureBatches:
    """Batches of ``old``, ``side`` and ``new``, and ``labels`` where there are any, as float32 and int64 tensors.

    Without side-information ``old`` takes its place (arXiv 2112.02805).

    The order: an epoch cuts the rows into chunks of :data:`CHUNK_ROWS` neighbours, draws an order of the chunks, fills
    a buffer with the next chunks in that order until it holds :data:`BUFFER_ROWS` rows, and draws an order of the rows
    in the buffer. So a batch mixes rows of some hundred places of the data whatever its order on disk, memory does not
    grow with the data, and files are read in runs. Rows left over in a buffer join the next; the last rows of an epoch
    that fill no batch are a smaller one, see :func:`fct_infer.training.data.batches.batch_ends`. An epoch is drawn from
    one number of ``generators``.

    Raises:
        ArrayError: there are too few training rows for any batch.
    """

    def __init__(self, features: Features, split: Split, batch_size: int, seed: int) -> None:
        if split.training_rows < LEAST_ROWS:
            raise ArrayError(f"training data: got {split.training_rows} rows, wanted at least {LEAST_ROWS}, one batch")
        self._features, self._split, self._batch_size = features, split, batch_size
        self._chunks = features.ranges(CHUNK_ROWS)
        self._rank, self._processes = 0, 1
        self.generators = (torch.Generator().manual_seed(seed),)

    def share(self, rank: int, processes: int) -> None:
        """See :class:`fct_infer.training.data.batches.Batches`."""
        if self._batch_size % processes:
            raise UsageError(f"a batch of {self._batch_size} rows cannot be shared evenly by {processes} devices")
        self._rank, self._processes = rank, processes

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(batch_ends(self._split.training_rows, self._batch_size, self._processes))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch.

        Raises:
            GalleryError: a file cannot be read or has changed, or a row holds NaN or infinity; names file and row.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=self.generators[0])))
        order = rng.permutation(len(self._chunks))
        left: list[Columns] = []
        least = LEAST_ROWS * self._processes
        for first in range(0, len(order), BUFFER_ROWS // CHUNK_ROWS):
            chosen = np.sort(order[first : first + BUFFER_ROWS // CHUNK_ROWS])
            parts = self._features.read((self._chunks[index] for index in chosen), self._split.is_training)
            buffer = concatenate([*left, *parts])
            del parts
            rows = rng.permutation(len(buffer["old"]))
            ends = [0, *batch_ends(len(rows), self._batch_size, self._processes)]
            if first + BUFFER_ROWS // CHUNK_ROWS < len(order):  # leave the next one rows enough for a batch
                ends = [end for end in ends if end <= max(len(rows) - least, 0)]
            for start, end in pairwise(ends):
                yield as_tensors(buffer, rows[start:end][self._rank :: self._processes])
            left = [{name: column[rows[ends[-1] :]] for name, column in buffer.items()}]
            del buffer


def as_tensors(columns: Columns, rows: NDArray[np.int64] | slice) -> tuple[Tensor, ...]:
    """Return ``old``, ``side``, ``new`` float32 and, where there are any, ``labels`` int64 of some rows."""
    names = ("old", "side" if "side" in columns else "old", "new")
    vectors = (torch.from_numpy(np.ascontiguousarray(columns[name][rows], np.float32)) for name in names)
    labels = (torch.from_numpy(columns["labels"][rows]),) if "labels" in columns else ()
    return (*vectors, *labels)
