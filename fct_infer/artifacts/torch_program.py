"""Reads a torch module as a program, by watching which operations it runs on a few rows.

So it does not matter whether the module was scripted, traced, exported or is plain Python, nor what its layers are
called.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution
from torch.utils._python_dispatch import TorchDispatchMode

from fct_infer.artifacts.foreign_code import foreign_code
from fct_infer.artifacts.input_order import refuse_untold
from fct_infer.artifacts.program_builder import Elementwise, Float64Array, Norm, ProgramBuilder, Rows
from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.errors import ArtifactError, NotAProgramError, UsageError
from fct_infer.reference import apply_float64
from fct_infer.transformation import INPUTS, Linear, Program

Shapes: TypeAlias = tuple[tuple[int, ...], ...]

MAX_RELATIVE_ERROR = 1e-4  # float32 against float64, of the largest output; a misread layer is off by far more
_WATCHED_ROWS, _CHECKED_ROWS = 3, 7
_RANKS = (4, 2)  # (n, d, 1, 1) as in the public code, or (n, d)
_GIVE_WIDTHS = "give the widths, old then side: fct-export --input-shape 128 --input-shape 64 (input_widths=(128, 64))"


def program_from_torch(model: TorchModel, widths: Sequence[int] | None = None) -> Program:
    """Return what ``model`` computes on rows (n, d) or (n, d, 1, 1), as data; batch norm is folded in float64.

    Args:
        model: with one input (old) or two (old, side).
        widths: of the inputs; found from the weights where each input meets a layer of its own.

    Raises:
        NotAProgramError: it runs operations that no program has; names them all.
        ArtifactError: it computes something else on other rows, or takes other inputs, or two that nothing tells apart.
        UsageError: the widths cannot be told from the file.
    """
    refusal = None
    for shapes in accepted_shapes(model, widths):
        try:
            program = _watch(model.module, shapes)
            _check_equal(model.module, shapes, program)
        except ArtifactError as error:  # a layer may accept two ranks, and only one of them makes rows of rows
            refusal = refusal or error
            continue
        are_told = widths is not None or model.shapes is not None
        if not are_told and not {step.input for step in program.steps if isinstance(step, Linear)} >= {*program.dims}:
            raise UsageError(f"{model.name}: its inputs meet before its first layer; {_GIVE_WIDTHS}")
        refuse_untold(model, shapes)
        return program
    if isinstance(refusal, NotAProgramError):
        raise NotAProgramError(refusal.operations, model.name) from refusal
    if refusal is not None:
        raise ArtifactError(f"{model.name}: {refusal}") from refusal
    raise UsageError(f"{model.name}: its weights do not tell how wide its inputs are; {_GIVE_WIDTHS}")


def accepted_shapes(model: TorchModel, widths: Sequence[int] | None = None) -> Iterator[Shapes]:
    """Yield shapes of the inputs, without the batch axis, that ``model`` runs on: rows (d,) or (d, 1, 1).

    First come those of which it makes rows: a mean of (d,) taken off (n, d, 1, 1) is (n, d, 1, d).

    Raises:
        ArtifactError: it does not take one or two inputs, or does not run on those whose widths are given.
    """
    count = model.input_count
    if widths is not None and count < len(widths) <= count + len(model.optional_inputs):
        count = len(widths)
    if not 1 <= count <= len(INPUTS) or (widths is not None and len(widths) != count):
        raise ArtifactError(f"{model.name}: takes {count} inputs, wanted {'1 or 2' if widths is None else len(widths)}")
    refusal, others = None, list[Shapes]()
    is_accepted = False
    for shapes in _candidates(model, widths):
        try:
            made = _run(model.module, _random_inputs(shapes, _WATCHED_ROWS, seed=0))
        except ArtifactError as error:
            refusal = error  # of plain rows, which are tried last
            continue
        is_accepted = True
        if isinstance(made, Tensor) and made.shape[2:] in ((), (1, 1)):
            yield shapes
        else:
            others.append(shapes)
    yield from others
    if refusal and not is_accepted and (widths is not None or model.shapes is not None):  # nothing was guessed
        raise ArtifactError(f"{model.name}: {refusal}") from refusal


def _candidates(model: TorchModel, widths: Sequence[int] | None) -> Iterator[Shapes]:
    if model.shapes is not None:
        told = tuple(shape[0] if shape else 0 for shape in model.shapes)
        if widths is not None and told != tuple(widths):
            raise ArtifactError(f"{model.name}: takes inputs {told} wide, not {tuple(widths)}")
        yield model.shapes
        return
    # Input widths of all weights, in the order of the file: among them are those of the inputs.
    with foreign_code(f"{model.name}: does not tell its parameters"):
        weights = dict.fromkeys(weight.shape[1] for weight in model.module.parameters() if weight.ndim >= 2)
    for chosen in itertools.product(weights, repeat=model.input_count) if widths is None else [tuple(widths)]:
        for rank in _RANKS:
            yield tuple((width, 1, 1)[: rank - 1] for width in chosen)


def _random_inputs(shapes: Shapes, rows: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, *shape, generator=generator) for shape in shapes]


def _run(module: nn.Module, inputs: list[Tensor]) -> Any:
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in inputs)
    # Under inference mode composite operations would not be taken apart; optimizing costs more than it saves here.
    with foreign_code(f"does not run on inputs of shape {shapes}"), torch.no_grad(), optimized_execution(False):
        return module(*inputs)


def _watch(module: nn.Module, shapes: Shapes) -> Program:
    builder = ProgramBuilder()
    recorder = _Recorder(builder)
    inputs = _random_inputs(shapes, _WATCHED_ROWS, seed=1)
    for name, tensor in zip(INPUTS, inputs, strict=False):
        recorder.values[id(tensor)] = builder.input(name, tensor.shape[1:])
    with recorder:
        output = _run(module, inputs)
    if recorder.refused:
        raise NotAProgramError(recorder.refused)
    rows = recorder.values.get(id(output))
    if not isinstance(rows, Rows):
        raise ArtifactError("its output is not one tensor made from its inputs")
    return builder.finish(rows)


def _check_equal(module: nn.Module, shapes: Shapes, program: Program) -> None:
    """Run both on other and more rows: what was watched must not have depended on the rows watched."""
    inputs = _random_inputs(shapes, _CHECKED_ROWS, seed=2)
    wanted = _run(module, inputs).flatten(1).double().numpy()
    found = apply_float64(program, *(tensor.flatten(1).numpy() for tensor in inputs))
    if wanted.shape != found.shape or not np.abs(found - wanted).max() <= MAX_RELATIVE_ERROR * np.abs(wanted).max():
        raise ArtifactError("what it computes depends on more than its layers; no transformation program can hold that")


class Unknown:
    """What a refused operation made."""


class _Recorder(TorchDispatchMode):
    """Runs every operation and tells the builder which layer it was.

    Attributes:
        values: what the builder made of a tensor, by the tensor's ``id``.
        refused: operations that no program has; raising inside TorchScript would lose the error's type. What
            depends on one of them is not looked at.
    """

    def __init__(self, builder: ProgramBuilder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: dict[int, Rows | Norm | Unknown] = {}
        self.refused: list[str] = []
        self._builder = builder
        self._alive: list[Any] = []  # an id is unique only while its tensor lives

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; PyTorch's default would import its compiler at the first operation: 2 seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        operands = [self._lookup(argument) for argument in args]
        result = func(*args, **keywords)
        self._alive.append((args, keywords, result))
        inputs = [*operands, *map(self._lookup, keywords.values())]
        if _mentions(inputs, Unknown):
            self._mark(result, Unknown())
        elif result is not None and _mentions(inputs, Rows | Norm):  # torch.export's assertions return nothing
            output = result[0] if isinstance(result, tuple) else result
            try:
                self._mark(output, _read_operation(self._builder, func, operands, keywords, output))
            except (ValueError, TypeError) as error:  # ArtifactErrors, and NumPy's at nonsense
                self.refused.append(f"operation {func}: {error}")
                self._mark(result, Unknown())
        return result

    def _mark(self, result: Any, value: Rows | Norm | Unknown) -> None:
        for tensor in result if isinstance(result, list | tuple) else [result]:
            self.values[id(tensor)] = value

    def _lookup(self, argument: Any) -> Any:
        """Put what the builder made in the place of tensors; a tensor it knows nothing of is a constant."""
        if isinstance(argument, list | tuple):
            return [self._lookup(item) for item in argument]
        return self.values.get(id(argument), argument)


def _mentions(operands: list[Any], kind: Any) -> bool:
    return any(
        _mentions(operand, kind) if isinstance(operand, list) else isinstance(operand, kind) for operand in operands
    )


def _array(constant: Any) -> Float64Array:
    if isinstance(constant, Tensor):
        return constant.detach().double().numpy()
    if isinstance(constant, int | float):
        return np.asarray(constant, np.float64)
    raise ArtifactError("wanted a constant operand")


def _optional(constant: Any) -> Float64Array | None:
    return None if constant is None else _array(constant)


def _read_operation(
    builder: ProgramBuilder, func: Any, operands: list[Any], keywords: dict[str, Any], output: Tensor
) -> Rows | Norm:
    name = func.overloadpacket.__name__.removesuffix("_")  # in place or not
    match name, operands:
        case (("convolution" | "_convolution"), [Rows() as rows, weight, bias, stride, padding, _, False, _, 1, *_]):
            if {*stride} != {1} or {*padding} != {0}:
                raise ArtifactError(f"convolution with stride {stride} and padding {padding}")
            return builder.convolution(rows, _array(weight), _optional(bias))
        case "addmm", [bias, Rows() as rows, weight] if not keywords:
            return builder.constant("add", builder.linear(rows, _array(weight).T), _array(bias))
        case "mm", [Rows() as rows, weight]:
            return builder.linear(rows, _array(weight).T)
        case "native_batch_norm", [Rows() as rows, scale, shift, mean, variance, False, _, epsilon]:
            return builder.batch_norm(rows, _optional(scale), _optional(shift), _array(mean), _array(variance), epsilon)
        case "relu", [Rows() as rows]:
            return builder.activate(rows, "relu")
        case "gelu", [Rows() as rows] if keywords.get("approximate", "none") == "none":
            return builder.activate(rows, "gelu")
        case "cat", [list() as parts, axis] if all(isinstance(part, Rows) for part in parts):
            if axis not in (1, 1 - output.ndim):
                raise ArtifactError(f"concatenates along axis {axis}, wanted the feature axis 1")
            return builder.concat(parts)
        case (("add" | "sub" | "mul" | "div"), [first, second]) if not keywords:
            return _read_elementwise(builder, name, first, second)
        case "neg", [Rows() as rows]:
            return builder.constant("mul", rows, _array(-1))
        case "rsub", [Rows() as rows, constant]:
            return builder.constant("sub", rows, _array(constant), reverse=True)
        case (("linalg_vector_norm" | "norm"), [Rows() as rows, 2, [axis], True]) if axis in (1, 1 - rows.rank):
            return builder.norm(rows)
        case "clamp_min", [Norm() as norm, int() | float() as floor]:
            return builder.norm_floor(norm, floor)
        case "expand", [Norm() as norm, _]:
            return norm
        case (("view" | "_unsafe_view" | "squeeze" | "unsqueeze" | "clone" | "alias" | "detach"), [Rows() as rows, *_]):
            return builder.reshape(rows, output.shape[1:])
    raise ArtifactError("no transformation program has this")


def _read_elementwise(builder: ProgramBuilder, operation: Elementwise, first: Any, second: Any) -> Rows:
    match first, second:
        case Rows(), Rows() if operation == "add":
            return builder.add(first, second)
        case Rows(), Norm() if operation == "div":
            return builder.divide(first, second)
        case Rows(), _:
            return builder.constant(operation, first, _array(second))
        case _, Rows():
            return builder.constant(operation, second, _array(first), reverse=True)
    raise ArtifactError("no transformation program has this")
