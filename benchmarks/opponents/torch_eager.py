"""PyTorch, layer by layer: what the training code's own module does on CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.opponents import Apply
from fct_infer.transformation import Add, Concat, Float32Array, Linear, Normalize, Program

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ProgramModule(nn.Module):
    """A program as a PyTorch module: float32 in and out, everything between in ``dtype``."""

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        super().__init__()
        self.program = program
        self.dtype = dtype
        self.weights = nn.ParameterList(
            nn.Parameter(torch.tensor(tensor, dtype=dtype), requires_grad=False)
            for step in program.steps
            if isinstance(step, Linear)
            for tensor in (step.weight, step.bias)
        )

    def forward(self, old: Tensor, side: Tensor) -> Tensor:
        values = {"old": old.to(self.dtype), "side": side.to(self.dtype)}
        weights = iter(self.weights)
        for step in self.program.steps:
            match step:
                case Linear():
                    value = F.linear(values[step.input], next(weights), next(weights))
                    if step.activation == "relu":
                        value = value.relu_()
                    elif step.activation == "gelu":
                        value = F.gelu(value)
                case Concat():
                    value = torch.cat([values[name] for name in step.inputs], dim=1)
                case Add():
                    value = values[step.inputs[0]] + values[step.inputs[1]]
                case Normalize():
                    value = F.normalize(values[step.input], eps=1e-12)
            values[step.output] = value
        return values[self.program.output].float()


def load(program: Program, precision: str, threads: int, rows: int | None) -> Apply:
    torch.set_num_threads(threads)
    module = ProgramModule(program, DTYPES[precision]).eval()

    @torch.inference_mode()
    def apply(old: Float32Array, side: Float32Array, out: Float32Array) -> Float32Array:
        result: Float32Array = module(torch.from_numpy(old), torch.from_numpy(side)).numpy()
        return result

    return apply
