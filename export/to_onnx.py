"""Target ``onnx``: one self-contained graph with a free ``batch`` axis, inputs by name, output ``embedding``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fct_infer.artifacts.manifest import BundleFile
from fct_infer.backends.runner import Runner
from fct_infer.errors import UnsupportedError

from .graphs.low_precision import lower
from .graphs.onnx_model import serialize
from .graphs.quantization import quantize
from .models import Model
from .template import Converted, Exporter, Job, file_name


class ToOnnx(Exporter):
    """``model.onnx``; the precision stands in the graph, as casts or Q/DQ pairs."""

    target = "onnx"
    precisions = ("fp32", "fp16", "bf16", "int8", "fp8")

    def convert(self, model: Model, precision: str, job: Job) -> Converted:
        """Return the ONNX file."""
        return Converted(
            file_name("model", precision, ".onnx"), serialize(graph_in(model, precision, job), job.metadata)
        )

    def open(self, model: Model, path: Path, file: BundleFile, job: Job) -> Runner:
        """Run the file in ONNX Runtime; where that has no bf16, emulate it."""
        try:
            return super().open(model, path, file, job)
        except UnsupportedError:
            if file.precision != "bf16":
                raise
        from .graphs.bf16_emulation import EmulatedBf16Runner

        return EmulatedBf16Runner(path, model.interface)


def graph_in(model: Model, precision: str, job: Job) -> Any:
    """Return ``model`` as ``onnx.ModelProto`` in ``precision``, float32 in and out."""
    graph = model.to_onnx()
    if precision in ("fp16", "bf16"):
        return lower(graph, precision)
    if precision in ("int8", "fp8"):
        assert job.calibration is not None
        return quantize(graph, precision, job.calibration)
    return graph
