"""Models by name, so that a configuration file or a checkpoint can say what to build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import nn

from fct_infer.errors import UsageError
from fct_infer.training.config import check_arguments, hint
from fct_infer.training.models.base import Backbone, UnitBackbone
from fct_infer.training.models.classifiers import CosineClassifier, LinearClassifier
from fct_infer.training.models.deep_resnet import DeepResNet
from fct_infer.training.models.foreign import build_foreign, is_foreign
from fct_infer.training.models.mobilenet import MobileNetV2
from fct_infer.training.models.program import ProgramTransformation
from fct_infer.training.models.residual import FittedResidual
from fct_infer.training.models.resnet import ResNet
from fct_infer.training.models.standardized import StandardizedTransformation
from fct_infer.training.models.transformation import TRANSFORMATIONS, LayeredTransformation

Kind = TypeVar("Kind", bound=nn.Module)


def _unit(backbone: Mapping[str, Any]) -> UnitBackbone:
    return UnitBackbone(ModelSpec(**backbone).build(Backbone))


def _standardized(model: Mapping[str, Any], uncertainty: bool = False) -> StandardizedTransformation:
    return StandardizedTransformation(ModelSpec(**model).build(LayeredTransformation), uncertainty)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet": ResNet,
    **{f"resnet{depth}": partial(DeepResNet, depth) for depth in (18, 34, 50, 101)},
    "mobilenet_v2": MobileNetV2,
    "unit": _unit,
}
TRAINED: dict[str, Callable[..., nn.Module]] = {**TRANSFORMATIONS, "fitted_residual": FittedResidual}
"""Transformations that are trained."""

_MODELS: dict[str, Callable[..., nn.Module]] = {
    **BACKBONES,
    "standardized": _standardized,
    "linear_classifier": LinearClassifier,
    "cosine_classifier": CosineClassifier,
    "program": ProgramTransformation,
    **TRAINED,
}


@dataclass(frozen=True)
class ModelSpec:
    """A model as data: its name and the arguments of its constructor (JSON values only).

    The model ``unit`` brings the embeddings of another, its argument ``backbone``, to length 1; ``standardized`` puts
    another h, its argument ``model``, between standardised spaces.

    Attributes:
        name: one of the registry, or ``module:function``, ``timm/NAME`` or ``torchvision/NAME``.
        arguments: of its constructor.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def runs_foreign_code(self) -> bool:
        """Whether building it imports what is not this project's."""
        inner = self.arguments.get("model" if self.name == "standardized" else "backbone")
        return is_foreign(self.name) or (isinstance(inner, dict) and ModelSpec(**inner).runs_foreign_code)

    def build(self, kind: type[Kind] | tuple[type[Kind], ...]) -> Kind:
        """Return a new module of a kind (a base class, or one of several) with freshly drawn weights.

        Raises:
            UsageError: the name is unknown or of another kind, or the arguments do not fit the model.
        """
        if self.name not in _MODELS and not is_foreign(self.name):
            raise UsageError(f"unknown model {self.name!r}{hint(self.name, ['module:function', *sorted(_MODELS)])}")
        if not is_foreign(self.name):
            check_arguments(_MODELS[self.name], self.arguments, f"model {self.name!r}")
        try:
            if is_foreign(self.name):
                module = build_foreign(self.name, self.arguments)
            else:
                module = _MODELS[self.name](**self.arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"model {self.name!r} cannot be built from {self.arguments}: {error}") from error
        if not isinstance(module, kind):
            wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            raise UsageError(f"model {self.name!r} is a {type(module).__name__}, wanted a {wanted}")
        return module
