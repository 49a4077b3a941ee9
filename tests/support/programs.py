"""Random programs of every shape the project promises to run; He-scaled weights, so values keep their size."""

from __future__ import annotations

import numpy as np

from fct_infer.transformation import Activation, Add, Concat, Float32Array, Linear, Normalize, Program


def random_rows(rows: int, dim: int, seed: int = 0) -> Float32Array:
    """(rows, dim) float32, standard normal."""
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def linear(
    rng: np.random.Generator, source: str, output: str, d_in: int, d_out: int, activation: Activation = "none"
) -> Linear:
    weight = rng.standard_normal((d_out, d_in), dtype=np.float32) * np.float32(np.sqrt(2 / d_in))
    return Linear(source, output, weight, rng.standard_normal(d_out, dtype=np.float32) * np.float32(0.1), activation)


def paper_h(old_dim: int = 128, side_dim: int = 128, new_dim: int = 128, inner: int = 2048, seed: int = 0) -> Program:
    """The transformation of arXiv 2112.02805: two branches, concat, mixer; batch norm already folded."""
    rng = np.random.default_rng(seed)
    steps = [
        linear(rng, "old", "p1.0", old_dim, 2 * old_dim, "relu"),
        linear(rng, "p1.0", "p1.1", 2 * old_dim, 2 * new_dim, "relu"),
        linear(rng, "side", "p2.0", side_dim, 2 * side_dim, "relu"),
        linear(rng, "p2.0", "p2.1", 2 * side_dim, 2 * new_dim, "relu"),
        Concat(("p1.1", "p2.1"), "concat"),
        linear(rng, "concat", "mixer.0", 4 * new_dim, inner, "relu"),
        linear(rng, "mixer.0", "mixer.1", inner, inner, "relu"),
        linear(rng, "mixer.1", "mixer.2", inner, new_dim),
    ]
    return Program({"old": old_dim, "side": side_dim}, tuple(steps), "mixer.2")


def plain_mlp(
    old_dim: int = 128,
    side_dim: int = 128,
    new_dim: int = 128,
    hidden: tuple[int, ...] = (256, 256),
    seed: int = 0,
    activation: Activation = "relu",
) -> Program:
    """An MLP on the concatenation of both inputs."""
    rng = np.random.default_rng(seed)
    widths = (old_dim + side_dim, *hidden, new_dim)
    names = ("input", *(f"layer.{index}" for index in range(len(widths) - 1)))
    steps = [
        linear(rng, names[i], names[i + 1], widths[i], widths[i + 1], activation if i < len(hidden) else "none")
        for i in range(len(widths) - 1)
    ]
    return Program({"old": old_dim, "side": side_dim}, (Concat(("old", "side"), "input"), *steps), names[-1])


def linear_map(old_dim: int = 128, new_dim: int = 128, seed: int = 0, normalize: bool = False) -> Program:
    """One matrix on the old embedding, no side-information."""
    program = Program({"old": old_dim}, (linear(np.random.default_rng(seed), "old", "map", old_dim, new_dim),), "map")
    return program.with_normalization() if normalize else program


def residual_mlp(old_dim: int = 128, new_dim: int = 128, inner: int = 256, blocks: int = 2, seed: int = 0) -> Program:
    """Projection, then blocks x + W2 gelu(W1 x), then L2 normalisation; no side-information."""
    rng = np.random.default_rng(seed)
    steps: list[Linear | Add | Concat | Normalize] = [linear(rng, "old", "stem", old_dim, new_dim)]
    value = "stem"
    for index in range(blocks):
        up, down, total = f"block.{index}.up", f"block.{index}.down", f"block.{index}"
        steps.append(linear(rng, value, up, new_dim, inner, "gelu"))
        steps.append(linear(rng, up, down, inner, new_dim))
        steps.append(Add((value, down), total))
        value = total
    return Program({"old": old_dim}, (*steps, Normalize(value, "unit")), "unit")


def examples() -> dict[str, Program]:
    """One small program of each shape, at dims that are no power of two."""
    return {
        "paper_h": paper_h(96, 32, 160, inner=200),
        "plain_mlp": plain_mlp(96, 32, 160, hidden=(48, 80)),
        "gelu_mlp": plain_mlp(7, 3, 5, hidden=(11,), activation="gelu"),
        "linear_map": linear_map(96, 160),
        "normalized_map": linear_map(1, 3, normalize=True),
        "residual_mlp": residual_mlp(96, 40, inner=72),
    }
