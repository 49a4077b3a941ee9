"""Trained models on disk: ``NAME.safetensors`` with the weights and ``NAME.json`` that says what to build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from fct_infer.artifacts.files import GIBIBYTE, MEBIBYTE, read_file
from fct_infer.errors import ArtifactError, FctError, UsageError
from fct_infer.storage import write_bytes, write_json
from fct_infer.training.models.registry import Kind, ModelSpec

FORMAT = 1
CHECKPOINT, CLASSIFIER = "checkpoint", "classifier"
"""Names of the checkpoints in a run's folder."""
SUFFIXES = (".safetensors", ".json")


@dataclass(frozen=True)
class Checkpoint:
    """What lies beside the weights.

    Attributes:
        model: how to build the module.
        config: how it was trained; strict JSON. Of a backbone, ``image_shape`` is (c, h, w) of its images.
        sha256: of the weights.
    """

    model: ModelSpec
    config: dict[str, Any]
    sha256: str


def save_checkpoint(path: str | Path, module: nn.Module, model: ModelSpec, config: Mapping[str, Any]) -> Checkpoint:
    """Write ``path`` with the suffixes ``.safetensors`` and ``.json``, the latter last.

    Args:
        path: without suffix.
        module: any module that ``model`` builds; parameters and buffers are kept.
        model: how to build it again.
        config: what else to remember; strict JSON.

    Raises:
        ResourceError: the disk is full, or another I/O error.
    """
    weights, description = _files(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    written = write_bytes(weights, save(tensors))
    checkpoint = Checkpoint(model, dict(config), written.sha256)
    write_json(
        description,
        {
            "format": FORMAT,
            "model": {"name": model.name, "arguments": model.arguments},
            "config": checkpoint.config,
            "sha256": checkpoint.sha256,
        },
    )
    return checkpoint


def load_checkpoint(
    path: str | Path, kind: type[Kind] | tuple[type[Kind], ...], *, trust_code: bool = False
) -> tuple[Kind, Checkpoint]:
    """Build the module and load its weights; it is in eval mode.

    Args:
        path: without suffix, either of the two files, or the folder of a finished run, whose model is meant.
        kind: base class it must have, such as :class:`fct_infer.training.models.base.Backbone`, or several to choose
            from.
        trust_code: build a model that is not this project's (``module:function``, timm, torchvision), which runs
            whatever the description names.

    Raises:
        UsageError: the model is not this project's, and ``trust_code`` is not set.
        ArtifactError: a file is missing, damaged or malformed, or its weights do not fit the model; names the file.
    """
    weights, description = _files(path)
    checkpoint = _read_description(description)
    if checkpoint.model.runs_foreign_code and not trust_code:
        raise UsageError(
            f"{description}: building {checkpoint.model.name!r} runs code that is not this project's; if you trust it, "
            "say so: --trust-code, trust_code: true, or trust_code=True"
        )
    data = read_file(weights, 16 * GIBIBYTE)
    if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
        raise ArtifactError(f"{weights}: does not match the sha256 in {description.name}; it is damaged or replaced")
    try:
        _check_size(checkpoint, kind, weights, len(data))
        module = checkpoint.model.build(kind)
        module.load_state_dict(load(data))
    except (SafetensorError, RuntimeError, FctError) as error:
        reason = " ".join(str(error).split())  # PyTorch gives each weight a line
        raise ArtifactError(f"{weights}: does not fit the model in {description.name}: {reason[:500]}") from error
    return module.eval(), checkpoint


def _check_size(checkpoint: Checkpoint, kind: type[Kind] | tuple[type[Kind], ...], weights: Path, size: int) -> None:
    """Refuse a description whose model is far larger than its weights, before memory is taken for it."""
    if checkpoint.model.runs_foreign_code:
        return
    with torch.device("meta"):
        model = checkpoint.model.build(kind)
    wanted = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if wanted > size:
        raise ArtifactError(f"{weights}: has {size:,} bytes, its model needs {wanted:,}")


def _files(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT
    if path.suffix in SUFFIXES:
        path = path.with_suffix("")
    weights, description = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    if weights.is_file() and not description.exists():
        raise ArtifactError(
            f"{weights}: is no checkpoint of this project, for {description.name} is not beside it; weights alone do "
            "not tell what is computed with them; torch.jit.trace(model.eval(), example).save('model.pt') does"
        )
    return weights, description


def _read_description(path: Path) -> Checkpoint:
    try:
        content = json.loads(read_file(path, MEBIBYTE))
        if content["format"] != FORMAT:
            raise ArtifactError(f"{path}: has format {content['format']}, this version reads {FORMAT}")
        model = ModelSpec(str(content["model"]["name"]), dict(content["model"]["arguments"]))
        return Checkpoint(model, dict(content["config"]), str(content["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path}: not a checkpoint description: {type(error).__name__} {error}") from error
