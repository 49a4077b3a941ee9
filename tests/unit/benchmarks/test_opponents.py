from __future__ import annotations

import numpy as np
import pytest
from support.programs import paper_h, random_rows

from benchmarks import opponents
from fct_infer.reference import apply_float64

PROGRAM = paper_h(old_dim=12, side_dim=8, new_dim=10, inner=32)


@pytest.mark.parametrize("name", ["torch eager", "ONNX Runtime", "OpenVINO"])
@pytest.mark.parametrize("rows", [33, None])
def test_opponent_computes_the_program(name, rows):
    try:
        apply = opponents.load(name, PROGRAM, "fp32", 1, rows)
    except opponents.NotMeasuredError as reason:
        pytest.skip(str(reason))
    old, side = random_rows(33, 12, 1), random_rows(33, 8, 2)
    result = apply(old, side, np.empty((33, 10), np.float32))
    np.testing.assert_allclose(result, apply_float64(PROGRAM, old, side), rtol=1e-4, atol=1e-4)


def test_what_cannot_run_says_why():
    pytest.importorskip("onnxruntime")
    with pytest.raises(opponents.NotMeasuredError, match="bf16"):
        opponents.load("ONNX Runtime", PROGRAM, "bf16", 1, 33)
