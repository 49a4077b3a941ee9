"""Images that are loaded one by one while a model is trained: any ``torch.utils.data.Dataset``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from fct_infer.errors import ArrayError, InputError
from fct_infer.training.data.batches import ShuffledRows

_log = logging.getLogger(__name__)

OnError: TypeAlias = Literal["fail", "skip"]
Item: TypeAlias = tuple[int, int | None]
"""A row, and the seed of its random view; None for the view without chance."""


class ImageLoader(Protocol):
    """Loads one image."""

    def load(self, row: int, is_random: bool) -> Tensor:
        """Return uint8 (h, w, 3), or float32 (3, h, w) on the scale 0 to 1; random views draw from torch's generator.

        Raises:
            InputError: the image is broken; names it.
        """
        ...


@dataclass(frozen=True)
class LoadedImages:
    """Labelled images behind a loader.

    Attributes:
        loader: loads one image by its row in the whole set.
        rows: (n,) int64, which of the loader's images belong to this set.
        labels: (n,) int64, index into ``class_names``.
        class_names: one per class.
        workers: processes that load; 0 loads in the training process. The result does not depend on it.
        on_error: whether a broken image ends the training, or is named once in the log and left out.
    """

    loader: ImageLoader
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    workers: int = 0
    on_error: OnError = "fail"

    def select(self, rows: NDArray[np.int64], labels: NDArray[np.int64], class_names: tuple[str, ...]) -> LoadedImages:
        """See :class:`~fct_infer.training.data.images.ImageData`."""
        return replace(self, rows=self.rows[rows], labels=labels, class_names=class_names)

    def batches(self, batch_size: int, seed: int, views: int = 1) -> LoadedBatches:
        """See :class:`~fct_infer.training.data.images.ImageData`; every view is drawn anew from the image."""
        return LoadedBatches(self, batch_size, seed, views)

    def in_order(self, batch_size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`~fct_infer.training.data.images.ImageData`."""
        items: list[Item] = [(row, None if seed is None else seed + row) for row in range(len(self.rows))]
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        loader = _data_loader(self, batches, views=1)
        for batch in _Unbroken(loader, self.on_error):
            yield batch[0], batch[-1]


class LoadedBatches:
    """Shuffled batches of random views; (images, ..., labels), the images once for every view.

    Raises:
        ArrayError: fewer images than one batch.
    """

    def __init__(self, data: LoadedImages, batch_size: int, seed: int, views: int) -> None:
        self._order = ShuffledRows(len(data.rows), batch_size, seed)
        self._views = torch.Generator().manual_seed(seed)
        self._labels = torch.from_numpy(data.labels)
        self._batches = _Unbroken(_data_loader(data, _SeededRows(self._order, self._views), views), data.on_error)
        self.generators = (self._order.generator, self._views)

    def share(self, rank: int, processes: int) -> None:
        """See :class:`~fct_infer.training.data.batches.Batches`."""
        self._order.share(rank, processes)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, in a new order every time."""
        for *images, rows in self._batches:
            yield (*images, self._labels[rows])


class _SeededRows:
    """Gives every row of every batch a seed, so that its view depends on neither process nor order of loading."""

    def __init__(self, order: ShuffledRows, generator: torch.Generator) -> None:
        self._order, self._generator = order, generator

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[Item]]:
        for rows in self._order:
            seed = int(torch.randint(1 << 60, (), generator=self._generator))
            yield [(row, seed + row) for row in rows.tolist()]


@dataclass(frozen=True)
class _Broken:
    """What a worker sends instead of an image; raised there, the error would come with the worker's traceback."""

    reason: str


class _Items:
    """The map-style dataset a DataLoader's workers hold."""

    def __init__(self, data: LoadedImages, views: int) -> None:
        self._loader, self._rows, self._views = data.loader, data.rows, views

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: Item) -> tuple[list[Tensor], int] | _Broken:
        number, seed = item
        row = int(self._rows[number])
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed or 0)
                return [self._loader.load(row, seed is not None) for _ in range(self._views)], number
        except InputError as error:
            return _Broken(str(error))


def _data_loader(data: LoadedImages, batches: Any, views: int) -> DataLoader[Any]:
    return DataLoader(
        _Items(data, views),  # type: ignore[arg-type]  # a Dataset by what it can do
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=data.workers,
        generator=torch.Generator(),  # of the workers' seeds, which no one uses; without it the global one is drawn
        persistent_workers=data.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(items: Sequence[tuple[list[Tensor], int] | _Broken]) -> tuple[list[Tensor], list[str]]:
    """Return the views and row numbers of the images that are whole, and the reasons of those that are not."""
    reasons = [item.reason for item in items if isinstance(item, _Broken)]
    whole = [item for item in items if not isinstance(item, _Broken)]
    shapes = sorted({(str(view.dtype), tuple(view.shape)) for views, _ in whole for view in views})
    if len(shapes) > 1:
        found = ", ".join(f"{dtype} {shape}" for dtype, shape in shapes[:3])
        raise ArrayError(f"images of one batch differ: {found}; let the dataset bring them to one size")
    if not whole:
        return [], reasons
    views = [torch.stack(each) for each in zip(*(views for views, _ in whole), strict=True)]
    return [*views, torch.tensor([number for _, number in whole])], reasons


class _Unbroken:
    """Batches without the broken images, each of which is named once, or the first of which is an error."""

    def __init__(self, loader: DataLoader[Any], on_error: OnError) -> None:
        self._loader, self._on_error, self._named = loader, on_error, set[str]()

    def __iter__(self) -> Iterator[list[Tensor]]:
        for batch, reasons in self._loader:
            for reason in reasons:
                if self._on_error == "fail":
                    raise InputError(reason)
                if reason not in self._named:
                    self._named.add(reason)
                    _log.warning("left out: %s", reason)
            if not batch:
                raise InputError(f"every image of a batch is broken; the last one: {reasons[-1]}")
            yield batch
