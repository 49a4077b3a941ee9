"""What is exported, behind one interface whatever it came from: a program, a torch module or an ONNX file."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.foreign_code import foreign_code
from fct_infer.artifacts.manifest import Kind
from fct_infer.artifacts.onnx_file import parse_onnx
from fct_infer.artifacts.onnx_signature import read_signature
from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.backends.onnx_runtime import OnnxRuntimeRunner
from fct_infer.backends.runner import Batch, Interface, Runner, Shapes
from fct_infer.errors import UnsupportedError
from fct_infer.reference import apply_float64
from fct_infer.transformation import Program

if TYPE_CHECKING:
    from torch import nn


class Model(ABC):
    """A model to export.

    Attributes:
        kind: what it is.
        interface: its inputs, rows as (d,) and images as (c, h, w), and the width of its output.
        digest: SHA-256 over what it computes with.
        program: the transformation as data, which the core runs; None if no program can hold it.
        uncertainty: the layer that tells from a transformed row how unsure the transformation is of it, see
            :func:`fct_infer.artifacts.uncertainty.uncertainty_program`; None without.
    """

    kind: Kind
    interface: Interface
    digest: str
    program: Program | None = None
    uncertainty: Program | None = None

    @abstractmethod
    def run(self, batch: Batch) -> NDArray[np.floating[Any]]:
        """Return the model's own answer, (n, output_dim): what every exported file is compared with."""

    @abstractmethod
    def to_module(self) -> nn.Module:
        """Return it as a torch module on the CPU that takes and makes plain rows.

        Raises:
            UnsupportedError: there is no way from its form to PyTorch.
        """

    @abstractmethod
    def to_onnx(self) -> Any:
        """Return it as a self-contained float32 ``onnx.ModelProto`` with this project's names and a free batch axis.

        Raises:
            ArtifactError: it cannot be written as ONNX.
        """


class ProgramModel(Model):
    """A transformation as data, and the model it was read from, if any: that is what files are compared with."""

    kind = "transformation"

    def __init__(self, program: Program, original: Runner | None = None, uncertainty: Program | None = None) -> None:
        self.program: Program = program
        self.uncertainty = uncertainty
        self._original = original
        self.digest = program.digest
        self.interface = Interface({name: (dim,) for name, dim in program.dims.items()}, program.new_dim)

    def run(self, batch: Batch) -> NDArray[np.floating[Any]]:
        """The original's answer, or the program's in float64."""
        if self._original is not None:
            return self._original.run(batch)
        return apply_float64(self.program, batch["old"], batch.get("side"))

    def to_module(self) -> nn.Module:
        """The program as a module."""
        from .program_module import ProgramModule

        return ProgramModule(self.program).eval()

    def to_onnx(self) -> Any:
        """The program node by node."""
        from .graphs.program_graph import program_graph

        return program_graph(self.program)


class ModuleModel(Model):
    """A torch module: eager, TorchScript or from a torch.export archive.

    Args:
        kind: what it is.
        model: the module; it is copied.
        inputs: shapes of its inputs by name, as it takes them.

    Raises:
        ArtifactError: it does not run on such inputs, or makes no embeddings.
    """

    def __init__(self, kind: Kind, model: TorchModel, inputs: Shapes) -> None:
        from fct_infer.backends.torch_runtime import TorchRunner

        from .plain_module import float32_copy

        self.kind = kind
        self._module, self._inputs = float32_copy(model.module), dict(inputs)
        self._runner = TorchRunner(TorchModel(model.name, self._module, len(inputs)), inputs, device="cpu")
        self.interface = self._runner.interface
        self.digest = _digest(self._module)

    def run(self, batch: Batch) -> NDArray[np.floating[Any]]:
        """The module's answer on the CPU."""
        return self._runner.run(batch)

    def to_module(self) -> nn.Module:
        """The module, its inputs and output made plain rows."""
        from .plain_module import PlainModule

        return PlainModule(self._module, list(self._inputs.values()))

    def to_onnx(self) -> Any:
        """Through PyTorch's exporter."""
        from .graphs.module_graph import module_graph

        return module_graph(self.to_module(), self.interface)


class OnnxModel(Model):
    """An ONNX file that is no program.

    Raises:
        ArtifactError: it is malformed, or ONNX Runtime refuses it.
    """

    def __init__(
        self, kind: Kind, path: Path, old_first: Sequence[str] | None = None, *, self_contained: bool = False
    ) -> None:
        self.kind, self._path, self._old_first = kind, path, old_first
        self._runner = OnnxRuntimeRunner(path, device="cpu", old_first=old_first, self_contained=self_contained)
        self.interface = self._runner.interface
        self.digest = self._runner.sha256

    def run(self, batch: Batch) -> NDArray[np.floating[Any]]:
        """The file's answer in ONNX Runtime on the CPU."""
        return self._runner.run(batch)

    def to_module(self) -> nn.Module:
        """There is none."""
        raise UnsupportedError("an ONNX graph that is no transformation program cannot be made a PyTorch model")

    def to_onnx(self) -> Any:
        """The same graph with this project's names and plain rows."""
        from .graphs.foreign_graph import plain_graph

        model = parse_onnx(self._path)
        return plain_graph(model, read_signature(model, self._path, self._old_first), self.interface)


def _digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and numbers of all weights and buffers."""
    digest = hashlib.sha256()
    with foreign_code(f"{type(module).__name__}: its weights cannot be read"):
        for name, value in sorted(module.state_dict().items()):
            if not hasattr(value, "numpy"):  # what a module keeps beside its tensors (``get_extra_state``)
                digest.update(f"{name}{value!r}".encode())
                continue
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
