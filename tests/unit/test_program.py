"""A transformation as data: what a Program accepts, and how it is written down and read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import linear, linear_map, paper_h, plain_mlp, random_rows, residual_mlp

from fct_infer.errors import ArtifactError
from fct_infer.transformation import MAX_WIDTH, Add, Concat, Linear, Normalize, Program, Step

PROGRAMS = {
    "paper_h": paper_h(6, 4, 5, 8),
    "plain_mlp": plain_mlp(6, 4, 5, (7,)),
    "linear_map": linear_map(6, 5),
    "residual_mlp": residual_mlp(6, 5, 9),
}


def ramp(d_out: int, d_in: int) -> Linear:
    weight = np.arange(d_out * d_in, dtype=np.float32).reshape(d_out, d_in) / 8
    return Linear("old", "map", weight, np.arange(d_out, dtype=np.float32), "relu")


def rebuilt(program: Program, **changes: Any) -> Program:
    return dataclasses.replace(program, **changes)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_structure_survives_json_and_back(program: Program) -> None:
    structure = json.loads(json.dumps(program.structure(), allow_nan=False))
    copy = Program.from_structure(structure, program.tensors())
    assert copy.structure() == program.structure()
    assert copy.digest == program.digest
    assert copy.widths == program.widths


def test_sizes_of_the_papers_transformation() -> None:
    program = paper_h()
    assert program.new_dim == 128
    assert program.flops_per_row == pytest.approx(11.4e6, rel=0.02)
    assert program.widths["concat"] == 4 * 128


def test_normalization_is_added_once() -> None:
    program = linear_map(6, 5).with_normalization()
    assert isinstance(program.steps[-1], Normalize)
    assert program.new_dim == 5
    assert program.with_normalization() is program
    unit = residual_mlp(6, 5, 9)  # ends with a normalisation already
    assert unit.with_normalization() is unit


def test_digest_is_the_same_in_every_release() -> None:
    program = Program({"old": 3}, (ramp(2, 3), Normalize("map", "unit")), "unit")
    assert program.digest == "af610f6de7565752e94cb50257801362326cad58a07e7467904a493cda448f80"


def changed_weight(program: Program) -> Program:
    first = program.steps[0]
    assert isinstance(first, Linear)
    weight = first.weight.copy()
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(np.inf))
    return rebuilt(program, steps=(dataclasses.replace(first, weight=weight), *program.steps[1:]))


def changed_activation(program: Program) -> Program:
    first = program.steps[0]
    assert isinstance(first, Linear)
    return rebuilt(program, steps=(dataclasses.replace(first, activation="gelu"), *program.steps[1:]))


@pytest.mark.parametrize(
    "change",
    [
        changed_weight,
        changed_activation,
        Program.with_normalization,
        lambda program: rebuilt(program, output="p1.1"),
        lambda program: rebuilt(program, steps=(*program.steps, Normalize("concat", "unused"))),
    ],
    ids=["weight", "activation", "normalization", "output", "unused step"],
)
def test_digest_sees_every_change(change: Callable[[Program], Program]) -> None:
    program = PROGRAMS["paper_h"]
    assert change(program).digest != program.digest


def test_digest_ignores_the_order_of_dims() -> None:
    program = PROGRAMS["plain_mlp"]
    assert rebuilt(program, dims=dict(reversed(program.dims.items()))).digest == program.digest


def with_tensor(**tensors: Any) -> Callable[[], Program]:
    return lambda: Program({"old": 3}, (dataclasses.replace(ramp(2, 3), **tensors),), "map")


def with_steps(*steps: Step, output: str = "out", **dims: int) -> Callable[[], Program]:
    return lambda: Program(dims or {"old": 4, "side": 3}, steps, output)


RNG = np.random.default_rng(0)
NAN_WEIGHT = np.full((2, 3), np.nan, np.float32)
MALFORMED = {
    "no old": (lambda: Program({"side": 3}, (Normalize("side", "out"),), "out"), "'old'"),
    "third input": (lambda: Program({"old": 3, "extra": 3}, (Normalize("old", "out"),), "out"), "extra"),
    "zero dim": (with_steps(Normalize("old", "out"), old=0), "1 wide"),
    "negative dim": (with_steps(Normalize("old", "out"), old=-2), "1 wide"),
    "too wide": (with_steps(Normalize("old", "out"), old=MAX_WIDTH), str(MAX_WIDTH)),
    "unknown value": (with_steps(Normalize("nothing", "out")), "'nothing'"),
    "later value": (with_steps(Normalize("b", "out"), Normalize("old", "b")), "'b'"),
    "own output": (with_steps(Concat(("old", "out"), "out")), "'out'"),
    "written twice": (with_steps(Normalize("old", "out"), Normalize("side", "out")), "second time"),
    "writes an input": (with_steps(Normalize("old", "side")), "second time"),
    "output never produced": (with_steps(Normalize("old", "a")), "'out'"),
    "output is an input": (with_steps(Normalize("old", "a"), output="old"), "'old'"),
    "no steps": (with_steps(), "'out'"),
    "concat of nothing": (with_steps(Concat((), "out")), "nothing to concatenate"),
    "add of two widths": (with_steps(Add(("old", "side"), "out")), "[4, 3]"),
    "weight too wide": (with_steps(linear(RNG, "side", "out", 4, 2)), "(2, 4)"),
    "weight one-dimensional": (with_tensor(weight=np.ones(3, np.float32)), "weight"),
    "weight empty": (with_tensor(weight=np.ones((0, 3), np.float32), bias=np.ones(0, np.float32)), "weight"),
    "weight float64": (with_tensor(weight=np.ones((2, 3))), "weight must be float32"),
    "weight big-endian": (with_tensor(weight=np.ones((2, 3), ">f4")), "weight must be float32"),
    "weight Fortran": (with_tensor(weight=np.asfortranarray(np.ones((2, 3), np.float32))), "C-contiguous"),
    "weight NaN": (with_tensor(weight=NAN_WEIGHT), "weight must be float32, C-contiguous and finite"),
    "bias infinite": (with_tensor(bias=np.array([0, np.inf], np.float32)), "bias must be"),
    "bias too long": (with_tensor(bias=np.ones(3, np.float32)), "bias is (3,), wanted (2,)"),
    "activation": (with_tensor(activation="swish"), "'swish'"),
}


@pytest.mark.parametrize(("build", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_programs_are_refused(build: Callable[[], Program], message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        build()
    assert message in str(caught.value)


def test_width_is_bounded_before_it_costs_memory() -> None:
    steps = [Concat(("old", "old"), "c0"), *(Concat((f"c{i}",) * 2, f"c{i + 1}") for i in range(100_000))]
    with pytest.raises(ArtifactError, match="wide"):
        Program({"old": 4}, tuple(steps), "c100000")


# -- hostile structures ------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["old", "side", "map", "p1.0", "linear", "concat", "add", "normalize", "relu", ""]),
    st.text(max_size=4),
)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
KEYS = st.sampled_from(["inputs", "steps", "output", "op", "input", "activation", "old", "side"])


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every node of a JSON document."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = node.copy()
    copy[path[0]] = replaced(node[path[0]], path[1:], value)
    return copy


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_structures_raise_only_artifact_errors(data: st.DataObject) -> None:
    program = data.draw(st.sampled_from(list(PROGRAMS.values())))
    structure = program.structure()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(structure)))
        structure = replaced(structure, path, data.draw(JSON_VALUES | st.dictionaries(KEYS, JSON_VALUES)))
    try:
        survivor = Program.from_structure(structure, program.tensors())
    except ArtifactError:
        return
    assert survivor.widths[survivor.output] <= MAX_WIDTH


@settings(max_examples=100, deadline=None)
@given(JSON_VALUES)
def test_arbitrary_json_is_an_artifact_error(document: Any) -> None:
    with pytest.raises(ArtifactError):
        Program.from_structure(document, {})


@pytest.mark.parametrize("dim", [float("inf"), float("nan"), 6.0, "6", None, [6]])
def test_dims_are_integers(dim: Any) -> None:
    structure = PROGRAMS["linear_map"].structure() | {"inputs": {"old": dim}}
    with pytest.raises(ArtifactError, match="malformed program"):
        Program.from_structure(structure, PROGRAMS["linear_map"].tensors())


@pytest.mark.parametrize("tensor", [None, [1.0], np.ones((5, 6)), random_rows(5, 7), random_rows(5, 6)[::-1]])
def test_tensors_are_checked_on_reading(tensor: Any) -> None:
    program = PROGRAMS["linear_map"]
    with pytest.raises(ArtifactError):
        Program.from_structure(program.structure(), program.tensors() | {"map.weight": tensor})


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"map\.weight"):
        Program.from_structure(PROGRAMS["linear_map"].structure(), {})
