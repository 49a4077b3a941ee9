"""From a model to a published bundle."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

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

    from .image_model import ImageModel

_Choices: TypeAlias = Mapping[str, Callable[[], Exporter[SourceT]]]

TRANSFORMATION_TARGETS = ("core", "onnx")
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
    targets: Sequence[str] = TRANSFORMATION_TARGETS,
    model_version: str | None = None,
    origin: Source | None = None,
    trust: bool = False,
    force: bool = False,
) -> ExportReport:
    """Export a transformation h(old, side) -> new as a bundle.

    Args:
        source: a program, or a file that :func:`fct_infer.artifacts.loading.load_program` reads.
        bundle: folder to write.
        targets: of ``core``, ``onnx``, ``torchscript``; each file is loaded back and compared with the source.
        model_version: name of this model; by default the first 12 digits of the source's digest.
        origin: what the source was made from; by default the file, or ``program`` with its digest.
        trust: load a TorchScript source, which is code.
        force: replace a bundle that is there already, once the new one is complete.

    Raises:
        UsageError: a target is unknown.
        ArtifactError: the source is malformed.
        GateError: a file computes something else than the source; nothing is published.
        OutputError: ``bundle`` exists, or is being written by another process.
    """
    exporters = _choose(_TRANSFORMATION_EXPORTERS, targets)
    if isinstance(source, Program):
        program, origin = source, origin or Source("program", source.digest)
    else:
        program, origin = load_program(source, trust=trust), origin or source_of(source)
    draft = Manifest(
        kind="transformation",
        model_version=model_version or origin.sha256[:12],
        inputs={name: (dim,) for name, dim in program.dims.items()},
        output_dim=program.new_dim,
        files=(),
        source=origin,
        versions=_versions(),
        created=_now(),
        program=program.structure(),
    )
    return _publish(program, bundle, exporters, _probe(program), draft, force)


def export_backbone(
    module: nn.Module,
    bundle: str | Path,
    *,
    image_shape: Sequence[int],
    preprocessing: Preprocessing | None = None,
    targets: Sequence[str] = IMAGE_MODEL_TARGETS,
    kind: Kind = "backbone",
    model_version: str | None = None,
    origin: Source | None = None,
    force: bool = False,
) -> ExportReport:
    """Export a model from images (n, \\*image_shape) to embeddings (n, d) or (n, d, 1, 1) as a bundle.

    Args:
        module: float32 images in, embeddings out; eager or TorchScript. It is copied and left as it is.
        bundle: folder to write.
        image_shape: (channels, height, width).
        preprocessing: what images must go through before the model; None if it is not known.
        targets: of ``onnx``, ``torchscript``; each file is loaded back and compared with ``module``.
        kind: ``backbone`` or ``side-information``.
        model_version: name of this model; by default the first 12 digits of the source's digest.
        origin: what ``module`` was loaded from; by default ``module`` with a digest of its weights.
        force: replace a bundle that is there already, once the new one is complete.

    Raises:
        UsageError: a target or the kind is unknown, or ``preprocessing`` does not fit ``image_shape``.
        ArtifactError: the module does not run on such images, or makes no embeddings, or cannot be converted.
        GateError: a file computes something else than the module; nothing is published.
        OutputError: ``bundle`` exists, or is being written by another process.
    """
    if kind == "transformation":
        raise UsageError("a transformation has no images; use export_transformation")
    if preprocessing is not None and (len(preprocessing.mean), *preprocessing.size) != tuple(image_shape):
        raise UsageError(f"preprocessing {preprocessing} does not make images of shape {tuple(image_shape)}")
    exporters = _choose(_IMAGE_MODEL_EXPORTERS, targets)
    model = _image_model(module, image_shape)
    origin = origin or Source("module", model.digest())
    draft = Manifest(
        kind=kind,
        model_version=model_version or origin.sha256[:12],
        inputs={"image": model.image_shape},
        output_dim=model.output_dim,
        files=(),
        source=origin,
        versions=_versions(),
        created=_now(),
        preprocessing=preprocessing,
    )
    return _publish(model, bundle, exporters, model.probe(), draft, force)


def source_of(path: str | Path) -> Source:
    """Name and SHA-256 of the file that is exported; of a bundle, those of its manifest."""
    path = Path(path)
    return Source(path.name, digest_file(path / MANIFEST_NAME if path.is_dir() else path))


def _publish(
    model: SourceT, bundle: str | Path, exporters: list[Exporter[SourceT]], probe: Probe, draft: Manifest, force: bool
) -> ExportReport:
    metadata = {
        "kind": draft.kind,
        "model_version": draft.model_version,
        "source_name": draft.source.name,
        "source_sha256": draft.source.sha256,
        "fct_infer_version": draft.versions["fct-infer"],
    }

    def fill(folder: Path) -> Manifest:
        files = (exporter.export(model, folder, probe, metadata) for exporter in exporters)
        return replace(draft, files=tuple(files))

    return ExportReport(Path(bundle), write_bundle(bundle, fill, force=force))


def _probe(program: Program) -> Probe:
    batches = random_batches({name: (dim,) for name, dim in program.dims.items()}, _BATCH_SIZES)
    outputs = [apply_float64(program, batch["old"], batch.get("side")) for batch in batches]
    return Probe(batches, np.concatenate(outputs))


def _choose(choices: _Choices[SourceT], targets: Sequence[str]) -> list[Exporter[SourceT]]:
    for target in targets:
        if target not in choices:
            raise UsageError(f"target {target!r} does not exist for this kind of model; there is {', '.join(choices)}")
    if not targets:
        raise UsageError(f"no targets; there is {', '.join(choices)}")
    return [choices[target]() for target in dict.fromkeys(targets)]


def _transformation_to_torchscript() -> Exporter[Program]:
    try:
        from .to_torchscript import TransformationToTorchScript
    except ImportError as error:
        raise MissingExtraError("torch", "export") from error
    return TransformationToTorchScript()


def _image_model_to_torchscript() -> Exporter[ImageModel]:
    from .to_torchscript import ImageModelToTorchScript  # torch is there: the model is one of its modules

    return ImageModelToTorchScript()


def _image_model(module: nn.Module, image_shape: Sequence[int]) -> ImageModel:
    from .image_model import ImageModel  # likewise

    return ImageModel(module, image_shape)


_TRANSFORMATION_EXPORTERS: _Choices[Program] = {
    "core": TransformationToCore,
    "onnx": TransformationToOnnx,
    "torchscript": _transformation_to_torchscript,
}
_IMAGE_MODEL_EXPORTERS: _Choices[ImageModel] = {"onnx": ImageModelToOnnx, "torchscript": _image_model_to_torchscript}


def _versions() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    versions = {"fct-infer": "unknown"}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
