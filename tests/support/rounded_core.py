"""A CPU with native bf16 on any CPU, and a program that needs more bits than that."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer import _core
from fct_infer.transformation import Linear, Program


class RoundedCore(_core.Executable):
    """A CPU with native bf16, as far as precision goes: weights and inputs are rounded, the rest is fp32."""

    def __init__(self, program, precision, ranges=None, **_):
        if precision == "int8":
            super().__init__(program, precision, ranges=ranges)
            return
        rounded = program
        if precision == "bf16":
            steps = [
                Linear(step.input, step.output, bfloat16(step.weight), step.bias, step.activation)
                if isinstance(step, Linear)
                else step
                for step in program.steps
            ]
            rounded = Program(program.dims, tuple(steps), program.output)
        super().__init__(rounded, "fp32")


def bfloat16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def install(patch: pytest.MonkeyPatch) -> None:
    """Put it in the place of this machine's."""
    patch.setattr(_core, "precisions", lambda device="cpu": ["fp32", "bf16"])
    patch.setattr(_core, "Executable", RoundedCore)


def cancelling(width: int = 64) -> Program:
    """What is left of two large, nearly equal values: in bfloat16 nothing that could be relied on."""
    rng = np.random.default_rng(5)
    near = rng.standard_normal((width, width)).astype(np.float32)
    weight = np.concatenate([near, -near + 1e-3 * rng.standard_normal((width, width)).astype(np.float32)], axis=1)
    return Program({"old": 2 * width}, (Linear("old", "y", weight, np.zeros(width, np.float32)),), "y")
