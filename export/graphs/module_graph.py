"""A torch module as an ONNX graph, through PyTorch's exporter."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn

from fct_infer.artifacts.foreign_code import RAISED, foreign_code, said_by
from fct_infer.backends.runner import Interface
from fct_infer.errors import ArtifactError

from ..tracing import examples, trace, without_fast_path, without_warnings
from .onnx_model import OPSET, OUTPUT, finish, import_onnx


def module_graph(module: nn.Module, interface: Interface) -> Any:
    """Return ``module``, which takes and makes plain rows, as ``onnx.ModelProto``.

    The TorchScript-based exporter is used because the newer one refuses TorchScript modules, which is what most users
    have.

    Raises:
        ArtifactError: the exporter refuses it.
    """
    example = examples(interface)
    # Traced, because the exporter cannot trace a module that has TorchScript inside; and copied, because it runs such
    # a module's batch norm in training mode, which changes its statistics.
    with foreign_code("the model cannot be copied"), without_warnings():
        copied = copy.deepcopy(module)
    forms: list[nn.Module] = [trace(copied, *example)]
    if not any(isinstance(part, torch.jit.ScriptModule) for part in copied.modules()):
        forms.append(copied)  # its own trace tells the exporter more: of attention it needs that
    for form in forms:
        try:
            data = _written(form, example, [*interface.inputs, OUTPUT])
        except RAISED as error:
            if form is forms[-1]:
                raise ArtifactError(f"PyTorch cannot write the model as ONNX: {said_by(error)}") from error
        else:
            break
    return finish(import_onnx().load_model_from_string(data).graph, interface)


def _written(form: nn.Module, example: tuple[Tensor, ...], names: list[str]) -> bytes:
    buffer: Any = io.BytesIO()  # PyTorch accepts one, its annotation does not say so
    with without_warnings(), without_fast_path():
        torch.onnx.export(
            form,
            example,
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=names[:-1],
            output_names=names[-1:],
            dynamic_axes={name: {0: "batch"} for name in names},
        )
    return bytes(buffer.getvalue())
