"""How to export, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fct_infer.artifacts.manifest import Manifest
from fct_infer.backends.runner import Batch
from fct_infer.identity import NamedModel


@dataclass(frozen=True)
class Options:
    """How to export, the same for all models.

    Attributes:
        targets: of ``core``, ``onnx``, ``torchscript``, ``pt2``, ``tensorrt``, ``tensorrt-rtx``; empty is ``core,onnx``
            for a transformation (``onnx`` alone if no program can hold it) and ``onnx,torchscript`` for an image model.
        precisions: of the files, ``fp32`` by default; a target is written in those of them it has.
        calibration: a user's rows by input, (n, ...) float32: scales for int8 and fp8, and part of every proof.
        model_version: name of this model; by default the first 12 digits of the source's digest.
        old_model, new_model: of a transformation, whose vectors it takes and makes: a name, ``sha256:`` and a digest,
            or an embedder's ``model``; None is what the source says, if it does.
        engine_rows: of a call, (typical, most), for TensorRT's profile; by default 4,096 and 65,536 rows, or 32 and 256
            images.
        device: where files are tried: ``auto``, ``cpu``, ``cuda:N``.
        allow_unproven: publish files that cannot be run here (an engine without its device).
        force: replace a bundle that is there already, once the new one is complete.
        progress: told what is done next, in a few words.
    """

    targets: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    calibration: Batch | None = None
    model_version: str | None = None
    old_model: NamedModel | None = None
    new_model: NamedModel | None = None
    engine_rows: tuple[int, int] | None = None
    device: str = "auto"
    allow_unproven: bool = False
    force: bool = False
    progress: Callable[[str], None] = lambda text: None


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
    def next_command(self) -> str:
        """What to type next."""
        bundle = shlex.quote(str(self.bundle))
        if self.manifest.kind == "transformation":
            return f"fct-upgrade-gallery GALLERY --transformation {bundle} -o DEST"
        if self.manifest.kind == "side-information":
            return f"fct-embed IMAGES --model OLD_MODEL --side-information {bundle} -o GALLERY"
        return f"fct-embed IMAGES --model {bundle} -o GALLERY"

    def to_json(self) -> dict[str, Any]:
        """Return the report as strict JSON."""
        return {
            "bundle": str(self.bundle),
            "manifest": self.manifest.to_json(),
            "notes": list(self.notes),
            "next_command": self.next_command,
        }
