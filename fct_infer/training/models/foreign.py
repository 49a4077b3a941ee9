"""Models that are not this project's: a user's ``module:function``, or a name in timm or torchvision."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from fct_infer.errors import MissingExtraError, UsageError
from fct_infer.training.imports import import_object
from fct_infer.training.models.base import Backbone, Standardize

_LIBRARIES = ("timm", "torchvision")
_PROBE_SIZE = 224  # pixels of a side; what models of these libraries take at their defaults


class ForeignBackbone(Backbone):
    """Another module behind this project's interface: it returns (n, d), or (n, d, 1, 1).

    Args:
        module: images -> embeddings.
        standardized: whether it wants images of zero mean and unit variance, as timm's and torchvision's do.
    """

    def __init__(self, module: nn.Module, standardized: bool) -> None:
        super().__init__()
        self.standardize: nn.Module = Standardize() if standardized else nn.Identity()
        self.module = module
        own = getattr(module, "embedding_dim", None)
        self.embedding_dim = own if isinstance(own, int) else self._probed_dim()

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) float32 on the scale 0 to 1 -> (n, embedding_dim) float32."""
        embeddings: Tensor = self.module(self.standardize(images))
        return embeddings.flatten(1)

    @torch.no_grad()
    def _probed_dim(self) -> int:
        was_training = self.module.training
        self.module.eval()
        try:
            return int(self(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE)).shape[1])
        finally:
            self.module.train(was_training)


def is_foreign(name: str) -> bool:
    """Whether a model's name leads to code outside this project."""
    return ":" in name or name.partition("/")[0] in _LIBRARIES


def build_foreign(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Call ``module:function``, or build ``timm/NAME`` or ``torchvision/NAME`` without its classifier.

    A function may return a :class:`Backbone`, a transformation, or any module from images to embeddings.

    Raises:
        UsageError: there is no such thing, or it returns no module.
        MissingExtraError: the library is not installed.
    """
    if ":" in name:
        module = import_object(name)(**arguments)
        if not isinstance(module, nn.Module):
            raise UsageError(f"{name}: returns a {type(module).__name__}, wanted a torch.nn.Module")
        is_ours = type(module).__module__.startswith("fct_infer.") or isinstance(module, Backbone)
        return module if is_ours else ForeignBackbone(module, standardized=False)
    library, _, model = name.partition("/")
    try:
        package = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises a RuntimeError
        raise MissingExtraError(library, "train") from error
    if library == "timm":
        return ForeignBackbone(package.create_model(model, num_classes=0, **arguments), standardized=True)
    built = package.get_model(model, **arguments)
    head = next((each for each in ("fc", "classifier", "head", "heads") if hasattr(built, each)), None)
    if head is None:
        raise UsageError(f"{name}: has no classifier of a known name to take off")
    setattr(built, head, nn.Identity())
    return ForeignBackbone(built, standardized=True)
