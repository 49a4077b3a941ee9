"""From a model to a published bundle."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fct_infer.artifacts.bundle import write_bundle
from fct_infer.artifacts.files import digest_file
from fct_infer.artifacts.loading import load_program
from fct_infer.artifacts.manifest import MANIFEST_NAME, Kind, Manifest, Preprocessing, Source
from fct_infer.errors import MissingExtraError, UsageError
from fct_infer.reference import apply_float64
from fct_infer.transformation import Program

from .parity import Probe, random_batches
from .template import Exporter, SourceT
from .to_core import TransformationToCore
from .to_onnx import ImageModelToOnnx, TransformationToOnnx

if TYPE_CHECKING:
    from torch import nn

TRANSFORMATION_TARGETS = ("core", "onnx", "torchscript")
IMAGE_MODEL_TARGETS = ("onnx", "torchscript")
_BATCH_SIZES = (1, 2, 7, 1014)
_LIBRARIES = ("fct-infer", "numpy", "safetensors", "onnx", "onnxruntime", "torch")


@dataclass(frozen=True)
class ExportReport:
    """A published bundle.

    Attributes:
        bundle: where it is.
        manifest: what it holds, with the parity figures of each file.
        notes: what had to be assumed because the source did not tell, one sentence each.
    """

    bundle: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()

    @property
    def next_command(self) -> str | None:
        """What to type next; None where no command takes this kind of model."""
        if self.manifest.kind != "transformation":
            return None
        return f"fct-upgrade-gallery GALLERY --transformation {shlex.quote(str(self.bundle))} -o DEST"

    def to_json(self) -> dict[str, Any]:
        """Return the report as strict JSON."""
        return {
            "bundle": str(self.bundle),
            "manifest": self.manifest.to_json(),
            "notes": list(self.notes),
            "next_command": self.next_command,
        }


def export_transformation(
    source: Program | str | Path,
    bundle: str | Path,
    *,
    targets: Sequence[str] = ("core", "onnx"),
    model_version: str | None = None,
    input_widths: Sequence[int] | None = None,
    trust: bool = False,
    force: bool = False,
) -> ExportReport:
    """Export a transformation h(old, side) -> new as a bundle.

    Args:
        source: a program, or a file that :func:`fct_infer.artifacts.loading.load_program` reads.
        bundle: folder to write.
        targets: of ``core``, ``onnx``, ``torchscript``; each file is loaded back and compared with the source.
        model_version: name of this model; by default the first 12 digits of the source's digest.
        input_widths: of a TorchScript source whose weights do not tell them.
        trust: load a TorchScript source, which is code.
        force: replace a bundle that is there already, once the new one is complete.

    Raises:
        UsageError: a target is unknown.
        ArtifactError: the source is malformed.
        GateError: a file computes something else than the source; nothing is published.
        OutputError: ``bundle`` exists, or is being written by another process.
    """
    exporters = _choose(_transformation_exporters(targets), targets, TRANSFORMATION_TARGETS)
    if isinstance(source, Program):
        program, origin = source, Source("program", source.digest)
    else:
        program = load_program(source, trust=trust, input_widths=input_widths)
        origin = source_of(Path(source))
    inputs = {name: (dim,) for name, dim in program.dims.items()}
    batches = random_batches(inputs, _BATCH_SIZES)
    merged = {name: np.concatenate([batch[name] for batch in batches]) for name in inputs}
    probe = Probe(batches, apply_float64(program, merged["old"], merged.get("side")))
    draft = _Draft("transformation", inputs, program.new_dim, origin, model_version, program=program.structure())
    return _publish(program, bundle, exporters, probe, draft, force)
