"""PyTorch, layer by layer: what the training code's own module does on CPU."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.opponents import Apply
from fct_infer.export.plain_module import Lowered
from fct_infer.export.program_module import ProgramModule
from fct_infer.transformation import Float32Array, Program

DTYPES = {"bf16": torch.bfloat16}


def program_module(program: Program, precision: str) -> nn.Module:
    """A program as a PyTorch module: float32 in and out, everything between in ``precision``."""
    module = ProgramModule(program).eval()
    return module if precision == "fp32" else Lowered(module, DTYPES[precision]).eval()


def load(program: Program, precision: str, threads: int, rows: int | None) -> Apply:
    torch.set_num_threads(threads)
    module = program_module(program, precision)

    @torch.inference_mode()
    def apply(old: Float32Array, side: Float32Array, out: Float32Array) -> Float32Array:
        result: Float32Array = module(torch.from_numpy(old), torch.from_numpy(side)).numpy()
        return result

    return apply
