"""Opens the model a user names for export: one of this project's checkpoints, or any other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fct_infer.artifacts.loading import is_code
from fct_infer.artifacts.manifest import Kind, Preprocessing, Source
from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.errors import ArtifactError, UsageError
from fct_infer.identity import ModelId
from fct_infer.images import shorter_side

from .models import ModuleModel, ProgramModel
from .user_files import OpenedModel, open_model

CHECKPOINT_SUFFIXES = (".safetensors", ".json")


def is_foreign_code(path: Path) -> bool:
    """Whether opening a file runs code of another maker: an archive that is code, and no checkpoint."""
    return is_code(path) and path.suffix not in CHECKPOINT_SUFFIXES


def open_named(
    path: Path,
    kind: Kind | None,
    input_shapes: Sequence[tuple[int, ...]],
    old_first: Sequence[str] | None = None,
    *,
    trust_code: bool = False,
) -> OpenedModel:
    """Open ``path``; a checkpoint is named by either of its two files, or by the folder of the run that made it.

    With ``trust_code`` a checkpoint's model may be code that is not this project's; a TorchScript or torch.export
    archive is trusted by being named.

    Raises:
        FctError: as :func:`fct_infer.export.user_files.open_model`.
    """
    is_run = (path / "checkpoint.json").is_file()
    if is_run or (path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir()):
        if old_first is not None:
            raise UsageError(f"{path}: a checkpoint tells its inputs itself; --inputs is for a file of another maker")
        return _open_checkpoint(path, kind, input_shapes, trust_code)
    return open_model(path, kind, input_shapes, old_first)


def _open_checkpoint(
    path: Path, kind: Kind | None, input_shapes: Sequence[tuple[int, ...]], trust_code: bool
) -> OpenedModel:
    from fct_infer.training.models.base import Backbone, TransformationModule
    from fct_infer.training.models.checkpoints import load_checkpoint
    from fct_infer.training.models.folding import to_program, uncertainty_layer

    module, checkpoint = load_checkpoint(path, (Backbone, TransformationModule), trust_code=trust_code)
    source = Source(path.name, checkpoint.sha256)
    is_transformation = isinstance(module, TransformationModule)
    if kind is not None and is_transformation != (kind == "transformation"):
        raise ArtifactError(f"{path}: is a {type(module).__name__}, not a {kind}")
    if isinstance(module, TransformationModule):
        said = {name: checkpoint.config.get(f"{name}_model") for name in ("old", "new")}
        models = {name: ModelId.of(text) for name, text in said.items() if isinstance(text, str)}
        model = ProgramModel(to_program(module), uncertainty=uncertainty_layer(module))
        return OpenedModel(model, source, models=models)
    shape = input_shapes[0] if input_shapes else checkpoint.config.get("image_shape")
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        raise UsageError(f"{path}: does not tell its image size; give --input-shape 3x32x32")
    image_shape = (int(shape[0]), int(shape[1]), int(shape[2]))
    # Backbones of this project take images on the scale 0 to 1; trained on folders, they are judged on the middle.
    preprocessing = Preprocessing(image_shape[1:], (0.0,) * image_shape[0], (1.0,) * image_shape[0])
    for data in (checkpoint.config.get("validation"), checkpoint.config.get("data")):
        if isinstance(data, dict) and data.get("source") == "folder":
            preprocessing = _as_judged(preprocessing, data)
            break
    image_model = ModuleModel(kind or "backbone", TorchModel(str(path), module, 1), {"image": image_shape})
    return OpenedModel(image_model, source, preprocessing)


def _as_judged(preprocessing: Preprocessing, data: dict[str, Any]) -> Preprocessing:
    """Return how images of a folder were prepared when the model was evaluated: by ``FolderLoader``."""
    from fct_infer.training.config import from_plain
    from fct_infer.training.data.sources import DataConfig

    settings: dict[str, Any] = {key: data[key] for key in ("source", "interpolation", "crop_fraction") if key in data}
    known = from_plain(DataConfig, settings, "data")
    resize = shorter_side(preprocessing.size, known.crop_fraction)
    return replace(preprocessing, resize=resize, interpolation=known.interpolation)
