"""A program as a torch module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.transformation import Add, Concat, Linear, Normalize, Program

_ACTIVATIONS = {"none": lambda values: values, "relu": torch.relu_, "gelu": F.gelu}


class ProgramModule(nn.Module):
    """A transformation as a torch module: (n, d_old) and, where it takes it, (n, d_side) -> (n, d_new)."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.layers = nn.ModuleDict()
        for index, step in enumerate(program.steps):
            if isinstance(step, Linear):
                layer = nn.Linear(step.weight.shape[1], step.weight.shape[0])
                layer.weight = nn.Parameter(torch.from_numpy(step.weight.copy()))
                layer.bias = nn.Parameter(torch.from_numpy(step.bias.copy()))
                self.layers[str(index)] = layer

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """Run the steps one after the other."""
        values = {"old": old} if side is None else {"old": old, "side": side}
        for index, step in enumerate(self.program.steps):
            match step:
                case Linear():
                    values[step.output] = _ACTIVATIONS[step.activation](self.layers[str(index)](values[step.input]))
                case Concat():
                    values[step.output] = torch.cat([values[name] for name in step.inputs], dim=1)
                case Add():
                    values[step.output] = values[step.inputs[0]] + values[step.inputs[1]]
                case Normalize():
                    # In float32 whatever the precision: a sum of squares overflows float16.
                    rows = values[step.input]
                    values[step.output] = F.normalize(rows.float(), dim=1).to(rows.dtype)
        return values[self.program.output]
