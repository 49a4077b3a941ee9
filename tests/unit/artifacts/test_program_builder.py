from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import random_rows

from fct_infer.artifacts.program_builder import MAX_WIDTH, ProgramBuilder, Rows
from fct_infer.errors import ArtifactError
from fct_infer.reference import apply_float64
from fct_infer.transformation import Linear

RNG = np.random.default_rng(0)


def start(width: int = 6) -> tuple[ProgramBuilder, Rows]:
    builder = ProgramBuilder()
    return builder, builder.input("old", (width,))


def relu(x):
    return np.maximum(x, 0)


class Chain:
    """Applies random layers to a builder and to NumPy rows alike."""

    def __init__(self, rows: np.ndarray) -> None:
        self.builder, self.value = start(rows.shape[1])
        self.rows = rows

    def linear(self, rng):
        weight, bias = rng.standard_normal((rng.integers(1, 9), self.rows.shape[1])), None
        if rng.random() < 0.5:
            bias = rng.standard_normal(len(weight))
        self.value = self.builder.linear(self.value, weight, bias)
        self.rows = self.rows @ weight.T + (0 if bias is None else bias)

    def batch_norm(self, rng):
        width = self.rows.shape[1]
        scale, shift, mean = rng.standard_normal((3, width))
        variance = rng.uniform(0.1, 3, width)
        self.value = self.builder.batch_norm(self.value, scale, shift, mean, variance, 1e-5)
        self.rows = (self.rows - mean) / np.sqrt(variance + 1e-5) * scale + shift

    def constant(self, rng):
        operation = rng.choice(["add", "sub", "mul", "div"])
        operand = rng.uniform(0.5, 2, rng.choice([1, self.rows.shape[1]]))
        reverse = bool(rng.random() < 0.5) and operation != "div"
        first, second = (operand, self.rows) if reverse else (self.rows, operand)
        self.value = self.builder.constant(operation, self.value, operand, reverse=reverse)
        self.rows = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[operation](first, second)

    def relu(self, _rng):
        self.value, self.rows = self.builder.activate(self.value, "relu"), relu(self.rows)

    def concat(self, _rng):
        other = self.builder.constant("mul", self.value, np.array(0.5))
        self.value = self.builder.concat([self.value, other])
        self.rows = np.concatenate([self.rows, self.rows * 0.5], axis=1)

    def residual(self, rng):
        weight = rng.standard_normal((self.rows.shape[1],) * 2)
        self.value = self.builder.add(self.value, self.builder.linear(self.value, weight))
        self.rows = self.rows + self.rows @ weight.T

    def normalize(self, _rng):
        self.value = self.builder.normalize(self.value)
        self.rows = self.rows / np.maximum(np.linalg.norm(self.rows, axis=1, keepdims=True), 1e-12)


LAYERS = ("linear", "batch_norm", "constant", "relu", "concat", "residual", "normalize")


@settings(deadline=None)
@given(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=7), st.integers(0, 2**32 - 1))
def test_folding_never_changes_what_is_computed(layers, seed):
    rng = np.random.default_rng(seed)
    old = random_rows(5, 6, seed % 1000)
    chain = Chain(old.astype(np.float64))
    for layer in layers:
        getattr(chain, layer)(rng)
    if chain.value.source == "old" and not np.any(chain.value.weight != 1) and not chain.value.bias.any():
        return
    found = apply_float64(chain.builder.finish(chain.value), old)
    scale = max(1.0, np.abs(chain.rows).max())
    if "normalize" not in layers:  # which would amplify rounding where a row cancels out
        np.testing.assert_allclose(found, chain.rows, atol=2e-5 * scale * 4 ** len(layers), rtol=0)
    assert found.shape == chain.rows.shape


def test_linear_batch_norm_and_relu_become_one_step():
    builder, rows = start()
    rows = builder.linear(rows, RNG.standard_normal((4, 6)))
    rows = builder.batch_norm(rows, None, None, RNG.standard_normal(4), np.ones(4), 1e-5)
    program = builder.finish(builder.activate(builder.constant("add", rows, np.ones(4)), "relu"))
    assert [type(step) for step in program.steps] == [Linear]
    assert program.steps[0].activation == "relu"


def test_batch_norm_before_a_linear_layer_is_folded_forward():
    builder, rows = start()
    rows = builder.batch_norm(rows, np.full(6, 2.0), None, np.ones(6), np.full(6, 4.0), 0.0)
    program = builder.finish(builder.linear(rows, np.eye(6)))
    assert len(program.steps) == 1
    np.testing.assert_array_equal(program.steps[0].weight, np.eye(6))
    np.testing.assert_array_equal(program.steps[0].bias, np.full(6, -1))


def test_two_linear_layers_stay_two_because_the_narrow_middle_is_cheaper():
    builder, rows = start()
    program = builder.finish(builder.linear(builder.linear(rows, np.ones((1, 6))), np.ones((6, 1))))
    assert [step.weight.shape for step in program.steps] == [(1, 6), (6, 1)]


def test_a_value_used_twice_is_computed_once():
    builder, rows = start()
    stem = builder.linear(rows, np.eye(6))
    program = builder.finish(builder.add(stem, builder.linear(stem, np.eye(6))))
    assert len(program.steps) == 3


def test_folding_happens_in_float64():
    """In float32, 1e8 + 1 - 1e8 is 0."""
    builder, rows = start(1)
    rows = builder.constant("add", builder.linear(rows, np.ones((1, 1)), np.array([1e8])), np.array([1.0]))
    program = builder.finish(builder.constant("sub", rows, np.array([1e8])))
    assert program.steps[0].bias == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda b, x: b.linear(x, np.ones((4, 5))), "do not fit rows 6 wide"),
        (lambda b, x: b.linear(x, np.ones((4, 6)), np.ones(3)), "do not fit rows 6 wide"),
        (lambda b, x: b.convolution(x, np.ones((4, 6, 1, 1))), "not a 1x1 convolution"),
        (lambda b, x: b.batch_norm(x, None, None, np.zeros(6), np.full(6, -1.0), 1e-5), "not positive"),
        (lambda b, x: b.batch_norm(x, None, None, np.zeros(6), np.full(6, np.nan), 1e-5), "not positive"),
        (lambda b, x: b.batch_norm(x, None, None, np.zeros(5), np.ones(5), 1e-5), "over"),
        (lambda b, x: b.constant("mul", x, np.ones(5)), "constant of shape"),
        (lambda b, x: b.constant("mul", x, np.ones((3, 6))), "constant of shape"),
        (lambda b, x: b.constant("mul", x, np.ones((1, 1, 6))), "constant of shape"),
        (lambda b, x: b.constant("div", x, np.array(0.0)), "divided by zero"),
        (lambda b, x: b.constant("div", x, np.ones(6), reverse=True), "divided by rows"),
        (lambda b, x: b.add(x, b.linear(x, np.ones((4, 6)))), "adds rows of shape"),
        (lambda b, x: b.concat([x, b.reshape(x, (6, 1, 1))]), "concatenates"),
        (lambda b, x: b.reshape(x, (3, 2)), "made into"),
        (lambda b, x: b.norm_floor(b.norm(x), 0.1), "norm of at least"),
        (lambda b, x: b.divide(b.linear(x, np.ones((6, 6))), b.norm(x)), "norm of other rows"),
        (lambda b, x: b.finish(x), "an input, unchanged"),
        (lambda b, x: b.finish(b.linear(x, np.full((2, 6), 1e39))), "finite"),
        (lambda b, x: b.finish(b.linear(x, np.full((2, 6), np.nan))), "finite"),
        (lambda b, _: b.input("side", (MAX_WIDTH + 1,)), "wanted"),
        (lambda b, _: b.input("side", (4, 2, 2)), "wanted"),
        (lambda b, _: b.activate(b.input("side", (MAX_WIDTH,)), "relu"), "a layer of its own per feature"),
    ],
)
def test_what_no_program_can_hold_is_refused(layer, message):
    with pytest.raises(ArtifactError, match=message):
        layer(*start())


def test_memory_is_bounded_however_often_a_weight_is_named():
    builder, rows = start(1024)
    weight = np.broadcast_to(np.ones(1), (1024, 1024))
    builder._weights = (1 << 29) - (1 << 20)  # as after 511 layers like the next
    rows = builder.linear(rows, weight)
    with pytest.raises(ArtifactError, match="more than 536,870,912 weights"):
        builder.linear(rows, weight)
