"""From images to the cached embeddings a transformation is trained on, shard by shard: what is done is not repeated.

FOLDER/  old/*.npy  side/*.npy  new/*.npy   embeddings, see :mod:`fct_infer.training.features.cached`
         labels/*.npy  groups/*.npy         class and image of every row
         features.json                      what they were computed from
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fct_infer.artifacts.files import MEBIBYTE, read_file
from fct_infer.errors import InputError, UsageError
from fct_infer.gallery import write_npy
from fct_infer.storage import remove_tree, write_json
from fct_infer.training.data.augment import Augmentation
from fct_infer.training.data.images import ImageData, to_batch
from fct_infer.training.features.cached import Columns, concatenate
from fct_infer.training.features.image_models import ImageModel

IMAGES_PER_SHARD = 8192
BATCH_SIZE = 256
DESCRIPTION = "features.json"

OnImages: TypeAlias = Callable[[int, int], None]
"""Told how many images are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """How the images are seen, by all models in the same way.

    Attributes:
        views: random views of each image; 0 is the image itself, as production sees it.
        augmentation: of the random views.
        dtype: of the embeddings.
    """

    views: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.views < 0:
            raise UsageError(f"views: got {self.views}, wanted at least 0")
        if not self.views and self.augmentation != Augmentation():
            raise UsageError("augmentation: changes nothing without random views; set views to 1 or more")


class ImageFeatures:
    """The embeddings of some images by some models, in a folder.

    Args:
        folder: where they are, or will be.
        data: the images.
        models: by column: ``old``, ``new`` and perhaps ``side``; the embeddings of several are set side by side.
        views: how the images are seen.
        seed: of the random views.
        source: what tells the images, and how they are seen, from others; strict JSON.
    """

    def __init__(
        self,
        folder: Path,
        data: ImageData,
        models: Mapping[str, Sequence[ImageModel]],
        views: Views,
        seed: int,
        source: Mapping[str, Any],
    ) -> None:
        self._folder, self._data, self._models, self._views = folder, data, models, views
        self.columns = (*models, "labels", "groups")
        self._description = {
            "source": dict(source),
            "seed": seed,
            "images": len(data.labels),
            "images_per_shard": IMAGES_PER_SHARD,
            "models": {name: [model.sha256 for model in each] for name, each in models.items()},
        }
        self._shards = range(0, len(data.labels), IMAGES_PER_SHARD)
        generator = torch.Generator().manual_seed(seed)
        # Of every view of every shard, so that a shard's views do not depend on which shards were done before.
        self._seeds = torch.randint(1 << 59, (len(self._shards), max(views.views, 1)), generator=generator).tolist()

    def is_begun(self) -> bool:
        """Whether the folder holds embeddings of these very images by these models, if perhaps not all."""
        path = self._folder / DESCRIPTION
        if not path.exists():
            return False
        try:
            return bool(json.loads(read_file(path, MEBIBYTE)) == self._description)
        except ValueError:  # damaged
            return False

    def begin(self) -> None:
        """Make the folder ready; embeddings of other images or by other models are dropped.

        Raises:
            ResourceError: the disk is full, or another I/O error.
        """
        if not self.is_begun():
            remove_tree(self._folder)
            write_json(self._folder / DESCRIPTION, self._description)

    def compute(
        self,
        on_images: OnImages | None = None,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Compute what is missing; of several processes each its part. Views are made on ``device``.

        Raises:
            InputError: an image is broken, or an embedding does not fit the dtype or holds NaN or infinity.
            ResourceError: the disk is full, or another I/O error; finished shards are kept.
        """
        whole = len(self._data.labels)
        for number in range(rank, len(self._shards), processes):
            files = {name: self._folder / name / f"{number:06d}.npy" for name in self.columns}
            if all(file.exists() for file in files.values()):
                continue
            rows = np.arange(self._shards[number], min(self._shards[number] + IMAGES_PER_SHARD, whole))
            parts = []
            for done, part in self._embed(number, rows, device):
                parts.append(part)
                if on_images and rank == 0:
                    on_images(int(rows[0]) + done, whole)
            for name, column in concatenate(parts).items():
                write_npy(files[name], column)

    def _embed(self, number: int, rows: NDArray[np.int64], device: torch.device | str) -> Iterator[tuple[int, Columns]]:
        """Yield the columns of each batch of each view of some images, and how many images' worth is done."""
        labels, views = self._data.labels[rows], self._views
        images = self._data.select(rows, labels, self._data.class_names)
        for view, seed in enumerate(self._seeds[number]):
            generator = torch.Generator().manual_seed(seed)
            for batch, places in images.in_order(BATCH_SIZE, seed if views.views else None):
                seen, kept = to_batch(batch.to(device)), places.numpy()
                if views.views:
                    seen = views.augmentation(seen, generator)
                columns = {
                    name: np.concatenate([self._vectors(model, seen, rows[kept]) for model in each], axis=1)
                    for name, each in self._models.items()
                }
                done = (view * len(rows) + int(kept[-1]) + 1) // len(self._seeds[number])
                yield done, columns | {"labels": labels[kept], "groups": rows[kept]}

    def _vectors(self, model: ImageModel, images: torch.Tensor, rows: NDArray[np.int64]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            vectors = model.embed(images).astype(self._views.dtype, copy=False)
        is_finite = np.isfinite(vectors).all(axis=1)
        if not is_finite.all():
            row = rows[int(np.argmin(is_finite))]
            raise InputError(f"{model.name}: the {vectors.dtype} embedding of image {row} holds NaN or infinity")
        return vectors
