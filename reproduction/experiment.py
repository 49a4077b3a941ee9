"""What is trained: every model and every transformation of the experiment, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fct_infer.training.data.glyphs import render_glyphs
from fct_infer.training.data.images import LabelledImages
from fct_infer.training.trainers.backbone_run import run_backbone, run_bct
from fct_infer.training.trainers.side_information_run import run_side_information

Trainer = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Model:
    """An embedding model.

    Attributes:
        trainer: what trains it.
        config: its file in ``configs/glyphs``, without suffix.
        changes: to that file, as ``fct-train --set`` takes them.
        needs: key of the configuration -> the model whose run it names.
    """

    trainer: Trainer
    config: str
    changes: tuple[str, ...] = ()
    needs: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Link:
    """A transformation from the gallery of one model to another model, by the models' names."""

    old: str
    new: str
    side: str | None = None
    changes: tuple[str, ...] = ()
    fastfill: bool = False


@dataclass(frozen=True)
class Scale:
    """How large the experiment is, in images of a class; the changes are to every backbone, and to every h."""

    training_images: int
    test_images: int
    backbones: tuple[str, ...] = ()
    transformations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """What is trained on which images.

    Attributes:
        models, links: by name.
        configs: folder of the models' configurations.
        images: returns those of a split at a scale; ``train`` is one.
        searched: the other splits that every model embeds.
        views: random views of each training image whose embeddings h is trained on.
    """

    models: Mapping[str, Model]
    links: Mapping[str, Link]
    configs: Path
    images: Callable[[str, Scale], LabelledImages]
    searched: tuple[str, ...] = ("test",)
    views: int = 2


SMALL = Scale(training_images=100, test_images=30)
LARGE = Scale(
    training_images=500,
    test_images=100,
    backbones=("training.batch_size=256", "training.epochs=60", "training.precision=bf16-mixed"),
    transformations=("training.batch_size=1024", "training.epochs=80"),
)
"""For a GPU."""

CLASSES = 100
SIDE = "simclr-64"

_DIMS = {32: [8, 16, 32], 128: [16, 32, 64]}  # the last block is as wide as the embedding

MODELS: dict[str, Model] = {
    "old": Model(run_backbone, "old"),
    "new": Model(run_backbone, "new"),
    "bct": Model(run_bct, "bct", needs={"old": "old"}),
    "bct-completed": Model(run_bct, "bct", ("old_classifier=completed",), needs={"old": "old"}),
    SIDE: Model(run_side_information, "side_information"),
    **{
        f"simclr-{dim}": Model(
            run_side_information,
            "side_information",
            (f"model.arguments.embedding_dim={dim}", f"model.arguments.widths={widths}"),
        )
        for dim, widths in _DIMS.items()
    },
    "autoencoder-64": Model(run_side_information, "autoencoder"),
    "classifier-64": Model(
        run_side_information, "old", ("kind=classifier", "model.arguments.embedding_dim=64", "training.seed=7")
    ),
    "old-arcface": Model(
        run_backbone,
        "old",
        (
            "classifier.kind=arcface",
            "classifier.scale=16",
            "classifier.margin=0.2",
            "embeddings=unit",
            "training.learning_rate=0.05",
            "training.warmup_epochs=4",
        ),
    ),
    "old-elsewhere": Model(run_backbone, "old", ("data.classes=last 20 %",)),
    "new-mobilenet": Model(
        run_backbone,
        "new",
        (
            "model={name: mobilenet_v2, arguments: {embedding_dim: 128, width: 0.25, stem: small}}",
            "training.epochs=6",
            "training.learning_rate=0.1",
        ),
    ),
    "middle": Model(run_backbone, "old", ("data.classes=first 50 %", "training.epochs=12", "training.seed=6")),
}

WITHOUT, WITH, FASTFILL = "h-without", "h", "fastfill"

SIZES: dict[str, tuple[str, ...]] = {
    "the paper's": ("model.arguments.inner_dim=2048",),
    "1/4": ("model.arguments.inner_dim=848",),
    "1/13": ("model={name: mlp, arguments: {hidden_dims: [512, 512]}}",),
    "1/35": ("model={name: mlp, arguments: {hidden_dims: [272, 272]}}",),
    "linear": ("model={name: linear}",),
}
"""Shapes of h, by their share of the arithmetic of the paper's."""


def size_link(size: str) -> str:
    """Return the name of the transformation of a size."""
    return f"size {size.replace('/', ' of ')}"


PSI = (SIDE, "simclr-32", "simclr-128", "autoencoder-64", "classifier-64")

LINKS: dict[str, Link] = {
    WITHOUT: Link("old", "new"),
    WITH: Link("old", "new", SIDE),
    FASTFILL: Link("old", "new", SIDE, fastfill=True),
    **{f"psi {psi}": Link("old", "new", psi) for psi in PSI if psi != SIDE},
    **{size_link(size): Link("old", "new", SIDE, changes) for size, changes in SIZES.items()},
    "old-new-mobilenet": Link("old", "new-mobilenet", SIDE),
    "old-arcface-new": Link("old-arcface", "new", SIDE),
    "old-elsewhere-new": Link("old-elsewhere", "new", SIDE),
    "old-middle": Link("old", "middle", SIDE),
    "middle-new": Link("middle", "new", SIDE),
}

ACROSS: dict[str, str] = {
    "same architecture, loss and classes": WITH,
    "ResNet to MobileNetV2": "old-new-mobilenet",
    "ArcFace to cross entropy": "old-arcface-new",
    "old model trained on 20 other classes": "old-elsewhere-new",
}
"""What changed between old and new model -> the transformation between them."""

VERSIONS = ("old", "middle", "new")
STEPS: dict[tuple[str, str], str] = {
    ("old", "middle"): "old-middle",
    ("middle", "new"): "middle-new",
    ("old", "new"): WITH,
}
"""(version of the gallery, version of the query) -> the transformation between them."""


def _glyphs(split: str, scale: Scale) -> LabelledImages:
    count = scale.training_images if split == "train" else scale.test_images
    return render_glyphs(CLASSES, count, "train" if split == "train" else "test")


GLYPHS = Experiment(MODELS, LINKS, Path("configs/glyphs"), _glyphs)
