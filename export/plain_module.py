"""A torch module whose inputs and output are plain rows, whatever layout its author chose."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fct_infer.artifacts.foreign_code import foreign_code
from fct_infer.artifacts.manifest import is_image
from fct_infer.errors import ArtifactError

from .tracing import without_warnings

_QUANTIZED = ("torch.ao.nn.quantized", "torch.nn.quantized")


class PlainModule(nn.Module):
    """Rows (n, d) and images (n, c, h, w) in, (n, output_dim) out, around a module that may want (n, d, 1, 1).

    Args:
        model: the module.
        shapes: of its inputs without the batch axis, as it takes them.
    """

    def __init__(self, model: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.model = model
        self.is_column = [len(shape) == 3 and not is_image(shape) for shape in shapes]

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """Reshape, run, flatten. Archives keep the names; an image model has one input, whatever it is called."""
        given = [old] if side is None else [old, side]
        pairs = zip(given, self.is_column, strict=True)
        inputs = [rows[:, :, None, None] if is_column else rows for rows, is_column in pairs]
        output: Tensor = self.model(*inputs)
        return output.flatten(1)


class Lowered(nn.Module):
    """``model`` computing in a smaller floating type; float32 in and out all the same.

    Args:
        model: a :class:`PlainModule` or one like it; it is copied.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = _copy(model).to(dtype), dtype

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """Cast, run, cast back."""
        given = [old] if side is None else [old, side]
        output: Tensor = self.model(*(rows.to(self.dtype) for rows in given))
        return output.float()


def float32_copy(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in float32 and, where it has two modes, in eval mode."""
    name = type(module).__name__
    _check_weights(module, name)
    copied = _copy(module)
    with foreign_code(f"{name} cannot be brought to the CPU, float32 and eval mode"):
        copied = copied.cpu().float()
        if not isinstance(copied, torch.fx.GraphModule):  # of a torch.export archive: it has one mode only and refuses
            copied.eval()
    return copied


def _check_weights(module: nn.Module, name: str) -> None:
    """Refuse weights without numbers, and layers whose rounding depends on which rows come together."""
    with foreign_code(f"{name} does not tell its weights"):
        for weight, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_meta:
                raise ArtifactError(f"{name}: {weight} is on the meta device, which keeps no numbers; load them first")
        for part in module.modules():
            if type(part).__module__.startswith(_QUANTIZED):
                kind = f"quantized {type(part).__name__}"
                raise ArtifactError(f"{name}: has a {kind}; export the float model, --precision int8 quantizes it")


def _copy(module: nn.Module) -> nn.Module:
    problem = (
        f"{type(module).__name__} cannot be copied (if a parametrisation such as the old torch.nn.utils.weight_norm is "
        "the reason, remove it first, or trace the model and export the archive)"
    )
    with foreign_code(problem), without_warnings(), torch.no_grad():  # else TorchScript weights keep their history
        return copy.deepcopy(module)
