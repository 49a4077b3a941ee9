"""Data sets as a configuration names them, whole or in part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.artifacts.manifest import DEFAULT_INTERPOLATION, Interpolation
from fct_infer.errors import UsageError
from fct_infer.training.config import check_arguments
from fct_infer.training.data.cifar import read_cifar100
from fct_infer.training.data.datasets import LoadedImages, OnError
from fct_infer.training.data.folders import CENTRE, read_folder
from fct_infer.training.data.glyphs import render_glyphs
from fct_infer.training.data.images import ImageData
from fct_infer.training.imports import import_object

_SHARE = re.compile(r"(first|last)\s+(\d+(?:\.\d+)?)\s*(%?)")


@dataclass(frozen=True)
class DataConfig:
    """Which images to train with.

    Attributes:
        source: ``"glyphs"``, ``"cifar100"``, ``"folder"`` (a folder per class), or ``"module:function"``, which returns
            a map-style ``torch.utils.data.Dataset`` of (image, label) with a list ``targets`` of all labels and, if
            they have names, ``classes``. Its images are uint8 (h, w, 3), or float32 (3, h, w) on the scale 0 to 1.
        path: of the folder or archive.
        split: of glyphs and CIFAR-100.
        arguments: of the function, or of glyphs: ``classes``, ``images_per_class``, ``seed``.
        classes: ``"all"``, ``"first 50 %"``, ``"last 20"``, or a list of class names.
        fraction: share of the images of each class that is used, at least one.
        seed: of the choice of that share.
        image_size: pixels of a side; folders only.
        min_area: smallest share of an image that a random view shows; folders only.
        interpolation: ``bilinear``, ``bicubic`` or ``lanczos``, of all views; folders only.
        crop_fraction: share of the shorter side that the view without chance shows, cut out of its middle after
            scaling; folders only.
        workers: processes that load images; 0 loads in the training process. Results do not depend on it.
        on_error: whether a broken image ends the training, or is named once and left out.
    """

    source: str
    path: str | None = None
    split: Literal["train", "test"] = "train"
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: str | list[str] = "all"
    fraction: float = 1.0
    seed: int = 0
    image_size: int = 224
    min_area: float = 0.08
    interpolation: Interpolation = DEFAULT_INTERPOLATION
    crop_fraction: float = CENTRE
    workers: int = 0
    on_error: OnError = "fail"

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction: got {self.fraction}, wanted a number above 0 and at most 1")
        if not 0 < self.min_area <= 1:
            raise UsageError(f"min_area: got {self.min_area}, wanted a number above 0 and at most 1")
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"crop_fraction: got {self.crop_fraction}, wanted a number above 0 and at most 1")
        if self.image_size < 1 or self.workers < 0:
            raise UsageError(f"image_size, workers: got {self.image_size}, {self.workers}, wanted at least 1 and 0")


def open_data(config: DataConfig) -> ImageData:
    """Open a data set and choose the classes and images that the configuration asks for.

    Raises:
        UsageError: there is no such source, folder or class, or the arguments do not fit.
        InputError: a file is damaged.
    """
    data = _open_whole(config)
    chosen = _choose_classes(data.class_names, config.classes)
    if chosen == list(range(len(data.class_names))) and config.fraction == 1:
        return data
    rng = np.random.default_rng(config.seed)
    by_class = [np.flatnonzero(data.labels == number) for number in chosen]
    kept = [np.sort(rng.permutation(rows)[: max(1, round(config.fraction * len(rows)))]) for rows in by_class]
    labels = np.concatenate([np.full(len(rows), label, np.int64) for label, rows in enumerate(kept)])
    rows = np.concatenate(kept)
    order = np.argsort(rows, kind="stable")  # as in the whole set
    return data.select(rows[order], labels[order], tuple(data.class_names[number] for number in chosen))


def _open_whole(config: DataConfig) -> ImageData:
    loading: dict[str, Any] = {"workers": config.workers, "on_error": config.on_error}
    match config.source:
        case "glyphs":
            arguments = {"classes": 100, "images_per_class": 100} | config.arguments
            check_arguments(render_glyphs, arguments, "data.arguments")
            return render_glyphs(**{"split": config.split, **arguments})
        case "cifar100":
            return read_cifar100(_path(config), config.split)
        case "folder":
            views: dict[str, Any] = {
                name: getattr(config, name) for name in ("min_area", "interpolation", "crop_fraction")
            }
            return read_folder(_path(config), config.image_size, **views, **loading)
        case source if ":" in source:
            return _wrap_dataset(source, import_object(source)(**config.arguments), **loading)
        case other:
            raise UsageError(f"data.source: got {other!r}, wanted glyphs, cifar100, folder or module:function")


def _path(config: DataConfig) -> str:
    if config.path is None:
        raise UsageError(f"data.path: missing; where is the {config.source}?")
    return config.path


def _choose_classes(names: Sequence[str], wanted: str | list[str]) -> list[int]:
    """Return the numbers of the classes, in the order of the whole set, or of the list that names them."""
    if wanted == "all":
        return list(range(len(names)))
    if isinstance(wanted, str):
        match = _SHARE.fullmatch(wanted.strip())
        count = round(float(match[2]) * (len(names) / 100 if match[3] else 1)) if match else 0
        if match is None or not 1 <= count <= len(names):
            raise UsageError(
                f"data.classes: got {wanted!r}, wanted 'all', 'first N', 'last N', either with %, or a list, "
                f"of {len(names)} classes"
            )
        return list(range(count)) if match[1] == "first" else list(range(len(names) - count, len(names)))
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [name for name in wanted if name not in numbers]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise UsageError(f"data.classes: {unknown[:5] or wanted} are not distinct classes of this set of {len(names)}")
    return [numbers[name] for name in wanted]


class _DatasetLoader:
    """A user's dataset; its own transforms are its own."""

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset = name, dataset

    def load(self, row: int, is_random: bool) -> Tensor:
        """See :class:`~fct_infer.training.data.datasets.ImageLoader`."""
        image = torch.as_tensor(self._dataset[row][0])
        is_bytes = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[2] == 3
        if not is_bytes and not (image.dtype == torch.float32 and image.ndim == 3 and image.shape[0] == 3):
            raise UsageError(
                f"{self._name}: image {row} is {image.dtype} {tuple(image.shape)}, wanted uint8 (h, w, 3) or "
                "float32 (3, h, w) on the scale 0 to 1"
            )
        return image


def _wrap_dataset(name: str, dataset: Any, **loading: Any) -> LoadedImages:
    targets = getattr(dataset, "targets", None)
    if targets is None or not hasattr(dataset, "__len__") or len(targets) != len(dataset) or len(dataset) == 0:
        raise UsageError(
            f"{name}: returns a {type(dataset).__name__}; wanted a dataset with a list `targets` of labels"
        )
    labels: NDArray[np.int64] = np.asarray(targets)
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
        raise UsageError(f"{name}: its targets are {labels.dtype} {labels.shape}, wanted integers from 0 on")
    names = tuple(map(str, getattr(dataset, "classes", range(int(labels.max()) + 1))))
    if labels.max() >= len(names):
        raise UsageError(f"{name}: has the label {labels.max()}, but only {len(names)} classes")
    return LoadedImages(
        _DatasetLoader(name, dataset), np.arange(len(labels)), labels.astype(np.int64), names, **loading
    )
