"""Any :class:`~fct_infer.transformation.Program` as a torch module: how fitted maps and chains are kept and loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.training.models.base import TransformationModule, check_layers
from fct_infer.transformation import Add, Concat, Float32Array, Linear, Normalize, Program

_ACTIVATIONS = {"none": lambda values: values, "relu": F.relu, "gelu": F.gelu}


class ProgramTransformation(TransformationModule):
    """A program's steps, whose weights can be saved, loaded and trained further.

    Args:
        structure: what :meth:`Program.structure` returns.
        widths: of every linear step's output, by its name.

    Raises:
        ValueError: the structure is malformed (an ArtifactError), or a width is missing.
    """

    def __init__(self, structure: dict[str, Any], widths: dict[str, int]) -> None:
        try:
            check_layers(len(structure["steps"]))
            program = Program.from_structure(structure, _zeros(structure, widths))
        except (KeyError, AttributeError, MemoryError) as error:
            raise ValueError(f"malformed program: {type(error).__name__} {error}") from error
        super().__init__(program.dims["old"], program.dims.get("side", 0), program.new_dim)
        self._structure = structure
        self._steps, self._output = program.steps, program.output
        self.layers = nn.ModuleList(
            nn.Linear(step.weight.shape[1], step.weight.shape[0]) for step in self._steps if isinstance(step, Linear)
        )

    @classmethod
    def of(cls, program: Program) -> ProgramTransformation:
        """Return ``program`` as a module in eval mode."""
        module = cls(**program_arguments(program))
        for layer, step in zip(module.layers, _linear_steps(program), strict=True):
            layer.weight.data, layer.bias.data = (
                torch.from_numpy(step.weight.copy()),
                torch.from_numpy(step.bias.copy()),
            )
        return module.eval()

    def program(self) -> Program:
        """Return the program with the weights as they are now."""
        tensors: dict[str, Float32Array] = {}
        names = (step.output for step in self._steps if isinstance(step, Linear))
        for name, layer in zip(names, self.layers, strict=True):
            for kind, tensor in layer.named_parameters():
                tensors[f"{name}.{kind}"] = np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32)
        return Program.from_structure(self._structure, tensors)

    def forward(self, old: Tensor, side: Tensor | None = None) -> Tensor:
        """(n, old_dim) and (n, side_dim) float32 -> (n, new_dim) float32; without ``side``, ``old`` takes its place."""
        values = {"old": old, "side": old if side is None else side}
        layers = iter(self.layers)
        for step in self._steps:
            match step:
                case Linear():
                    values[step.output] = _ACTIVATIONS[step.activation](next(layers)(values[step.input]))
                case Concat():
                    values[step.output] = torch.cat([values[name] for name in step.inputs], dim=1)
                case Add():
                    values[step.output] = values[step.inputs[0]] + values[step.inputs[1]]
                case Normalize():
                    values[step.output] = F.normalize(values[step.input], dim=1)
        return values[self._output]


def program_arguments(program: Program) -> dict[str, Any]:
    """Return the arguments that build a :class:`ProgramTransformation` of this shape; strict JSON."""
    widths = {step.output: step.weight.shape[0] for step in _linear_steps(program)}
    return {"structure": program.structure(), "widths": widths}


def _linear_steps(program: Program) -> list[Linear]:
    return [step for step in program.steps if isinstance(step, Linear)]


def _zeros(structure: dict[str, Any], widths: dict[str, int]) -> dict[str, Float32Array]:
    """Return weights of the right shapes, so that the program checks itself."""
    known = dict(structure["inputs"])
    tensors: dict[str, Float32Array] = {}
    for step in structure["steps"]:
        inputs = [known[name] for name in step.get("inputs", [step.get("input")])]
        if step["op"] == "linear":
            width = known[step["output"]] = widths[step["output"]]
            tensors[step["output"] + ".weight"] = np.zeros((width, inputs[0]), np.float32)
            tensors[step["output"] + ".bias"] = np.zeros(width, np.float32)
        else:
            known[step["output"]] = sum(inputs) if step["op"] == "concat" else inputs[0]
    return tensors
