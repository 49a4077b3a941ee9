"""From a trained torch module to a :class:`~fct_infer.transformation.Program`, batch norm folded in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fct_infer.errors import UsageError
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.transformation import MlpTransformation, PaperTransformation, PointwiseBlock
from fct_infer.transformation import Activation, Concat, Float32Array, Linear, Program


def to_program(module: TransformationModule) -> Program:
    """Return what ``module`` computes in eval mode, as data.

    Raises:
        UsageError: the module is in training mode, where batch norm depends on the batch and cannot be folded, or of
            a class that is not known here.
        ArtifactError: a weight is not finite.
    """
    if module.training:
        raise UsageError("a transformation in training mode has no fixed arithmetic; call .eval() first")
    dims = {"old": module.old_dim, "side": module.side_dim}
    match module:
        case PaperTransformation():
            branches = [*_chain("p1", module.p1, "old"), *_chain("p2", module.p2, "side")]
            concat = Concat(("p1.1", "p2.1"), "concat")
            mixer = _chain("mixer", module.mixer, "concat")
            return Program(dims, (*branches, concat, *mixer), mixer[-1].output)
        case MlpTransformation():
            layers = _chain("layers", module.layers, "concat")
            return Program(dims, (Concat(("old", "side"), "concat"), *layers), layers[-1].output)
        case _:
            raise UsageError(f"{type(module).__name__} has no program")


def _chain(name: str, blocks: nn.Sequential, source: str) -> list[Linear]:
    steps: list[Linear] = []
    for index, block in enumerate(blocks):
        assert isinstance(block, PointwiseBlock)
        weight, bias = _folded(block)
        activation: Activation = "none" if block.normalizer is None else "relu"
        steps.append(Linear(source, f"{name}.{index}", weight, bias, activation))
        source = steps[-1].output
    return steps


@torch.no_grad()
def _folded(block: PointwiseBlock) -> tuple[Float32Array, Float32Array]:
    """Weight (d_out, d_in) and bias (d_out,) of the layer with its batch norm multiplied in."""
    weight = block.conv.weight.flatten(1).double()
    norm = block.normalizer
    if norm is None:
        assert block.conv.bias is not None
        return _float32(weight), _float32(block.conv.bias)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return _float32(weight * scale[:, None]), _float32(norm.bias.double() - norm.running_mean.double() * scale)


def _float32(tensor: torch.Tensor) -> Float32Array:
    return np.ascontiguousarray(tensor.cpu().numpy(), np.float32)
