"""Target ``torchscript``: one archive for the PyTorch world, traced, on the CPU, rows (n, d) in and out."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fct_infer.artifacts.torchscript import load_torchscript
from fct_infer.transformation import Add, Concat, Float32Array, Linear, Normalize, Program

from .image_model import ImageModel
from .parity import Batch
from .template import Exporter, Runner, SourceT
from .tracing import trace, without_warnings


class _ToTorchScript(Exporter[SourceT]):
    target = "torchscript"
    file_name = "model.pt"

    def open(self, source: SourceT, path: Path) -> Runner:
        """Run the file in PyTorch on the CPU."""
        module = load_torchscript(path)

        def run(batch: Batch) -> Float32Array:
            with torch.inference_mode():
                output: Float32Array = module(*(torch.from_numpy(array) for array in batch.values())).numpy()
                return output

        return run


class TransformationToTorchScript(_ToTorchScript[Program]):
    """A program as a traced module."""

    def convert(self, source: Program, metadata: Mapping[str, str]) -> bytes:
        """Return the archive."""
        example = [torch.zeros(2, dim) for dim in source.dims.values()]
        return _archive(trace(ProgramModule(source), *example), metadata)


class ImageModelToTorchScript(_ToTorchScript[ImageModel]):
    """A backbone, traced."""

    def convert(self, source: ImageModel, metadata: Mapping[str, str]) -> bytes:
        """Return the archive."""
        return _archive(trace(source, torch.zeros(2, *source.image_shape)), metadata)


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
                    values[step.output] = F.normalize(values[step.input], dim=1)
        return values[self.program.output]


_ACTIVATIONS = {"none": lambda values: values, "relu": F.relu, "gelu": F.gelu}


def _archive(traced: torch.jit.ScriptModule, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with without_warnings():
        torch.jit.save(traced, buffer, _extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()
