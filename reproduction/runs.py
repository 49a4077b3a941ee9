"""What is trained for one seed: old model, new model, BCT, side-information, and the transformations between them.

Every model is a run folder, so a run that was stopped goes on where it stood, and a finished one is not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.gallery import write_npy
from fct_infer.training.checkpoints import load_checkpoint
from fct_infer.training.config import read_config
from fct_infer.training.data.augment import Augmentation, augmented
from fct_infer.training.data.glyphs import render_glyphs
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.embedding import embed
from fct_infer.training.loop import Progress
from fct_infer.training.models.base import Backbone
from fct_infer.training.run import RunFolder
from fct_infer.training.trainers.backbone_run import run_backbone, run_bct
from fct_infer.training.trainers.side_information_run import run_side_information
from fct_infer.training.trainers.transformation_run import run_transformation

CONFIGS = Path("configs/glyphs")
CLASSES, TRAINING_IMAGES, TEST_IMAGES = 100, 100, 30
BACKBONES = ("old", "side", "new", "bct")
VIEWS = 2  # random views of each training image whose embeddings h is trained on
_PRINT_EVERY = 20.0  # seconds

Trainer = Callable[..., dict[str, Any]]


class Runs:
    """All runs of one seed, below one folder."""

    def __init__(self, folder: Path, seed: int, device: str) -> None:
        self.folder, self.seed, self._device = folder, seed, device

    def train(self) -> None:
        """Train whatever is not trained yet."""
        self._train("old", run_backbone, "old")
        self._train("new", run_backbone, "new")
        self._train("bct", run_bct, "bct", old=str(self.folder / "old"))
        self._train("side", run_side_information, "side_information")
        data = self._features()
        without = {name: path for name, path in data.items() if name not in ("side", "labels")}
        self._train("h_without", run_transformation, "transformation", data=without)
        self._train("h", run_transformation, "transformation", data={**without, "side": data["side"]})
        fastfill = {"loss": "fastfill", "classifier": str(self.folder / "new")}
        self._train("fastfill", run_transformation, "transformation", data=data, **fastfill)

    def test_set(self) -> LabelledImages:
        """Return the images that are queries and gallery."""
        return render_glyphs(CLASSES, TEST_IMAGES, "test")

    def backbone(self, name: str) -> Backbone:
        """Return a trained embedding model."""
        return load_checkpoint(self.folder / name / "checkpoint", Backbone)[0]

    def _train(self, name: str, trainer: Trainer, config: str, **changes: Any) -> None:
        values = read_config(CONFIGS / f"{config}.yaml") | changes
        training = dict(values["training"])
        values["training"] = training | {"seed": training["seed"] + 100 * self.seed, "accelerator": self._device}
        with RunFolder(self.folder / name) as run:
            trainer(values, run, _say(f"seed {self.seed}: {name}"))

    def _features(self) -> dict[str, str]:
        """Embed random views of the training images by each model; return the files."""
        folder = self.folder / "features"
        files = {name: folder / f"{name}.npy" for name in ("old", "side", "new", "labels")}
        if not all(file.exists() for file in files.values()):
            train = render_glyphs(CLASSES, TRAINING_IMAGES, "train")
            light = Augmentation(**read_config(CONFIGS / "new.yaml")["augmentation"])
            views = [augmented(train.images, light, seed=1000 * self.seed + view) for view in range(VIEWS)]
            for name in ("old", "side", "new"):
                model = self.backbone(name)
                write_npy(files[name], np.concatenate([embed(model, view) for view in views]))
            write_npy(files["labels"], np.tile(train.labels, VIEWS))
        return {name: str(file) for name, file in files.items()}


def embeddings(runs: Runs, images: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
    """Return the embeddings of images by every backbone of a seed."""
    return {name: embed(runs.backbone(name), images) for name in BACKBONES}


def _say(title: str) -> Callable[[Progress], None]:
    printed = [time.monotonic()]

    def on_progress(progress: Progress) -> None:
        now = time.monotonic()
        if now - printed[0] < _PRINT_EVERY and progress.step < progress.steps:
            return
        printed[0] = now
        print(f"{title}: step {progress.step:,} of {progress.steps:,}, loss {progress.loss:.3f}", flush=True)

    return on_progress
