"""Target ``pt2``: a torch.export archive with a free batch axis, plain rows in and out."""

from __future__ import annotations

import io
import json

import torch

from fct_infer.artifacts.foreign_code import RAISED, foreign_code, said_by
from fct_infer.errors import UnsupportedError

from .models import Model
from .template import Converted, Exporter, Job, file_name
from .to_torchscript import module_in
from .tracing import examples, trace, without_warnings


class ToPt2(Exporter):
    """``model.pt2``."""

    target = "pt2"
    precisions = ("fp32", "fp16", "bf16")

    def convert(self, model: Model, precision: str, job: Job) -> Converted:
        """Return the archive."""
        buffer = io.BytesIO()
        with without_warnings():
            program = _exported(model, precision)
            with foreign_code("PyTorch cannot write the archive"):
                torch.export.save(program, buffer, extra_files={"metadata": json.dumps(dict(job.metadata))})
        return Converted(file_name("model", precision, ".pt2"), buffer.getvalue())


def _exported(model: Model, precision: str) -> torch.export.ExportedProgram:
    module, example = module_in(model, precision), examples(model.interface)
    try:
        if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
            from torch._export.converter import TS2EPConverter  # PyTorch's own advice for TorchScript

            return TS2EPConverter(trace(module, *example).eval(), example).convert()
        batch = torch.export.Dim("batch")
        dynamic = ({0: batch},) if len(example) == 1 else ({0: batch}, {0: batch})
        return torch.export.export(module, example, dynamic_shapes=dynamic)
    except RAISED as error:  # PyTorch's exporter raises whatever its compiler stumbles over
        raise UnsupportedError(f"PyTorch cannot export the model: {said_by(error)}") from error
