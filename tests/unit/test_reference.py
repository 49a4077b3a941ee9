from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.programs import examples, linear_map, paper_h, random_rows

from fct_infer.errors import ArrayError
from fct_infer.reference import apply_float64, largest_values
from fct_infer.transformation import Add, Concat, Linear, Normalize, Program


def run_in_torch(program: Program, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The same steps with PyTorch's own float64 operations."""
    values = {name: torch.from_numpy(array).double() for name, array in inputs.items()}
    for step in program.steps:
        match step:
            case Linear():
                weight, bias = torch.from_numpy(step.weight).double(), torch.from_numpy(step.bias).double()
                value = F.linear(values[step.input], weight, bias)
                values[step.output] = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}[step.activation](value)
            case Concat():
                values[step.output] = torch.cat([values[name] for name in step.inputs], dim=1)
            case Add():
                values[step.output] = values[step.inputs[0]] + values[step.inputs[1]]
            case Normalize():
                values[step.output] = F.normalize(values[step.input], eps=1e-12)
    return values[program.output].numpy()


@pytest.mark.parametrize("name", examples())
def test_equals_torch_in_float64(name):
    program = examples()[name]
    inputs = {key: random_rows(33, dim, seed) for seed, (key, dim) in enumerate(program.dims.items())}
    found = apply_float64(program, inputs["old"], inputs.get("side"))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, run_in_torch(program, inputs), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(arrays(np.float64, 40, elements=st.floats(-40, 40)))
def test_gelu_is_exact(values):
    step = Linear("old", "out", np.eye(40, dtype=np.float32), np.zeros(40, np.float32), "gelu")
    found = apply_float64(Program({"old": 40}, (step,), "out"), values[None])[0]
    last_bit = 40 * np.finfo(np.float64).eps  # of 1 + erf, which nearly cancel below 0, times the value
    np.testing.assert_allclose(found, F.gelu(torch.from_numpy(values)).numpy(), rtol=1e-13, atol=last_bit)


def test_rows_of_zeros_stay_zero_when_normalized():
    program = Program({"old": 4}, (Normalize("old", "unit"),), "unit")
    assert not apply_float64(program, np.zeros((2, 4), np.float32)).any()


def test_without_side_information_the_old_embedding_takes_its_place():
    program, old = paper_h(24, 24, 16, inner=32), random_rows(5, 24)
    np.testing.assert_array_equal(apply_float64(program, old), apply_float64(program, old, old))


def test_float16_rows_are_taken_as_they_are():
    program, old = linear_map(24, 16), random_rows(5, 24).astype(np.float16)
    np.testing.assert_array_equal(apply_float64(program, old), apply_float64(program, old.astype(np.float64)))


@pytest.mark.parametrize(
    ("old", "side", "message"),
    [
        (np.zeros((3, 23), np.float32), np.zeros((3, 8), np.float32), r"old is float32 \(3, 23\)"),
        (np.zeros((3, 24), np.int32), np.zeros((3, 8), np.float32), "old is int32"),
        (np.zeros(24, np.float32), np.zeros((24, 8), np.float32), r"old is float32 \(24,\)"),
        (np.zeros((3, 24), np.float32), np.zeros((2, 8), np.float32), r"side is float32 \(2, 8\)"),
        (np.zeros((3, 24), np.float32), None, r"side is float32 \(3, 24\), wanted floating-point \(3, 8\)"),
    ],
)
def test_refuses_arrays_that_do_not_fit(old, side, message):
    with pytest.raises(ArrayError, match=message):
        apply_float64(paper_h(24, 8, 16, inner=32), old, side)


@pytest.mark.parametrize("name", examples())
@pytest.mark.parametrize("rows", [1, 700])
def test_largest_values_are_those_that_linear_layers_read(name, rows):
    program = examples()[name]
    inputs = [random_rows(rows, dim, seed) for seed, dim in enumerate(program.dims.values())]
    found = largest_values(program, *inputs)
    assert list(found) == list(program.linear_inputs)
    for value, largest in found.items():
        if value in program.dims:
            wanted = inputs[list(program.dims).index(value)]
        else:
            end = next(place for place, step in enumerate(program.steps) if step.output == value) + 1
            wanted = apply_float64(Program(program.dims, program.steps[:end], value), *inputs)
        assert largest == pytest.approx(np.abs(wanted).max(), rel=1e-12)


def test_a_value_that_is_always_zero_has_range_one():
    program, old = linear_map(6, 4), np.zeros((3, 6), np.float32)
    assert largest_values(program, old) == {"old": 1.0}
    with pytest.raises(ArrayError, match="old has no rows"):
        largest_values(program, old[:0])
