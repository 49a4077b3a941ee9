"""Galleries with a history: h(2 -> 3) after h(1 -> 2) as one transformation, and rows of different old models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArrayError, UsageError
from fct_infer.transformation import Add, Concat, Linear, Normalize, Program, Step

SecondSide: TypeAlias = Literal["stored", "old"]

Transform: TypeAlias = Callable[[NDArray[Any], NDArray[Any] | None], NDArray[Any]]
"""(n, d_old) and (n, d_side) or None -> (n, d_new), such as a :class:`fct_infer.transformation.Transformation`."""


def compose(first: Program, second: Program, second_side: SecondSide = "stored") -> Program:
    """Return one program that maps version 1 to version 3: ``second`` on the result of ``first``.

    Its values are named as in the two programs, with ``first.`` and ``second.`` in front. Its ``old`` is the first
    program's. Its ``side`` is what the gallery stores beside version 1: the first program reads it, and so does the
    second unless told otherwise, because side-information is of the item and not of the model's version: it is stored
    once and outlives upgrades.

    Args:
        first: h(1 -> 2).
        second: h(2 -> 3); its ``old`` is as wide as the result of ``first``.
        second_side: where the second program's ``side`` comes from, if it has one: ``"stored"``, the gallery's
            side-information, or ``"old"``, its own old embedding, which is the result of ``first``: for an h(2 -> 3)
            that was trained without side-information but has both inputs.

    Raises:
        UsageError: the widths do not fit.
    """
    if second.dims["old"] != first.new_dim:
        raise UsageError(
            f"the first transformation gives {first.new_dim} numbers, the second takes {second.dims['old']}"
        )
    if second_side not in ("stored", "old"):
        raise UsageError(f"unknown source of the second side-information {second_side!r}, wanted 'stored' or 'old'")
    steps, result = _renamed(first, "first.", {"old": "old", "side": "side"})
    dims = dict(first.dims)
    inputs = {"old": result, "side": "side" if second_side == "stored" else result}
    if "side" in second.dims and second_side == "stored":
        if dims.setdefault("side", second.dims["side"]) != second.dims["side"]:
            raise UsageError(
                f"the first transformation takes {dims['side']} wide side-information, the second "
                f"{second.dims['side']}: one stored vector cannot be both"
            )
    elif "side" in second.dims and second.dims["side"] != first.new_dim:
        raise UsageError(
            f"the second transformation takes {second.dims['side']} wide side-information; its old embedding is "
            f"{first.new_dim} wide and cannot take its place"
        )
    rest, output = _renamed(second, "second.", inputs)
    return Program(dims, (*steps, *rest), output)


def mix(first: Program, second: Program, share: float) -> Program:
    """Return one program that computes share * first + (1 - share) * second of the same inputs.

    Args:
        first, second: maps into the same space; their values are named as by :func:`compose`.
        share: 0 to 1.

    Raises:
        UsageError: they give rows of different widths, or take other inputs.
    """
    if first.new_dim != second.new_dim or first.dims | second.dims != second.dims | first.dims:
        found = " and ".join(f"{each.dims} -> {each.new_dim}" for each in (first, second))
        raise UsageError(f"maps {found} cannot be mixed")
    steps, sums = list[Step](), list[str]()
    for program, prefix, weight in ((first, "first.", share), (second, "second.", 1 - share)):
        renamed, output = _renamed(program, prefix, {"old": "old", "side": "side"})
        renamed, output = _scaled(renamed, output, weight, program.new_dim)
        steps += renamed
        sums.append(output)
    return Program(first.dims | second.dims, (*steps, Add((sums[0], sums[1]), "mixed")), "mixed")


def _scaled(steps: list[Step], output: str, factor: float, width: int) -> tuple[list[Step], str]:
    """Have steps give ``factor`` times as much: by their last layer if that can do it, else by one more."""
    last = steps[-1]
    if not isinstance(last, Linear) or last.output != output or last.activation != "none":
        last = Linear(output, f"{output}.scaled", np.eye(width, dtype=np.float32), np.zeros(width, np.float32))
        steps = [*steps, last]
    weight, bias = (np.ascontiguousarray(factor * array, np.float32) for array in (last.weight, last.bias))
    return [*steps[:-1], replace(last, weight=weight, bias=bias)], last.output


def apply_by_source(
    transforms: Mapping[Any, Transform], sources: NDArray[Any], old: NDArray[Any], side: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """Transform rows that come from different old models, each row by the transformation of its own.

    Args:
        transforms: by the name of the old model; all give one width.
        sources: (n,) the name of each row's old model.
        old: (n, d_old) old embeddings, of one width.
        side: (n, d_side), or None.

    Returns:
        (n, d_new) float32.

    Raises:
        ArrayError: a row's source has no transformation, lengths differ, or the results differ in width.
    """
    if sources.shape != old.shape[:1]:
        raise ArrayError(f"sources is {sources.shape}, wanted ({len(old)},), one per row of old")
    result: NDArray[np.float32] | None = None
    for source in np.unique(sources).tolist():
        if source not in transforms:
            row = int(np.flatnonzero(sources == source)[0])
            raise ArrayError(f"row {row} comes from {source!r}; there are transformations of {sorted(transforms)}")
        rows = np.flatnonzero(sources == source)
        part = transforms[source](old[rows], None if side is None else side[rows])
        if result is None:
            result = np.empty((len(old), part.shape[1]), np.float32)
        if part.shape[1] != result.shape[1]:
            raise ArrayError(
                f"the transformation of {source!r} gives {part.shape[1]} numbers, others {result.shape[1]}"
            )
        result[rows] = part
    if result is None:
        raise ArrayError("there are no rows to transform")
    return result


def _renamed(program: Program, prefix: str, inputs: Mapping[str, str]) -> tuple[list[Step], str]:
    """Return the steps with ``prefix`` before every name they produce, inputs replaced, and the output's name."""

    def name(value: str) -> str:
        return inputs.get(value, prefix + value)

    steps: list[Step] = []
    for step in program.steps:
        match step:
            case Linear() | Normalize():
                steps.append(replace(step, input=name(step.input), output=name(step.output)))
            case Concat():
                steps.append(Concat(tuple(name(each) for each in step.inputs), name(step.output)))
            case Add():
                steps.append(Add((name(step.inputs[0]), name(step.inputs[1])), name(step.output)))
    return steps, name(program.output)
