"""Target ``core``: weights for the C++ engine; the program itself stands in the manifest."""

from __future__ import annotations

from pathlib import Path

from fct_infer.artifacts.manifest import BundleFile
from fct_infer.artifacts.tensors import read_tensors, tensor_bytes
from fct_infer.backends.runner import Batch, Runner
from fct_infer.errors import UnsupportedError
from fct_infer.transformation import Float32Array, Program, Transformation

from .models import Model
from .template import Converted, Exporter, Job


class ToCore(Exporter):
    """``transformation.safetensors``: weights and biases as float32. The core chooses its precision when it loads."""

    target = "core"
    precisions = ("fp32",)

    def convert(self, model: Model, precision: str, job: Job) -> Converted:
        """Return the safetensors file."""
        if model.program is None:
            raise UnsupportedError("the core runs transformation programs only")
        return Converted("transformation.safetensors", tensor_bytes(model.program, dict(job.metadata)))

    def open(self, model: Model, path: Path, file: BundleFile, job: Job) -> Runner:
        """Run what was written in the compiled core, in float32."""
        assert model.program is not None
        return _CoreRunner(model, Program.from_structure(model.program.structure(), read_tensors(path)))


class _CoreRunner(Runner):
    def __init__(self, model: Model, program: Program) -> None:
        from fct_infer import __version__

        self._transformation = Transformation(program, "fp32")
        self.backend, self.device, self.interface = "core", "cpu", model.interface
        self.runtime = f"core {__version__} cpu"

    def run(self, batch: Batch) -> Float32Array:
        return self._transformation(batch["old"], batch.get("side"))
