"""What is trained for one seed, below one folder.

Every model is a run folder, so a run that was stopped goes on where it stood, and a finished one is not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fct_infer.gallery import write_npy
from fct_infer.training.config import read_config
from fct_infer.training.data.augment import Augmentation, augmented
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.features.embedding import embed
from fct_infer.training.models.base import Backbone, TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.trainers.transformation_run import run_transformation
from fct_infer.transformation import Float32Array, Transformation

from .experiment import GLYPHS, Experiment, Scale
from .jobs import Job


@dataclass(frozen=True)
class Runs:
    """All runs of one seed."""

    folder: Path
    seed: int
    scale: Scale
    device: str
    experiment: Experiment = GLYPHS

    def jobs(self) -> dict[str, Job]:
        """Return what trains whatever is not trained yet, and embeds training and test images by every model."""
        jobs = {}
        for name, model in self.experiment.models.items():
            jobs[self._job(name)] = Job(train_model, (self, name), self._jobs_of((model.needs or {}).values()))
        for name, link in self.experiment.links.items():
            needs = [model for model in (link.old, link.side, link.new) if model]
            jobs[self._job(name)] = Job(train_link, (self, name), self._jobs_of(needs))
        return jobs

    def embeddings(self, model: str, split: str = "test") -> Float32Array:
        """Return a model's (n, d) embeddings of the images of a split, of ``train`` those of random views."""
        return np.load(self._features(model, split))  # type: ignore[no-any-return]

    def transformed(self, name: str, split: str = "test") -> Float32Array:
        """Return the old gallery of a link after its transformation."""
        return self._apply(Transformation(to_program(self.transformation(name)), "fp32"), name, split)

    def uncertainty(self, name: str) -> Float32Array:
        """Return FastFill's log-variance of each row of the old gallery of a link."""
        return self._apply(Transformation(to_uncertainty_program(self.transformation(name)), "fp32"), name, "test")[
            :, 0
        ]

    def transformation(self, name: str) -> TransformationModule:
        """Return a trained transformation."""
        return load_checkpoint(self.folder / name / "checkpoint", TransformationModule)[0]

    def images(self, split: str) -> LabelledImages:
        """Return the images of a split."""
        return self.experiment.images(split, self.scale)

    def values(self, config: str, changes: tuple[str, ...]) -> dict[str, Any]:
        """Return a configuration of the experiment, changed, for this seed and device."""
        values = read_config(self.experiment.configs / f"{config}.yaml", changes)
        seed = values["training"]["seed"] + 100 * self.seed
        values["training"] |= {"seed": seed, "accelerator": self.device}
        return values

    def _apply(self, h: Transformation, name: str, split: str) -> Float32Array:
        link = self.experiment.links[name]
        old = self.embeddings(link.old, split)
        if not h.side_dim:  # its second branch reads the old embedding itself
            return h(old)
        assert link.side is not None
        return h(old, self.embeddings(link.side, split))

    def _features(self, model: str, split: str) -> Path:
        return self.folder / "features" / model / f"{split}.npy"

    def _job(self, name: str) -> str:
        return f"seed {self.seed}: {name}"

    def _jobs_of(self, names: Any) -> tuple[str, ...]:
        return tuple(self._job(name) for name in names)


def train_model(runs: Runs, name: str) -> None:
    """Train an embedding model, and embed the views of the training images, and the other images."""
    model = runs.experiment.models[name]
    images = f"data.arguments.images_per_class={runs.scale.training_images}"
    values = runs.values(model.config, (images, *runs.scale.backbones, *model.changes))
    values |= {key: str(runs.folder / needed) for key, needed in (model.needs or {}).items()}
    with RunFolder(runs.folder / name) as run:
        model.trainer(values, run)
    for split in ("train", *runs.experiment.searched):
        file = runs.folder / "features" / name / f"{split}.npy"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_npy(file, _embed(runs, name, split))


def _embed(runs: Runs, name: str, split: str) -> NDArray[np.float32]:
    backbone = load_checkpoint(runs.folder / name / "checkpoint", Backbone)[0]
    images = runs.images(split).images
    device = torch.device(runs.device)
    if split != "train":
        return embed(backbone, images, device=device)
    light = Augmentation(**runs.values("new", ())["augmentation"])
    views = (augmented(images, light, seed=1000 * runs.seed + view) for view in range(runs.experiment.views))
    return np.concatenate([embed(backbone, view, device=device) for view in views])


def train_link(runs: Runs, name: str) -> None:
    """Train a transformation on the embeddings of the views of the training images."""
    link = runs.experiment.links[name]
    values = runs.values("transformation", (*runs.scale.transformations, *link.changes))
    inputs = {"old": link.old, "side": link.side, "new": link.new}
    data: dict[str, Any] = {"views": runs.experiment.views}
    data |= {key: str(runs.folder / "features" / model / "train.npy") for key, model in inputs.items() if model}
    if link.fastfill:
        labels = runs.folder / "features" / "labels.npy"
        if not labels.exists():
            write_npy(labels, np.tile(runs.images("train").labels, runs.experiment.views))
        data["labels"] = str(labels)
        values |= {"loss": "fastfill", "classifier": str(runs.folder / link.new)}
    with RunFolder(runs.folder / name) as run:
        run_transformation(values | {"data": data}, run)
