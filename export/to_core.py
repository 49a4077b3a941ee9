"""Target ``core``: weights for the C++ engine; the program itself stands in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fct_infer.artifacts.tensors import read_tensors, tensor_bytes
from fct_infer.transformation import Program, Transformation

from .template import Exporter, Runner


class TransformationToCore(Exporter[Program]):
    """``transformation.safetensors``: weights and biases as float32."""

    target = "core"
    file_name = "transformation.safetensors"

    def convert(self, source: Program, metadata: Mapping[str, str]) -> bytes:
        """Return the safetensors file."""
        return tensor_bytes(source, dict(metadata))

    def open(self, source: Program, path: Path) -> Runner:
        """Run what was written in the compiled core, in float32."""
        transformation = Transformation(Program.from_structure(source.structure(), read_tensors(path)), "fp32")
        return lambda batch: transformation(batch["old"], batch.get("side"))
