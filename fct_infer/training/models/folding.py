"""From a trained torch module to a :class:`~fct_infer.transformation.Program`, batch norm folded in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fct_infer.artifacts.uncertainty import uncertainty_program
from fct_infer.errors import UsageError
from fct_infer.maps.affine import unit_deviation_steps
from fct_infer.maps.statistics import Float64Array
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.program import ProgramTransformation
from fct_infer.training.models.residual import FittedResidual
from fct_infer.training.models.standardized import StandardizedTransformation
from fct_infer.training.models.transformation import (
    LayeredTransformation,
    MlpTransformation,
    PaperTransformation,
    PointwiseBlock,
    ResidualBlock,
    ResidualMlpTransformation,
)
from fct_infer.transformation import Activation, Add, Concat, Float32Array, Linear, Program, Step


def to_program(module: TransformationModule) -> Program:
    """Return what ``module`` computes in eval mode, as data; it takes ``side`` if the module has a ``side_dim``.

    Raises:
        UsageError: the module is in training mode, where batch norm depends on the batch and cannot be folded, or of
            a class that is not known here.
        ArtifactError: a weight is not finite.
    """
    _check_mode(module)
    if isinstance(module, ProgramTransformation):
        return module.program()
    if not isinstance(module, LayeredTransformation):
        raise UsageError(f"{type(module).__name__} has no program")
    return _program(module)


def to_uncertainty_program(module: TransformationModule) -> Program:
    """Return FastFill's uncertainty as a program: its output is the log-variance s, (n, 1) (arXiv 2303.04766).

    Raises:
        UsageError: as :func:`to_program`, or the module was built without the head.
        ArtifactError: a weight is not finite.
    """
    _check_mode(module)
    head = uncertainty_layer(module)
    if head is None:
        raise UsageError(f"this {type(module).__name__} has no uncertainty head; train it with FastFill's loss")
    program = to_program(module)
    (layer,) = head.steps
    assert isinstance(layer, Linear)
    return Program(program.dims, (*program.steps, replace(layer, input=program.output)), layer.output)


def uncertainty_layer(module: TransformationModule) -> Program | None:
    """Return FastFill's head by itself, see :func:`fct_infer.artifacts.uncertainty.uncertainty_program`; None without.

    Raises:
        ArtifactError: a weight is not finite.
    """
    head = module.uncertainty if isinstance(module, LayeredTransformation) else None
    return None if head is None else uncertainty_program(_float32(head.weight.detach()), _float32(head.bias.detach()))


def _check_mode(module: TransformationModule) -> None:
    if module.training:
        raise UsageError("a transformation in training mode has no fixed arithmetic; call .eval() first")


def _program(module: LayeredTransformation) -> Program:
    if isinstance(module, StandardizedTransformation):
        return _with_scales(_program(module.inner), module)
    steps = _steps(module)
    return Program(_dims(module), tuple(steps), steps[-1].output)


def _with_scales(program: Program, module: StandardizedTransformation) -> Program:
    """Return the program with means and scales in the layers that read its inputs, and in the last one."""
    parts = {name: _scale(module, name) for name in program.dims}
    for step in program.steps:
        if isinstance(step, Concat) and set(step.inputs) <= set(program.dims):
            sides = [parts[name] for name in step.inputs]
            parts[step.output] = (np.concatenate([mean for mean, _ in sides]), np.concatenate([by for _, by in sides]))
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, Linear):
            weight, bias = step.weight.astype(np.float64), step.bias.astype(np.float64)
            if step.input in parts:
                mean, scale = parts[step.input]
                weight = weight / scale
                bias = bias - weight @ mean
            if step.output == program.output:
                mean, scale = _scale(module, "new")
                weight, bias = weight * scale[:, None], bias * scale + mean
            parameters = np.ascontiguousarray(weight, np.float32), bias.astype(np.float32)
            steps.append(Linear(step.input, step.output, *parameters, step.activation))
        else:
            steps.append(step)
    return Program(program.dims, tuple(steps), program.output)


def _scale(module: StandardizedTransformation, name: str) -> tuple[Float64Array, Float64Array]:
    """Return mean and scale of each column of a part."""
    mean = module.get_buffer(f"{name}_mean").double().cpu().numpy()
    return mean, np.full(len(mean), float(module.get_buffer(f"{name}_scale")))


def _dims(module: TransformationModule) -> dict[str, int]:
    return {"old": module.old_dim} | ({"side": module.side_dim} if module.side_dim else {})


def _steps(module: LayeredTransformation) -> list[Step]:
    """Return the steps of h; the last one's output is the new embedding."""
    match module:
        case PaperTransformation():
            beside = "side" if module.side_dim else "old"
            branches = chain_steps("p1", module.p1, "old"), chain_steps("p2", module.p2, beside)
            concat = Concat((branches[0][-1].output, branches[1][-1].output), "concat")
            return [*branches[0], *branches[1], concat, *chain_steps("mixer", module.mixer, "concat")]
        case MlpTransformation():
            inputs, source = _inputs(module)
            return [*inputs, *chain_steps("layers", module.layers, source)]
        case ResidualMlpTransformation():
            inputs, source = _inputs(module)
            steps = [*inputs, linear_step(module.stem, source, "stem")]
            for index, block in enumerate(module.blocks):
                assert isinstance(block, ResidualBlock)
                steps += _residual(f"blocks.{index}", block, steps[-1].output)
            return [*steps, linear_step(module.head, steps[-1].output, "head")]
        case FittedResidual():
            return _fitted_residual(module)
        case _:
            raise UsageError(f"{type(module).__name__} has no program")


def _fitted_residual(module: FittedResidual) -> list[Step]:
    inputs, source = _inputs(module)
    mean, scale = (tensor.double().cpu().numpy() for tensor in (module.get_buffer("mean"), module.spread))
    base, layers = linear_step(module.base, source, "base"), chain_steps("mlp", module.mlp, source)
    if not module.recipe.unit_deviation:
        base = replace(base, bias=(base.bias + mean).astype(np.float32))
    layers[0] = _with_raw_inputs(layers[0], module.standardized)
    last = layers[-1]
    layers[-1] = replace(
        last, weight=(last.weight * scale).astype(np.float32), bias=(last.bias * scale).astype(np.float32)
    )
    steps = [*inputs, base, *layers]
    if not module.recipe.unit_deviation:
        return [*steps, Add(("base", last.output), "new")]
    radius = float(module.get_buffer("radius"))
    return [*steps, Add(("base", last.output), "deviation"), *unit_deviation_steps("deviation", mean, radius)]


def _with_raw_inputs(layer: Linear, norm: nn.BatchNorm1d) -> Linear:
    """Return a layer of standardised inputs as one of the inputs as they are."""
    assert norm.running_var is not None and norm.running_mean is not None
    weight = layer.weight / np.sqrt(norm.running_var.double().cpu().numpy() + norm.eps)
    bias = layer.bias - weight @ norm.running_mean.double().cpu().numpy()
    return replace(layer, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _inputs(module: LayeredTransformation) -> tuple[list[Step], str]:
    return ([Concat(("old", "side"), "concat")], "concat") if module.side_dim else ([], "old")


def chain_steps(name: str, blocks: Iterable[nn.Module], source: str) -> list[Linear]:
    """Return the layers of blocks that follow each other, called ``NAME.0`` and so on; see :func:`linear_step`."""
    steps: list[Linear] = []
    for index, block in enumerate(blocks):
        steps.append(linear_step(block, source, f"{name}.{index}"))
        source = steps[-1].output
    return steps


def _residual(name: str, block: ResidualBlock, source: str) -> list[Step]:
    inner = linear_step(block.inner, source, f"{name}.inner")
    outer = linear_step(block.outer, inner.output, f"{name}.outer")
    return [inner, outer, Add((source, outer.output), name)]


@torch.no_grad()
def linear_step(block: nn.Module, source: str, output: str) -> Linear:
    """Return the layer with its batch norm multiplied in: weight (d_out, d_in) and bias (d_out,)."""
    assert isinstance(block, PointwiseBlock)
    weight = block.conv.weight.flatten(1).double()
    norm = block.normalizer
    activation: Activation = "none" if norm is None else "relu"
    if norm is None:
        assert block.conv.bias is not None
        return Linear(source, output, _float32(weight), _float32(block.conv.bias), activation)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() - norm.running_mean.double() * scale
    return Linear(source, output, _float32(weight * scale[:, None]), _float32(bias), activation)


def _float32(tensor: torch.Tensor) -> Float32Array:
    return np.ascontiguousarray(tensor.cpu().numpy(), np.float32)
