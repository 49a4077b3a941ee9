"""What the demo trains and how large it is; sized for two CPU cores and a few minutes."""

from __future__ import annotations

from dataclasses import dataclass

from fct_infer.training.data.augment import Augmentation
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.trainers.backbone import BackboneConfig
from fct_infer.training.trainers.side_information import SideInformationConfig
from fct_infer.training.trainers.transformation import TransformationConfig


@dataclass(frozen=True)
class DataSize:
    """How many glyph images there are; the old model knows the first ``old_classes`` classes only."""

    classes: int = 100
    old_classes: int = 20
    training_images_per_class: int = 100
    gallery_images_per_class: int = 50
    rows_per_shard: int = 1280


DATA = DataSize()

_LIGHT = Augmentation(rotation=8, scale=0.1, shift=0.06, brightness=0.1, contrast=0.2, colour=0.1)
_STRONG = Augmentation(rotation=15, scale=0.2, shift=0.1, brightness=0.2, contrast=0.5, colour=1.0, noise=0.03)


def _resnet(embedding_dim: int, width: int) -> ModelSpec:
    widths = [width, 2 * width, 4 * width]
    return ModelSpec(
        "resnet", {"embedding_dim": embedding_dim, "widths": widths, "blocks": [1, 1, 1], "stem_stride": 2}
    )


OLD = BackboneConfig(
    _resnet(128, 24), TrainingConfig(20, 0.1, batch_size=64, nesterov=True, seed=1), augmentation=_LIGHT
)
NEW = BackboneConfig(
    _resnet(128, 24), TrainingConfig(12, 0.2, batch_size=64, nesterov=True, seed=2), augmentation=_LIGHT
)
SIDE_INFORMATION = SideInformationConfig(
    _resnet(64, 16), TrainingConfig(40, 2e-3, batch_size=200, optimizer="adam", seed=3), _STRONG
)
TRANSFORMATION = TransformationConfig(
    ModelSpec("paper", {"inner_dim": 512}),
    TrainingConfig(
        20,
        2e-3,
        batch_size=256,
        warmup_epochs=2,
        schedule="epoch",
        optimizer="adam",
        freeze_batch_norm_from=0.5,
        seed=4,
    ),
    standardize=False,
)
TRAINING_VIEWS = 2
"""Random views of each training image whose embeddings h is trained on."""
VIEWS = _LIGHT
