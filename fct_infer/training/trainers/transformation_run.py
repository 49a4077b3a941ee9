"""``fct-train transformation``: to a checkpoint of h, a map or a chain, and its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fct_infer.errors import UsageError
from fct_infer.gallery import Gallery
from fct_infer.maps import MAPS, Recipe, Statistics
from fct_infer.maps.chains import compose
from fct_infer.training.config import check_arguments, from_plain, hint, to_plain
from fct_infer.training.data.batches import batch_ends
from fct_infer.training.features.cached import Columns
from fct_infer.training.features.from_images import OnImages
from fct_infer.training.features.imported import models_of_features, prepare_features
from fct_infer.training.features.shuffled import FeatureBatches, as_tensors
from fct_infer.training.losses.alignment import Alignment, measure_alignment
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.training.models.foreign import is_foreign
from fct_infer.training.models.program import ProgramTransformation, program_arguments
from fct_infer.training.models.registry import TRAINED, ModelSpec
from fct_infer.training.models.transformation import LayeredTransformation
from fct_infer.training.runs.loop import Fitted, ProgressCallback, TrainingConfig
from fct_infer.training.trainers.scores import write_scores
from fct_infer.training.trainers.transformation import (
    Objective,
    TransformationConfig,
    build_objective,
    train_on_batches,
)
from fct_infer.training.trainers.transformation_data import (
    EmbeddingModels,
    FeatureFolders,
    ImageViews,
    TrainingData,
    embed_images,
    load_classifier,
    open_features,
)
from fct_infer.transformation import Linear, Program, Transformation

if TYPE_CHECKING:
    from fct_infer.training.runs.folder import RunFolder

PAPER_RECIPE = TrainingConfig(
    epochs=80,
    learning_rate=5e-4,
    batch_size=1024,
    warmup_epochs=5,
    schedule="epoch",
    optimizer="adam",
    freeze_batch_norm_from=0.5,
)
"""How the paper trains h (arXiv 2112.02805, its public code)."""

_LEAST_BATCH, _BATCHES = 32, 32  # rows of a batch, and batches of an epoch
_LEAST_STEPS = 2_500  # of a training, or h learns little: as many as 80 epochs of that many batches
_VALIDATION_ROWS = 8192  # at once
_MODELS = (*TRAINED, *MAPS, "chain", "module:function")


@dataclass(frozen=True, kw_only=True)
class _RunConfig(TransformationConfig):
    """What is trained, whatever it is trained on.

    Attributes:
        mixture: further sets of cached embeddings of the same widths, such as of other old models: h is fitted on all
            rows together.
        model: a trained h (``paper``, ``mlp``, ``residual_mlp``, ``linear``, ``fitted_residual``), a map that is solved
            for (``procrustes``, ``ridge``, ``low_rank``, ``recipe``), or ``chain`` with ``first`` and ``second``, two
            checkpoints, and ``second_side`` (:func:`fct_infer.maps.chains.compose`).
        training: schedule of a trained h; the paper's where it does not say otherwise, but in smaller batches where
            rows are few, and in more epochs where batches are.
        classifier: the new model's, for FastFill: the folder of its finished run, or a ``.npy`` file (classes, d_new)
            with the weight of a linear classifier.
        validation: share of the rows held out, at most 50,000 rows; drawn from ``training.seed``. Without one, a tenth
            or 100 rows, whichever is more, but at most half.
        old_model, new_model: whose vectors ``data`` holds, for the checkpoint: names, or ``sha256:`` and digests; of
            galleries that say it themselves they need not be given.
        scores_gallery: a gallery whose uncertainties FastFill writes to ``scores.npy``.
    """

    mixture: tuple[FeatureFolders, ...] = ()
    model: ModelSpec = field(default_factory=lambda: ModelSpec("paper"))
    training: TrainingConfig = PAPER_RECIPE
    classifier: str | None = None
    validation: float | None = None
    old_model: str | None = None
    new_model: str | None = None
    scores_gallery: str | None = None

    def __post_init__(self) -> None:
        if self.scores_gallery is not None and self.loss != "fastfill":
            raise UsageError("scores_gallery: only FastFill knows uncertainties (loss: fastfill)")


@dataclass(frozen=True, kw_only=True)
class TransformationRunConfig(_RunConfig):
    """Training on cached embeddings.

    Attributes:
        data: embeddings of the training set by both models.
    """

    data: FeatureFolders


@dataclass(frozen=True, kw_only=True)
class ImageTransformationRunConfig(_RunConfig):
    """Training on images.

    Attributes:
        data: the images, which are embedded first, into ``features/`` in the run's folder.
        models: what embeds them.
    """

    data: ImageViews
    models: EmbeddingModels


@dataclass(frozen=True)
class _Outcome:
    """What a run made, and how to build it again."""

    module: TransformationModule
    model: ModelSpec
    findings: dict[str, Any]
    fitted: Fitted | None = None


def run_transformation(
    config: Mapping[str, Any],
    run: RunFolder,
    on_progress: ProgressCallback | None = None,
    on_images: OnImages | None = None,
) -> dict[str, Any]:
    """Make a transformation as a configuration says, and return its figures.

    Writes ``checkpoint.safetensors`` and ``.json``, which ``fct-export`` reads; of a trained h ``validation.csv``
    with loss and mean cosine on the held-out rows by epoch; and ``scores.npy`` if asked for.

    Args:
        config: what :class:`TransformationRunConfig` or, with ``data.images``, :class:`ImageTransformationRunConfig`
            says.
        run: where.
        on_progress: called after every step.
        on_images: told how many of the images are embedded.

    Raises:
        UsageError: the configuration is neither, or names what does not exist.
        GalleryError: features are missing, malformed, or hold NaN or infinity; names file and row.
        FctError: as of :class:`fct_infer.training.runs.folder.RunFolder` and :func:`fct_infer.training.runs.loop.fit`.
    """
    settings = _settings(config)
    if (result := run.open("transformation", settings, settings.training)) is not None:
        return result
    classifier = None if settings.classifier is None else load_classifier(settings.classifier)
    gallery = None if settings.scores_gallery is None else Gallery.open(settings.scores_gallery)
    seed = settings.training.seed
    if isinstance(settings, ImageTransformationRunConfig):
        features = embed_images(run, settings.data, settings.models, seed, on_images, settings.classifier)
    else:
        features, settings = prepare_features(run, settings.data), _with_models(settings)
    mixture = [prepare_features(run, each, number) for number, each in enumerate(settings.mixture, 1)]
    data = open_features((features, *mixture), classifier, settings.validation, seed)
    training = fitted_to(data.split.training_rows, settings.training, config.get("training", {}))
    settings = replace(settings, training=training)
    outcome = _make(settings, data, run, on_progress)
    run.begin()
    run.first(lambda: _write(settings, outcome, run.path, gallery))
    program = to_program(outcome.module)
    judged, warnings = dict[str, Any](), list[str]()
    if len(data.held_out["old"]):
        alignment = _judge(program, data.held_out)
        judged, warnings = asdict(alignment), _warnings(alignment, data.statistics, data.held_out)
    return run.finish(
        {
            "checkpoint": str(run.path / f"{CHECKPOINT}.safetensors"),
            "model": settings.model.name,
            "training_rows": data.split.training_rows,
            "flops_per_row": program.flops_per_row,
            **outcome.findings,
            **{f"validation_{name}": value for name, value in judged.items()},
            **({"warning": "; ".join(warnings)} if warnings else {}),
        }
    )


def _settings(config: Mapping[str, Any]) -> TransformationRunConfig | ImageTransformationRunConfig:
    training, data, model = (config.get(key, {}) for key in ("training", "data", "model"))
    if isinstance(training, Mapping):
        config = {**config, "training": {**to_plain(PAPER_RECIPE), **training}}
    name = model.get("name") if isinstance(model, Mapping) else None
    if isinstance(name, str) and name not in _MODELS and not is_foreign(name):
        raise UsageError(f"unknown model {name!r}{hint(name, _MODELS)}")
    has_images = isinstance(data, Mapping) and "images" in data
    if "models" in config and not has_images:
        raise UsageError("models: they embed data.images, which is not given; data.old and data.new need no models")
    if has_images:
        return from_plain(ImageTransformationRunConfig, config)
    return from_plain(TransformationRunConfig, config)


def _with_models(settings: TransformationRunConfig) -> TransformationRunConfig:
    """Return the settings with the models that the cached embeddings say they are of, where the user did not."""
    old_model, new_model = models_of_features(settings.data)
    return replace(settings, old_model=settings.old_model or old_model, new_model=settings.new_model or new_model)


def fitted_to(rows: int, training: TrainingConfig, given: Mapping[str, Any]) -> TrainingConfig:
    """Return the schedule with the paper's batch, or a 32nd of few rows, and steps enough; what is given stays.

    Args:
        rows: that are trained on.
        training: what is given, and the paper's where nothing is.
        given: keys of ``training`` that the configuration has.
    """
    if "batch_size" not in given:
        training = replace(training, batch_size=min(training.batch_size, max(_LEAST_BATCH, rows // _BATCHES), rows))
    if "epochs" not in given:
        batches = len(batch_ends(rows, training.batch_size))
        longer = max(1.0, _LEAST_STEPS / (batches * training.epochs))
        training = replace(training, epochs=math.ceil(longer * training.epochs))
        if "warmup_epochs" not in given:
            training = replace(training, warmup_epochs=longer * training.warmup_epochs)
    return training


def _make(settings: _RunConfig, data: TrainingData, run: RunFolder, on_progress: ProgressCallback | None) -> _Outcome:
    if settings.model.name in MAPS:
        return _fit_map(settings, data)
    if settings.model.name == "chain":
        return _chain(settings.model.arguments)
    return _train(settings, data, run, on_progress)


def _train(settings: _RunConfig, data: TrainingData, run: RunFolder, on_progress: ProgressCallback | None) -> _Outcome:
    dims = {name: getattr(data.features, name) for name in ("old_dim", "side_dim", "new_dim")}
    objective = build_objective(dims, settings, data.classifier, has_labels=data.features.has_labels)
    if isinstance(objective.module, LayeredTransformation):
        objective.module.begin_from(data.statistics)
    batches = FeatureBatches(data.features, data.split, settings.training.batch_size, settings.training.seed)
    judge = partial(validate, objective, data.held_out) if len(data.held_out["old"]) else None
    trained = train_on_batches(objective, batches, settings.training, on_progress, run, judge)
    return _Outcome(trained.module, trained.model, trained.fitted.figures, trained.fitted)


def _fit_map(settings: _RunConfig, data: TrainingData) -> _Outcome:
    validation = Statistics.of_blocks([data.held_out])
    fit, arguments = partial(MAPS[settings.model.name], data.statistics, validation), settings.model.arguments
    check_arguments(fit, arguments, f"model {settings.model.name!r}")
    try:
        fitted = fit(**arguments)
    except TypeError as error:
        raise UsageError(f"model.arguments: {error}") from error
    return _Outcome(*_as_module(fitted.program), fitted.findings)


def _chain(arguments: dict[str, Any]) -> _Outcome:
    arguments = dict(arguments)
    try:
        paths = [Path(arguments.pop(name)) for name in ("first", "second")]
        second_side = arguments.pop("second_side", "stored")
    except (KeyError, TypeError) as error:
        raise UsageError(f"model.arguments: a chain needs first and second, two checkpoints ({error})") from error
    if arguments:
        raise UsageError(f"model.arguments: a chain knows first, second and second_side, not {sorted(arguments)}")
    first, second = (to_program(load_checkpoint(path, TransformationModule)[0]) for path in paths)
    return _Outcome(*_as_module(compose(first, second, second_side)), {})


def _as_module(program: Program) -> tuple[TransformationModule, ModelSpec]:
    return ProgramTransformation.of(program), ModelSpec("program", program_arguments(program))


def _write(settings: _RunConfig, outcome: _Outcome, folder: Path, scored: Gallery | None) -> None:
    def save(place: Path) -> None:
        save_checkpoint(place / CHECKPOINT, outcome.module, outcome.model, to_plain(settings))

    if outcome.fitted is None:
        save(folder)
    else:
        outcome.fitted.save(folder, save)
    if scored is not None:
        write_scores(scored, to_uncertainty_program(outcome.module), folder / "scores.npy")


def _judge(program: Program, held_out: Columns) -> Alignment:
    """Measure what users will get: the program in float32, as the core computes it."""
    h = Transformation(program, "fp32")

    def transform(old: NDArray[Any], side: NDArray[Any] | None) -> NDArray[Any]:
        return h(old, (old if side is None else side) if h.side_dim else None)

    return measure_alignment(transform, _slices(held_out))


def _warnings(found: Alignment, training: Statistics, held_out: Columns) -> list[str]:
    """Say which maps that need no training are nearer to the held-out rows than h, by error and by angle."""
    new_dim = len(training.yy)
    mean = training.mean[training.input_dim :].astype(np.float32)
    step = Linear("old", "mean", np.zeros((new_dim, training.old_dim), np.float32), mean)
    simpler = {
        "the mean of the new rows, for every row": Program({"old": training.old_dim}, (step,), "mean"),
        "Procrustes": Recipe(share=1).fit(training),
        "ridge regression": Recipe(alpha=0.1, side_alpha=0.1 if training.side_dim else None).fit(training),
    }
    better = []
    for name, program in simpler.items():
        other = _judge(program, held_out)
        if other.mse < found.mse and other.cosine > found.cosine:
            better.append(name)
    if not better:
        return []
    return [f"on held-out rows h is worse than {' and '.join(better)}; fct-fit finds the better map in seconds"]


def _slices(columns: Columns) -> Iterator[Columns]:
    for start in range(0, len(columns["old"]), _VALIDATION_ROWS):
        yield {name: column[start : start + _VALIDATION_ROWS] for name, column in columns.items()}


def validate(objective: Objective, columns: Columns) -> dict[str, float]:
    """Return ``loss`` and mean ``cosine`` of h, which is in eval mode, on some rows."""
    module = objective.module
    device = next(module.parameters()).device
    loss, cosine, rows = 0.0, 0.0, len(columns["old"])
    for part in _slices(columns):
        batch: tuple[Tensor, ...] = tuple(tensor.to(device) for tensor in as_tensors(part, slice(None)))
        loss += objective.loss_of(batch).item() * len(batch[0])
        cosine += torch.cosine_similarity(module(batch[0], batch[1]), batch[2], dim=1).sum().item()
    return {"loss": loss / rows, "cosine": cosine / rows}
