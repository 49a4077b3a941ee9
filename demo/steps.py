"""From nothing to an old gallery and a transformation: render, train, embed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import settings
from numpy.typing import NDArray
from stages import Reporter

from fct_infer.gallery.writer import GalleryWriter, write_npy
from fct_infer.training.data.augment import augmented
from fct_infer.training.data.glyphs import Split, render_glyphs
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.features.embedding import embed
from fct_infer.training.models.base import Backbone
from fct_infer.training.models.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.runs.loop import Progress, ProgressCallback
from fct_infer.training.trainers.backbone import BackboneConfig, train_backbone
from fct_infer.training.trainers.side_information import SideInformationConfig, train_side_information
from fct_infer.training.trainers.transformation import train_transformation

BACKBONES = ("old_model", "side_information", "new_model")


class Steps:
    """The steps that need PyTorch; each reads what the ones before it left in the work folder."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def render(self, folder: Path, report: Reporter) -> str:
        """Draw the training images, and the gallery's images in a random order."""
        size = settings.DATA
        train = render_glyphs(size.classes, size.training_images_per_class, "train")
        report(0.6, "gallery")
        gallery = render_glyphs(size.classes, size.gallery_images_per_class, "test")
        order = np.random.default_rng(0).permutation(len(gallery.labels))
        for split, images, labels in (
            ("train", train.images, train.labels),
            ("test", gallery.images[order], gallery.labels[order]),
        ):
            write_npy(folder / f"{split}_images.npy", images)
            write_npy(folder / f"{split}_labels.npy", labels)
        return f"{len(train.labels):,} training images, {len(order):,} for the gallery, {size.classes} classes"

    def old_model(self, folder: Path, report: Reporter) -> str:
        """Train the model that is in production: it has seen some of the classes only."""
        return self._train_backbone(folder, settings.OLD, settings.DATA.old_classes, report)

    def new_model(self, folder: Path, report: Reporter) -> str:
        """Train the model that is to replace it, without any regard to it."""
        return self._train_backbone(folder, settings.NEW, settings.DATA.classes, report)

    def side_information(self, folder: Path, report: Reporter) -> str:
        """Train the side-information model when the old model is deployed: same images, no labels."""
        config = settings.SIDE_INFORMATION
        images = self.images("train", settings.DATA.old_classes).images
        trained = train_side_information(images, config, _told(report))
        save_checkpoint(folder / "model", trained.backbone, config.model, _described(config, images))
        return f"SimCLR on {len(images):,} images, loss {trained.losses[0]:.2f} -> {trained.losses[-1]:.2f}"

    def old_gallery(self, folder: Path, report: Reporter) -> str:
        """Embed the gallery as production does it today: an embedding, side-information and an id per image."""
        images = self.images("test").images
        old = embed(self.backbone("old_model"), images)
        report(0.5, "side-information")
        side = embed(self.backbone("side_information"), images)
        with GalleryWriter(folder, settings.DATA.rows_per_shard) as gallery:
            gallery.append(old, side, gallery_ids(len(images)))
        shards = len(list((folder / "embeddings").iterdir()))
        return f"{len(images):,} rows in {shards} shards, {old.shape[1]}-d and {side.shape[1]}-d side-information"

    def transformation(self, folder: Path, report: Reporter) -> str:
        """Train h on the old, side and new embeddings of views of the training images; labels are not needed."""
        config, images = settings.TRANSFORMATION, self.images("train").images
        models = {name: self.backbone(name) for name in BACKBONES}
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in BACKBONES}
        for view in range(settings.TRAINING_VIEWS):
            report(0.4 * view / settings.TRAINING_VIEWS, "embedding the training images")
            seen = augmented(images, settings.VIEWS, seed=view)
            for name, model in models.items():
                parts[name].append(embed(model, seen))
        old, side, new = (np.concatenate(parts[name]) for name in BACKBONES)
        on_progress = _told(lambda share, text: report(0.4 + 0.6 * share, text))
        trained = train_transformation(old, side, new, config, on_progress)
        save_checkpoint(folder / "model", trained.module, trained.model, asdict(config))
        return f"{len(old):,} rows, mean squared error {trained.losses[0]:.3f} -> {trained.losses[-1]:.3f}"

    def images(self, split: Split, classes: int | None = None) -> LabelledImages:
        """Read back what :meth:`render` wrote, of the first ``classes`` classes."""
        folder = self.work / "images"
        images, labels = (np.load(folder / f"{split}_{kind}.npy") for kind in ("images", "labels"))
        classes = classes or int(labels.max()) + 1
        chosen = labels < classes
        return LabelledImages(images[chosen], labels[chosen], tuple(map(str, range(classes))))

    def backbone(self, name: str) -> Backbone:
        """Load a trained backbone."""
        return load_checkpoint(self.work / name / "model", Backbone)[0]

    def _train_backbone(self, folder: Path, config: BackboneConfig, classes: int, report: Reporter) -> str:
        data = self.images("train", classes)
        trained = train_backbone(data, config, _told(report))
        save_checkpoint(folder / "model", trained.backbone, config.model, _described(config, data.images))
        return (
            f"{classes} classes, {len(data.labels):,} images, loss {trained.losses[0]:.2f} -> {trained.losses[-1]:.2f}"
        )


def gallery_ids(rows: int) -> NDArray[np.int64]:
    """(rows,) distinct ids that say nothing of the row, as a shop's article numbers do."""
    return np.random.default_rng(1).permutation(np.arange(rows, dtype=np.int64)) * 7 + 1_000_003


def _told(report: Reporter) -> ProgressCallback:
    def on_progress(progress: Progress) -> None:
        text = f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.3f}"
        report(progress.step / progress.steps, text)

    return on_progress


def _described(config: BackboneConfig | SideInformationConfig, images: NDArray[np.uint8]) -> dict[str, Any]:
    """What to keep beside a backbone's weights: how it was trained, and the (c, h, w) of its images."""
    height, width, channels = images.shape[1:]
    return asdict(config) | {"image_shape": [channels, height, width]}
