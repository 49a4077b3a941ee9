"""New embeddings of rows from their images, by the new model itself."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.backends.embedder import Embedder
from fct_infer.embedding.embed_gallery import BATCHES_AHEAD, DEFAULT_BATCH_SIZE, load_ahead
from fct_infer.embedding.images import open_images
from fct_infer.errors import InputError, UsageError
from fct_infer.machine import usable_cpus
from fct_infer.serving.rows import Ids
from fct_infer.transformation import Float32Array


class ImageEmbedder:
    """ids -> rows (n, dim) by a model of images whose ids are their paths in a folder, as ``fct-embed`` writes them.

    A row whose image is not there, or cannot be read, is NaN: it stays as it is.

    Args:
        model: the new backbone.
        images: folder, or one ``.npy`` array whose row numbers are the ids.
        threads: that read and decode; by default as many as there are CPUs.

    Raises:
        InputError: there are no images.
        UsageError: the model makes side-information.
    """

    def __init__(self, model: Embedder, images: str | Path, threads: int | None = None) -> None:
        if model.kind == "side-information":
            raise UsageError(f"model {model.model_version} makes side-information; it does not make embeddings")
        self._model, self._source, self._threads = model, open_images([images]), threads or usable_cpus()
        self._recipe = self._source.recipe(model)
        names: Iterable[str | int] = self._source.ids if self._source.ids is not None else range(len(self._source))
        self._numbers: dict[str | int, int] = {name: number for number, name in enumerate(names)}

    def __call__(self, ids: Ids) -> NDArray[Any]:
        """Return rows (n, dim), float32."""
        found = np.full((len(ids), self._model.embedding_dim), np.nan, np.float32)
        numbers = [self._numbers.get(_text(key), -1) for key in ids.tolist()]
        places = [place for place, number in enumerate(numbers) if number >= 0]

        def load(which: int) -> Float32Array | None:
            try:
                return self._source.load(numbers[places[which]], [self._recipe])[0]
            except InputError:
                return None

        ahead = max(BATCHES_AHEAD * DEFAULT_BATCH_SIZE, 2 * self._threads)
        waiting: list[int] = []
        images: list[Float32Array] = []
        with closing(load_ahead(load, len(places), self._threads, ahead)) as loaded:
            for place, image in zip(places, loaded, strict=True):
                if image is not None:
                    waiting.append(place)
                    images.append(image)
                if len(waiting) == DEFAULT_BATCH_SIZE:
                    found[waiting] = self._model(np.stack(images))
                    waiting, images = [], []
        if waiting:
            found[waiting] = self._model(np.stack(images))
        return found


def _text(key: Any) -> Any:
    return key.decode(errors="replace") if isinstance(key, bytes) else key
