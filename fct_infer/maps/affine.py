"""x F1 ... Fk + offset as a program, and rows set as far from the mean as new rows are."""

from __future__ import annotations

import numpy as np

from fct_infer.maps.statistics import Float64Array, Statistics
from fct_infer.transformation import Concat, Linear, Normalize, Program, Step

OUTPUT = "new"


def affine_program(
    training: Statistics, factors: list[Float64Array], offset: Float64Array, *, unit_deviation: bool = False
) -> Program:
    """Return a linear step per factor, of which the last adds the offset.

    Args:
        training: whose inputs are mapped: ``old``, or ``old`` and ``side`` where it has a ``side_dim``.
        factors: W = F1 ... Fk (d_in, d_out).
        offset: (d_out,).
        unit_deviation: append :func:`unit_deviation_steps`, with the mean of the new rows and the root of their mean
            squared distance from it.
    """
    dims, steps, source = {"old": training.old_dim}, list[Step](), "old"
    if training.side_dim:
        dims["side"], source = training.side_dim, "concat"
        steps.append(Concat(("old", "side"), source))
    mean = training.mean[training.input_dim :]
    for index, factor in enumerate(factors):
        is_last = index == len(factors) - 1
        output = OUTPUT if is_last and not unit_deviation else f"map.{index}"
        bias = (offset - mean if unit_deviation else offset) if is_last else np.zeros(factor.shape[1])
        steps.append(_linear(source, output, factor, bias))
        source = output
    if unit_deviation:
        steps += unit_deviation_steps(source, mean, float(np.sqrt(np.trace(training.yy) / training.rows)))
    return Program(dims, tuple(steps), OUTPUT)


def unit_deviation_steps(deviation: str, mean: Float64Array, radius: float) -> list[Step]:
    """Return the steps from the value ``deviation``, which is h - mean, to mean + radius (h - mean) / ||h - mean||."""
    unit = f"{deviation}.unit"
    weight = np.diag(np.full(len(mean), radius, np.float32))
    return [Normalize(deviation, unit), Linear(unit, OUTPUT, weight, mean.astype(np.float32))]


def without_scaling(program: Program) -> tuple[Program, Linear | None]:
    """Return a program that ends in :func:`unit_deviation_steps` up to the unit vectors, and the layer it lacks then.

    Of any other program all is returned, and None.
    """
    *steps, last = program.steps
    if isinstance(last, Linear) and steps and isinstance(steps[-1], Normalize) and steps[-1].output == last.input:
        on_diagonal = np.count_nonzero(last.weight.diagonal())
        if last.activation == "none" and np.count_nonzero(last.weight) == on_diagonal:
            return Program(program.dims, tuple(steps), last.input), last
    return program, None


def _linear(source: str, output: str, weight: Float64Array, bias: Float64Array) -> Linear:
    return Linear(source, output, np.ascontiguousarray(weight.T, np.float32), bias.astype(np.float32))
