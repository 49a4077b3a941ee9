"""What a transformation is trained on: cached features, or images and the models that embed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fct_infer.errors import GalleryError, OutputError, UsageError
from fct_infer.gallery import read_npy
from fct_infer.maps import Statistics
from fct_infer.training.config import to_plain
from fct_infer.training.data.sources import DataConfig, open_data
from fct_infer.training.data.splits import Split, usual_share
from fct_infer.training.features.cached import Columns, Features, concatenate
from fct_infer.training.features.from_images import ImageFeatures, OnImages, Views
from fct_infer.training.features.image_models import open_image_model
from fct_infer.training.models.checkpoints import CLASSIFIER, load_checkpoint
from fct_infer.training.models.classifiers import Classifier, LinearClassifier
from fct_infer.training.trainers.transformation import check_labels

if TYPE_CHECKING:
    from fct_infer.training.runs.folder import RunFolder


@dataclass(frozen=True)
class FeatureFolders:
    """One set of cached embeddings: folders of ``.npy`` shards or ``.npy`` files, or what ``open_source`` opens.

    The first two are described in :mod:`fct_infer.training.features.cached`; the others are converted to them.

    Attributes:
        old, new: embeddings by either model, row i of the same item.
        side: side-information; None is that of ``old``, if it is a gallery or a file that has any; of a list the
            columns follow each other, as ``fct-embed`` sets several models'.
        labels: classes, for FastFill.
        groups: which image a row is a view of; the views of an image are held out together.
        views: the same without a file: rows ``i``, ``i + n``, ``i + 2 n`` ... are that many views of image ``i`` of
            ``n``.
        old_column, new_column: that hold the embeddings, where that is not clear.
        allow_cast: narrow float64 and wide integers to float32.
    """

    old: str
    new: str
    side: str | tuple[str, ...] | None = None
    labels: str | None = None
    groups: str | None = None
    views: int = 1
    old_column: str | None = None
    new_column: str | None = None
    allow_cast: bool = False

    def open(self) -> Features:
        """Open the set; errors as :meth:`Features.open` and :meth:`Features.viewed`."""
        return Features.open(self.old, self.new, self.side, self.labels, self.groups).viewed(self.views)


@dataclass(frozen=True, kw_only=True)
class ImageViews(Views):
    """Images, as a backbone's training takes them, that are embedded once before the training.

    Attributes:
        images: which.
    """

    images: DataConfig


@dataclass(frozen=True)
class EmbeddingModels:
    """What embeds the images: folders of finished runs, checkpoints, or bundles of fct-export.

    Attributes:
        old, new: the models in production, and to come.
        side: side-information; the columns of several follow each other.
        trust_code: build a checkpoint's model that is not this project's.
    """

    old: str
    new: str
    side: str | tuple[str, ...] | None = None
    trust_code: bool = False


@dataclass(frozen=True)
class TrainingData:
    """The training set: what it is in sum, and its held-out rows in memory as stored."""

    features: Features
    split: Split
    statistics: Statistics
    held_out: Columns
    classifier: Classifier | None


def open_features(
    folders: Sequence[FeatureFolders], classifier: Classifier | None, share: float | None, seed: int
) -> TrainingData:
    """Open one set or a mixture, read every row once to check it, and keep those that are held out.

    Raises:
        GalleryError: features are missing, malformed, or hold NaN or infinity; names file and row.
        ArrayError: a label that the classifier does not know.
        UsageError: the sets do not fit together, or no such share can be held out.
    """
    features = Features.joined([each.open() for each in folders])
    share = usual_share(features.rows) if share is None else share
    split = Split.draw(features.rows, share, seed, features.groups)
    parts, sums, first = [], list[Statistics](), 0
    for block in features.blocks():
        last = first + len(block["old"])
        if classifier is not None and "labels" in block:
            check_labels(block["labels"], len(classifier.weight), first)
        mask = split.is_held_out(first, last)
        parts.append({name: column[mask] for name, column in block.items()})
        if not mask.all():
            sums.append(Statistics.of_block({name: column[~mask] for name, column in block.items()}))
        first = last
    return TrainingData(features, split, reduce(Statistics.merged, sums), concatenate(parts), classifier)


def embed_images(
    run: RunFolder,
    data: ImageViews,
    models: EmbeddingModels,
    seed: int,
    on_images: OnImages | None = None,
    classifier: str | None = None,
) -> FeatureFolders:
    """Embed the images into the run's folder, as far as they are not yet, and return where the embeddings are.

    Begins the run once images and models are found to be there. ``classifier``, if it is a run's folder, must know the
    images' classes in their order, as labels are their numbers.

    Raises:
        FctError: as :func:`open_data`, :func:`open_image_model` and :class:`ImageFeatures`.
        UsageError: the classifier numbers its classes otherwise.
        OutputError: the run was begun with other images or models of the same names.
    """
    images, device = open_data(data.images), run.fabric.device
    if classifier is not None:
        _check_class_names(Path(classifier), images.class_names)
    columns = {
        name: [open_image_model(path, device, trust_code=models.trust_code) for path in _listed(paths)]
        for name, paths in (("old", models.old), ("side", models.side), ("new", models.new))
        if paths is not None
    }
    folder = run.path / "features"
    source = to_plain(replace(data, images=replace(data.images, workers=0)))  # whoever loads them
    features = ImageFeatures(folder, images, columns, data, seed, source)
    if run.is_resumed and not features.is_begun():
        raise OutputError(f"{folder}: is of other images or models than there are now; --restart begins anew")
    run.begin()
    run.first(features.begin)
    fabric = run.fabric
    features.compute(on_images, device=device, rank=fabric.global_rank, processes=fabric.world_size)
    fabric.barrier()
    old, new, labels, groups = (str(folder / name) for name in ("old", "new", "labels", "groups"))
    return FeatureFolders(old, new, str(folder / "side") if models.side else None, labels, groups)


def load_classifier(path: str | Path) -> Classifier:
    """Load a new model's classifier: from the folder of its finished run, or the weight in a ``.npy`` file.

    Raises:
        GalleryError: the ``.npy`` file is missing, malformed, or not finite floating-point (classes, d_new).
        ArtifactError: the run is not finished, or its classifier is damaged.
    """
    path = Path(path)
    if path.suffix != ".npy":
        return load_checkpoint(path / CLASSIFIER, Classifier)[0]
    weight = read_npy(path)
    if weight.ndim != 2 or weight.dtype.kind != "f" or 0 in weight.shape or not np.isfinite(weight).all():
        raise GalleryError(f"{path}: is {weight.dtype} {weight.shape}, wanted finite floats (classes, d_new)")
    classifier = LinearClassifier(weight.shape[1], weight.shape[0])
    classifier.weight.data.copy_(torch.from_numpy(weight))
    return classifier


def _check_class_names(classifier: Path, names: Sequence[str]) -> None:
    if classifier.suffix == ".npy":  # does not tell
        return
    known = load_checkpoint(classifier / CLASSIFIER, Classifier)[1].config.get("class_names")
    if known != list(names):
        raise UsageError(f"classifier: {classifier} has other classes than data.images, or in another order")


def _listed(paths: str | Sequence[str]) -> Sequence[str]:
    return [paths] if isinstance(paths, str) else paths
