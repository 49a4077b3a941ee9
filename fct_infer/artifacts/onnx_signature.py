"""What goes into an ONNX graph and what comes out, in this project's words, whatever its author called it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fct_infer.artifacts.manifest import is_image
from fct_infer.artifacts.roles import roles, told
from fct_infer.errors import ArtifactError
from fct_infer.transformation import INPUTS

FLOAT = 1  # onnx.TensorProto.FLOAT
MAX_ROW = 1 << 24  # numbers of one row or image: an image of 3x2048x2048 has fewer


@dataclass(frozen=True)
class OnnxInput:
    """An input as the graph has it: its own name, and its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]


def read_signature(model: Any, path: Path, old_first: Sequence[str] | None = None) -> dict[str, OnnxInput]:
    """Return the inputs of an ``onnx.ModelProto`` by this project's names: ``image``, or ``old`` and maybe ``side``.

    Args:
        model: the graph.
        path: for messages.
        old_first: its own names in the order old, side, where they do not tell; see :func:`roles.roles`.

    Raises:
        ArtifactError: it has another number of inputs or outputs, an input that is not float32 with a free batch axis
            and fixed other axes, weights outside the file, control flow or functions.
    """
    graph = model.graph
    check_harmless(model, path)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_input(value, path) for value in graph.input if value.name not in weights]
    if not 1 <= len(inputs) <= len(INPUTS) or len(graph.output) != 1:
        raise ArtifactError(
            f"{path}: has {len(inputs)} inputs and {len(graph.output)} outputs, wanted an image, or old and "
            "maybe side, and one output"
        )
    if any(is_image(each.shape) for each in inputs):
        if len(inputs) == 1:
            return {"image": inputs[0]}
        raise ArtifactError(f"{path}: takes images and another input; no model of this project does")
    try:
        found = roles([each.name for each in inputs], [math.prod(each.shape) for each in inputs], old_first)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return dict(zip(found, inputs, strict=True))


def assignment_of_graph(graph: Any) -> str:
    """Say which input of an ``onnx.GraphProto``, which has been read, is taken for which."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    widths = [math.prod(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:]) for value in inputs]
    names = [value.name for value in inputs]
    return told(names, roles(names, widths))


def check_harmless(model: Any, path: Path) -> None:
    """Refuse what no embedding model needs and an attacker does: weights in other files, control flow, functions.

    A loop may never end, a branch not taken when the model was tried may do anything later, and forty functions that
    each call the one before twice are 10^12 nodes once they are inlined.

    Raises:
        ArtifactError: the model, at any depth, has a tensor in another file, a subgraph or a function.
    """
    if model.functions:
        raise ArtifactError(
            f"{path}: defines functions of its own; inline them first: onnx.inliner.inline_local_functions(model)"
        )
    for message in _messages(model):
        match message.DESCRIPTOR.name:
            case "TensorProto" if message.external_data or message.data_location:
                raise ArtifactError(
                    f"{path}: weight {message.name!r} lies in another file; wanted one self-contained file"
                )
            case "AttributeProto" if message.HasField("g") or message.graphs:
                raise ArtifactError(
                    f"{path}: has control flow (attribute {message.name!r} is a graph); export it without, for "
                    "instance traced rather than scripted"
                )


def _messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all below it; of tensors only the outside, their numbers would be copied."""
    yield message
    if message.DESCRIPTOR.name == "TensorProto":
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _messages(inner)


def _input(value: Any, path: Path) -> OnnxInput:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    if tensor.elem_type != FLOAT or len(dims) not in (2, 4):
        raise ArtifactError(f"{path}: input {value.name!r} is not float32 with 2 or 4 axes")
    if dims[0].HasField("dim_value"):
        raise ArtifactError(
            f"{path}: input {value.name!r} takes only batches of exactly {dims[0].dim_value}; export it with a dynamic "
            f"batch axis: dynamic_axes={{{value.name!r}: {{0: 'batch'}}}}"
        )
    shape = tuple(int(dim.dim_value) for dim in dims[1:])
    if min(shape) < 1:
        raise ArtifactError(f"{path}: input {value.name!r} has free axes beside the batch; export it with fixed ones")
    if math.prod(shape) > MAX_ROW:
        raise ArtifactError(
            f"{path}: input {value.name!r} takes {math.prod(shape):,} numbers a row, at most {MAX_ROW:,}"
        )
    return OnnxInput(value.name, shape)
