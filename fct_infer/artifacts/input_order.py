"""Brings the inputs of a torch module into the order old, side, as their names or its user tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fct_infer.artifacts.roles import roles, roles_by_name, told
from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.errors import ArtifactError
from fct_infer.transformation import INPUTS


def in_order(model: TorchModel, old_first: Sequence[str] | None = None) -> TorchModel:
    """Return the model with its inputs in the order old, side, and so named, where that is told.

    Args:
        model: with one input or two.
        old_first: its own names of them in that order; None leaves it to the names.

    Raises:
        ArtifactError: ``old_first`` has other names.
    """
    names, rest = model.input_names[: len(INPUTS)], model.input_names[len(INPUTS) :]
    try:
        found = roles_by_name(names) if old_first is None else roles(names, (), old_first)
    except ArtifactError as error:
        raise ArtifactError(f"{model.name}: {error}") from error
    if found is None or len(found) < len(INPUTS):
        return model
    count = model.input_count if old_first is None else max(model.input_count, len(INPUTS))
    model = replace(model, input_count=count, input_names=(*INPUTS, *rest))
    if found == INPUTS:
        return model
    return replace(model, module=_Exchanged(model.module), shapes=model.shapes and model.shapes[::-1])


def assignment_of(model: TorchModel) -> str:
    """Say which of the inputs that ``model`` needs is taken for which."""
    names = model.input_names[: model.input_count]
    return told(names, roles_by_name(names) or INPUTS)


def refuse_untold(model: TorchModel, shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse two inputs that neither their names nor, once it is known, their shapes tell apart.

    Raises:
        ArtifactError: they are of one width; the message names them, and the way out.
    """
    try:
        roles(model.input_names[: len(shapes)], [math.prod(shape) for shape in shapes])
    except ArtifactError as error:
        raise ArtifactError(f"{model.name}: {error}") from error


class _Exchanged(nn.Module):
    """A module whose two inputs come in the other order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Tensor, second: Tensor) -> Any:
        """Exchange them."""
        return self.model(second, first)
