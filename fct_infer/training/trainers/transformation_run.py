"""``fct-train transformation``: from cached features to a checkpoint of h, a map or a chain, and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.artifacts.files import MEBIBYTE, read_file
from fct_infer.errors import GalleryError, UsageError
from fct_infer.gallery import Gallery, read_npy
from fct_infer.storage import write_json
from fct_infer.training.alignment import Alignment, measure_alignment
from fct_infer.training.chains import compose
from fct_infer.training.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.config import from_plain, to_plain
from fct_infer.training.fastfill import write_scores
from fct_infer.training.feature_batches import FeatureBatches, Split, as_tensors
from fct_infer.training.features import Columns, Features, concatenate
from fct_infer.training.loop import Progress, ProgressCallback, TrainingConfig
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.classifiers import Classifier, LinearClassifier
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.training.models.maps import MAPS
from fct_infer.training.models.program import ProgramTransformation, program_arguments
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.statistics import Statistics
from fct_infer.training.trainers.backbone_run import CHECKPOINT, CLASSIFIER
from fct_infer.training.trainers.transformation import (
    Objective,
    TransformationConfig,
    build_objective,
    check_labels,
    train_on_batches,
)
from fct_infer.transformation import Program, Transformation

if TYPE_CHECKING:
    from fct_infer.training.run import RunFolder

PAPER_RECIPE = TrainingConfig(
    epochs=80,
    learning_rate=5e-4,
    batch_size=1024,
    warmup_epochs=5,
    optimizer="adam",
    freeze_batch_norm_from=0.5,
)
"""How the paper trains h (arXiv 2112.02805, its public code)."""

_VALIDATION_ROWS = 8192  # at once


@dataclass(frozen=True)
class FeatureFolders:
    """One set of cached embeddings, see :mod:`fct_infer.training.features`: folders of shards or ``.npy`` files."""

    old: str
    new: str
    side: str | None = None
    labels: str | None = None

    def open(self) -> Features:
        """Open the set; errors as :meth:`Features.open`."""
        return Features.open(self.old, self.new, self.side, self.labels)


@dataclass(frozen=True, kw_only=True)
class TransformationRunConfig(TransformationConfig):
    """What is trained, and on what.

    Attributes:
        data: cached embeddings of the training set.
        mixture: further sets of the same widths, such as of other old models: h is fitted on all rows together.
        model: a trained h (``paper``, ``mlp``, ``residual_mlp``, ``linear``), a map that is solved for
            (``procrustes``, ``ridge``, ``low_rank``), or ``chain`` with ``first`` and ``second``, two checkpoints, and
            ``second_side`` (:func:`fct_infer.training.chains.compose`).
        training: schedule of a trained h; the paper's where it does not say otherwise.
        classifier: the new model's, for FastFill: the folder of its finished run, or a ``.npy`` file (classes, d_new)
            with the weight of a linear classifier.
        validation: share of the rows held out, at most 50,000 rows; drawn from ``training.seed``.
        scores_gallery: a gallery whose uncertainties FastFill writes to ``scores.npy``.
    """

    data: FeatureFolders
    mixture: tuple[FeatureFolders, ...] = ()
    model: ModelSpec = field(default_factory=lambda: ModelSpec("paper"))
    training: TrainingConfig = PAPER_RECIPE
    classifier: str | None = None
    validation: float = 0.02
    scores_gallery: str | None = None


@dataclass(frozen=True)
class _Data:
    """The training set, and its held-out rows in memory as stored."""

    features: Features
    split: Split
    held_out: Columns
    classifier: Classifier | None


@dataclass(frozen=True)
class _Outcome:
    """What a run made, and how to build it again."""

    module: TransformationModule
    model: ModelSpec
    findings: dict[str, Any]


def run_transformation(
    config: Mapping[str, Any], run: RunFolder, on_progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """Make a transformation as a configuration says, and return its figures.

    Writes ``checkpoint.safetensors`` and ``.json``, which ``fct-export`` reads; of a trained h ``validation.json``
    with loss and mean cosine on the held-out rows by epoch; and ``scores.npy`` if asked for.

    Raises:
        UsageError: the configuration is not :class:`TransformationRunConfig`'s, or names what does not exist.
        GalleryError: features are missing, malformed, or hold NaN or infinity; names file and row.
        FctError: as of :class:`fct_infer.training.run.RunFolder` and :func:`fct_infer.training.loop.fit`.
    """
    settings = _settings(config)
    if (result := run.begin("transformation", to_plain(settings), settings.training)) is not None:
        return result
    data = _open_data(settings)
    if settings.model.name in MAPS:
        outcome = _fit_map(settings, data)
    elif settings.model.name == "chain":
        outcome = _chain(settings.model.arguments)
    else:
        outcome = _train(settings, data, run, on_progress)
    program = to_program(outcome.module)
    run.first(lambda: _write(settings, outcome, run.path))
    judged = asdict(_judge(program, data.held_out)) if len(data.held_out["old"]) else {}
    return run.finish(
        {
            "checkpoint": str(run.path / f"{CHECKPOINT}.safetensors"),
            "model": settings.model.name,
            "training_rows": data.split.training_rows,
            "flops_per_row": program.flops_per_row,
            **{f"validation_{name}": value for name, value in judged.items()},
            **outcome.findings,
        }
    )


def _settings(config: Mapping[str, Any]) -> TransformationRunConfig:
    training = config.get("training", {})
    if isinstance(training, Mapping):
        config = {**config, "training": {**to_plain(PAPER_RECIPE), **training}}
    return from_plain(TransformationRunConfig, config)


def _open_data(settings: TransformationRunConfig) -> _Data:
    """Open the features, read every row once to check it, and keep those that are held out."""
    features = Features.joined([each.open() for each in (settings.data, *settings.mixture)])
    split = Split.draw(features.rows, settings.validation, settings.training.seed)
    classifier = None if settings.classifier is None else load_classifier(settings.classifier)
    parts, first = [], 0
    for block in features.blocks():
        last = first + len(block["old"])
        if classifier is not None and "labels" in block:
            check_labels(block["labels"], len(classifier.weight), first)
        mask = split.is_held_out(first, last)
        parts.append({name: column[mask] for name, column in block.items()})
        first = last
    return _Data(features, split, concatenate(parts), classifier)


def _train(
    settings: TransformationRunConfig, data: _Data, run: RunFolder, on_progress: ProgressCallback | None
) -> _Outcome:
    dims = {name: getattr(data.features, name) for name in ("old_dim", "side_dim", "new_dim")}
    objective = build_objective(dims, settings, data.classifier, has_labels=data.features.has_labels)
    batches = FeatureBatches(data.features, data.split, settings.training.batch_size, settings.training.seed)
    watch = _Validation(objective, data.held_out, run, on_progress)
    trained = train_on_batches(objective, batches, settings.training, watch, run)
    figures = {"first_loss": trained.losses[0], "last_loss": trained.losses[-1]}
    return _Outcome(trained.module, trained.model, figures)


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


def _fit_map(settings: TransformationRunConfig, data: _Data) -> _Outcome:
    training = Statistics.of_blocks(data.features.blocks(data.split.is_training))
    assert training is not None
    validation = Statistics.of_blocks([data.held_out])
    try:
        fitted = MAPS[settings.model.name](training, validation, **settings.model.arguments)
    except TypeError as error:
        raise UsageError(f"model.arguments: {error}") from error
    return _Outcome(*_as_module(fitted.program), fitted.findings)


def _chain(arguments: dict[str, Any]) -> _Outcome:
    arguments = dict(arguments)
    try:
        paths = [Path(arguments.pop(name)).with_suffix("") for name in ("first", "second")]
        second_side = arguments.pop("second_side", "stored")
    except (KeyError, TypeError) as error:
        raise UsageError(f"model.arguments: a chain needs first and second, two checkpoints ({error})") from error
    if arguments:
        raise UsageError(f"model.arguments: a chain knows first, second and second_side, not {sorted(arguments)}")
    first, second = (to_program(load_checkpoint(path, TransformationModule)[0]) for path in paths)
    return _Outcome(*_as_module(compose(first, second, second_side)), {})


def _as_module(program: Program) -> tuple[TransformationModule, ModelSpec]:
    return ProgramTransformation.of(program), ModelSpec("program", program_arguments(program))


def _write(settings: TransformationRunConfig, outcome: _Outcome, folder: Path) -> None:
    save_checkpoint(folder / CHECKPOINT, outcome.module, outcome.model, to_plain(settings))
    if settings.scores_gallery is not None:
        uncertainty = to_uncertainty_program(outcome.module)
        write_scores(Gallery.open(settings.scores_gallery), uncertainty, folder / "scores.npy")


def _judge(program: Program, held_out: Columns) -> Alignment:
    """Measure what users will get: the program in float32, as the core computes it."""
    h = Transformation(program, "fp32")

    def transform(old: NDArray[Any], side: NDArray[Any] | None) -> NDArray[Any]:
        return h(old, (old if side is None else side) if h.side_dim else None)

    return measure_alignment(transform, _slices(held_out))


def _slices(columns: Columns) -> Iterator[Columns]:
    for start in range(0, len(columns["old"]), _VALIDATION_ROWS):
        yield {name: column[start : start + _VALIDATION_ROWS] for name, column in columns.items()}


class _Validation:
    """Tells the progress on, and takes loss and mean cosine on the held-out rows after every epoch.

    They are kept by epoch in ``validation.json``; a resumed run goes on in it, and an epoch that is repeated gives
    the same figures again.
    """

    def __init__(
        self, objective: Objective, held_out: Columns, run: RunFolder, on_progress: ProgressCallback | None
    ) -> None:
        self._objective, self._held_out, self._run, self._on_progress = objective, held_out, run, on_progress
        self._path = run.path / "validation.json"
        self._epochs: dict[str, dict[str, float]] = {}
        if self._path.exists():
            self._epochs = json.loads(read_file(self._path, MEBIBYTE))

    def __call__(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)
        if progress.step % (progress.steps // progress.epochs) == 0 and len(self._held_out["old"]):
            self._epochs[str(progress.epoch)] = validate(self._objective, self._held_out)
            self._run.first(lambda: write_json(self._path, self._epochs))


@torch.inference_mode()
def validate(objective: Objective, columns: Columns) -> dict[str, float]:
    """Return ``loss`` and mean ``cosine`` of h on some rows, in eval mode, which it leaves h in."""
    network, module = objective.network.eval(), objective.module
    device = next(network.parameters()).device
    loss, cosine, rows = 0.0, 0.0, len(columns["old"])
    for part in _slices(columns):
        batch: tuple[Tensor, ...] = tuple(tensor.to(device) for tensor in as_tensors(part, slice(None)))
        loss += objective.loss_of(batch).item() * len(batch[0])
        cosine += torch.cosine_similarity(module(batch[0], batch[1]), batch[2], dim=1).sum().item()
    return {"loss": loss / rows, "cosine": cosine / rows}
