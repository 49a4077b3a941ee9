"""What a transformation h(old, side_information) -> new is, as data.

A :class:`Program` is a short list of steps over named values. The two inputs are called ``old`` and
``side``; every other value is produced by exactly one step. The paper's h (arXiv 2112.02805),
a plain MLP on the concatenation, a linear map and a residual MLP are all such programs.
"""

from __future__ import annotations

import hashlib
import json
import operator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError

Float32Array: TypeAlias = NDArray[np.float32]
Activation: TypeAlias = Literal["none", "relu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "gelu")
INPUTS = ("old", "side")
MAX_WIDTH = 1 << 20  # of all values together: far beyond any model, so that a malformed one cannot exhaust the memory


@dataclass(frozen=True)
class Linear:
    """``output = activation(input @ weight.T + bias)``; batch norm is folded into it beforehand, in float64.

    ``weight`` is (d_out, d_in) float32, C-contiguous, as PyTorch stores it; ``bias`` is (d_out,) float32.
    GELU is the exact one (erf).
    """

    input: str
    output: str
    weight: Float32Array = field(repr=False)
    bias: Float32Array = field(repr=False)
    activation: Activation = "none"


@dataclass(frozen=True)
class Concat:
    """Values side by side along the feature axis, in the order given."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Add:
    """Sum of two values of one width: the residual connection."""

    inputs: tuple[str, str]
    output: str


@dataclass(frozen=True)
class Normalize:
    """Rows divided by their L2 norm (at least 1e-12)."""

    input: str
    output: str


Step: TypeAlias = Linear | Concat | Add | Normalize


@dataclass(frozen=True)
class Program:
    """A transformation as data.

    Attributes:
        dims: width of each input that the steps use: ``{"old": d_old}`` or ``{"old": d_old, "side": d_side}``.
        steps: executed in order; each step may read the inputs and the outputs of earlier steps.
        output: name of the value that is the new embedding, (n, d_new).

    Raises:
        ArtifactError: a step reads an unknown value, widths do not fit, a name is written twice,
            a weight is not float32, C-contiguous and finite, the output is never produced, or all values
            together are wider than :data:`MAX_WIDTH`.
    """

    dims: dict[str, int]
    steps: tuple[Step, ...]
    output: str

    def __post_init__(self) -> None:
        _ = self.widths

    @property
    def widths(self) -> dict[str, int]:
        """Width of every value, inputs included; checks the whole program on the way."""
        widths = dict(self.dims)
        if "old" not in widths or not set(widths) <= set(INPUTS) or any(width < 1 for width in widths.values()):
            raise ArtifactError(f"a program has inputs 'old' and at most 'side', each at least 1 wide; got {widths}")
        total = sum(widths.values())
        for index, step in enumerate(self.steps):
            where = f"step {index} ({type(step).__name__.lower()} -> {step.output!r})"
            names = (step.input,) if isinstance(step, Linear | Normalize) else step.inputs
            for name in names:
                if name not in widths:
                    raise ArtifactError(f"{where} reads {name!r}, which nothing before it produces")
            if step.output in widths:
                raise ArtifactError(f"{where} writes {step.output!r} a second time")
            widths[step.output] = _output_width(step, [widths[name] for name in names], where)
            total += widths[step.output]
            if total > MAX_WIDTH:
                raise ArtifactError(f"{where}: all values so far are {total} wide, supported are {MAX_WIDTH}")
        if self.output not in widths or self.output in INPUTS:
            raise ArtifactError(f"no step produces the output {self.output!r}")
        return widths

    @property
    def new_dim(self) -> int:
        """Width of the new embedding."""
        return self.widths[self.output]

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations of the linear layers for one row (2 per multiply-add)."""
        return sum(2 * step.weight.size for step in self.steps if isinstance(step, Linear))

    @property
    def linear_inputs(self) -> tuple[str, ...]:
        """Values that linear layers read: those that reduced precisions round."""
        return tuple(dict.fromkeys(step.input for step in self.steps if isinstance(step, Linear)))

    def with_normalization(self) -> Program:
        """Return the program with its output L2-normalised (itself if it ends so already)."""
        last = next(step for step in reversed(self.steps) if step.output == self.output)
        if isinstance(last, Normalize):
            return self
        name = self.output + ".normalized"
        return Program(self.dims, (*self.steps, Normalize(self.output, name)), name)

    def structure(self) -> dict[str, Any]:
        """Return the program without its numbers, as strict JSON; tensors are named ``<output>.weight|bias``."""
        steps: list[dict[str, Any]] = []
        for step in self.steps:
            entry: dict[str, Any]
            match step:
                case Linear():
                    entry = {"op": "linear", "input": step.input, "output": step.output, "activation": step.activation}
                case Normalize():
                    entry = {"op": "normalize", "input": step.input, "output": step.output}
                case Concat() | Add():
                    entry = {"op": type(step).__name__.lower(), "inputs": list(step.inputs), "output": step.output}
            steps.append(entry)
        return {"inputs": dict(self.dims), "steps": steps, "output": self.output}

    def tensors(self) -> dict[str, Float32Array]:
        """Return the weights and biases under the names :meth:`structure` refers to."""
        tensors: dict[str, Float32Array] = {}
        for step in self.steps:
            if isinstance(step, Linear):
                tensors[step.output + ".weight"] = step.weight
                tensors[step.output + ".bias"] = step.bias
        return tensors

    @classmethod
    def from_structure(cls, structure: Any, tensors: dict[str, Float32Array]) -> Program:
        """Inverse of :meth:`structure` and :meth:`tensors`; anything malformed is an ArtifactError."""
        try:
            steps = tuple(_parse_step(entry, tensors) for entry in structure["steps"])
            dims = {str(name): operator.index(dim) for name, dim in structure["inputs"].items()}
            return cls(dims, steps, str(structure["output"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"malformed program: {type(error).__name__} {error}") from error

    @property
    def digest(self) -> str:
        """SHA-256 over structure and weights: equal digests give equal results."""
        digest = hashlib.sha256(json.dumps(self.structure(), sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}{tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor, "<f4").data)
        return digest.hexdigest()


def _output_width(step: Step, widths: list[int], where: str) -> int:
    match step:
        case Linear():
            for name, tensor in (("weight", step.weight), ("bias", step.bias)):
                if tensor.dtype != np.float32 or not tensor.flags.c_contiguous or not np.isfinite(tensor).all():
                    raise ArtifactError(f"{where}: {name} must be float32, C-contiguous and finite")
            if step.weight.ndim != 2 or step.weight.shape[1] != widths[0] or min(step.weight.shape) < 1:
                raise ArtifactError(f"{where}: weight is {step.weight.shape}, wanted (d_out, {widths[0]})")
            if step.bias.shape != step.weight.shape[:1]:
                raise ArtifactError(f"{where}: bias is {step.bias.shape}, wanted {step.weight.shape[:1]}")
            if step.activation not in ACTIVATIONS:
                raise ArtifactError(f"{where}: unknown activation {step.activation!r}")
            return int(step.weight.shape[0])
        case Concat():
            if not widths:
                raise ArtifactError(f"{where}: nothing to concatenate")
            return sum(widths)
        case Add():
            if len(widths) != 2 or widths[0] != widths[1]:
                raise ArtifactError(f"{where}: adds values {widths} wide, wanted two of one width")
            return widths[0]
        case Normalize():
            return widths[0]


def _parse_step(entry: Any, tensors: dict[str, Float32Array]) -> Step:
    output = str(entry["output"])
    match entry["op"]:
        case "linear":
            weight, bias = tensors[output + ".weight"], tensors[output + ".bias"]
            return Linear(str(entry["input"]), output, weight, bias, entry["activation"])
        case "concat":
            return Concat(tuple(str(name) for name in entry["inputs"]), output)
        case "add":
            first, second = (str(name) for name in entry["inputs"])
            return Add((first, second), output)
        case "normalize":
            return Normalize(str(entry["input"]), output)
        case other:
            raise ArtifactError(f"unknown step {other!r}")
