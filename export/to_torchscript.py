"""Target ``torchscript``: one archive for the PyTorch world, traced, on the CPU, plain rows in and out."""

from __future__ import annotations

import io
import json

import torch
from torch import nn

from fct_infer.artifacts.foreign_code import foreign_code

from .models import Model
from .plain_module import Lowered
from .template import Converted, Exporter, Job, file_name
from .tracing import examples, trace, without_warnings

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class ToTorchScript(Exporter):
    """``model.pt``; float32 in and out whatever the precision inside."""

    target = "torchscript"
    precisions = ("fp32", "fp16", "bf16")

    def convert(self, model: Model, precision: str, job: Job) -> Converted:
        """Return the archive."""
        traced = trace(module_in(model, precision), *examples(model.interface))
        buffer = io.BytesIO()
        with foreign_code("PyTorch cannot write the archive"), without_warnings():
            torch.jit.save(traced, buffer, _extra_files={"metadata.json": json.dumps(dict(job.metadata))})
        return Converted(file_name("model", precision, ".pt"), buffer.getvalue())


def module_in(model: Model, precision: str) -> nn.Module:
    """Return ``model`` as a torch module in ``precision``, float32 in and out."""
    module = model.to_module()
    return Lowered(module, _DTYPES[precision]) if precision in _DTYPES else module
