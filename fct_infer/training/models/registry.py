"""Models by name, so that a configuration file or a checkpoint can say what to build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from fct_infer.errors import UsageError
from fct_infer.training.models.resnet import ResNet
from fct_infer.training.models.transformation import MlpTransformation, PaperTransformation

Kind = TypeVar("Kind", bound=nn.Module)

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet": ResNet,
    "paper": PaperTransformation,
    "mlp": MlpTransformation,
}


@dataclass(frozen=True)
class ModelSpec:
    """A model as data: its name in the registry and the arguments of its constructor (JSON values only)."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, kind: type[Kind] | tuple[type[Kind], ...]) -> Kind:
        """Return a new module of a kind (a base class, or one of several) with freshly drawn weights.

        Raises:
            UsageError: the name is unknown or of another kind, or the arguments do not fit the model.
        """
        if self.name not in _MODELS:
            raise UsageError(f"unknown model {self.name!r}, wanted one of {sorted(_MODELS)}")
        try:
            module = _MODELS[self.name](**self.arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"model {self.name!r} cannot be built from {self.arguments}: {error}") from error
        if not isinstance(module, kind):
            wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            raise UsageError(f"model {self.name!r} is a {type(module).__name__}, wanted a {wanted}")
        return module
