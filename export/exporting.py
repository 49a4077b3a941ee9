"""From a model to a published bundle."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fct_infer.artifacts.bundle import write_bundle
from fct_infer.artifacts.files import digest_file
from fct_infer.artifacts.manifest import MANIFEST_NAME, BundleFile, Kind, Manifest, Preprocessing, Source
from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.artifacts.torch_files import TorchModel, count_inputs
from fct_infer.backends.runner import Batch, Shapes
from fct_infer.errors import ArrayError, MissingExtraError, NotAProgramError, UsageError
from fct_infer.transformation import Program

from .models import Model, ModuleModel, ProgramModel
from .probe import make_probe
from .template import Exporter, Job
from .to_core import ToCore
from .to_onnx import ToOnnx

if TYPE_CHECKING:
    from torch import nn

_LIBRARIES = ("fct-infer", "numpy", "safetensors", "onnx", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx-cu13")


@dataclass(frozen=True)
class Options:
    """How to export, the same for all models.

    Attributes:
        targets: of ``core``, ``onnx``, ``torchscript``, ``pt2``, ``tensorrt``, ``tensorrt-rtx``; empty is ``core,onnx``
            for a transformation (``onnx`` alone if no program can hold it) and ``onnx,torchscript`` for an image model.
        precisions: of the files, ``fp32`` by default; a target is written in those of them it has.
        calibration: a user's rows by input, (n, ...) float32: scales for int8 and fp8, and part of every proof.
        model_version: name of this model; by default the first 12 digits of the source's digest.
        engine_rows: of a call, (typical, most), for TensorRT's profile; by default 4,096 and 65,536 rows, or 32 and 256
            images.
        device: where files are tried: ``auto``, ``cpu``, ``cuda:N``.
        allow_unproven: publish files that cannot be run here (an engine without its card).
        force: replace a bundle that is there already, once the new one is complete.
        progress: told what is done next, in a few words.
    """

    targets: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    calibration: Batch | None = None
    model_version: str | None = None
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


def export_transformation(
    source: Program | nn.Module,
    bundle: str | Path,
    options: Options | None = None,
    *,
    input_widths: Sequence[int] | None = None,
) -> ExportReport:
    """Export a transformation h(old, side) -> new as a bundle.

    Args:
        source: a program, or a torch module in eval mode with one or two inputs (n, d) or (n, d, 1, 1);
            it is copied.
        bundle: folder to write.
        options: see :class:`Options`.
        input_widths: of a module's inputs, (d_old,) or (d_old, d_side), where its weights do not tell them.

    Raises:
        UsageError: a target or precision does not exist or does not fit, or the widths are needed.
        ArtifactError: the source is malformed.
        GateError: a file computes something else than the source; nothing is published.
        OutputError: ``bundle`` exists, or is being written by another process.
    """
    if isinstance(source, Program):
        return publish(ProgramModel(source), bundle, Source("program", source.digest), options or Options())
    model = TorchModel(type(source).__name__, _in_eval_mode(source), count_inputs(source))
    exported, notes = transformation_of(model, input_widths)
    report = publish(exported, bundle, Source("module", exported.digest), options or Options())
    return replace(report, notes=notes)


def export_backbone(
    module: nn.Module,
    bundle: str | Path,
    options: Options | None = None,
    *,
    image_shape: Sequence[int],
    preprocessing: Preprocessing | None = None,
    kind: Kind = "backbone",
) -> ExportReport:
    """Export a model from images (n, \\*image_shape) to embeddings (n, d) or (n, d, 1, 1) as a bundle.

    Args:
        module: float32 images in, embeddings out; eager or TorchScript. It is copied and left as it is.
        bundle: folder to write.
        options: see :class:`Options`.
        image_shape: (channels, height, width).
        preprocessing: what images must go through before the model; None if it is not known.
        kind: ``backbone`` or ``side-information``.

    Raises:
        UsageError: a target, a precision or the kind does not fit, or ``preprocessing`` does not fit ``image_shape``.
        ArtifactError: the module does not run on such images, or makes no embeddings, or cannot be converted.
        GateError: a file computes something else than the module; nothing is published.
        OutputError: ``bundle`` exists, or is being written by another process.
    """
    if kind == "transformation":
        raise UsageError("a transformation has no images; use export_transformation")
    torch_model = TorchModel(type(module).__name__, module, 1)
    model = ModuleModel(kind, torch_model, {"image": tuple(image_shape)})
    return publish(model, bundle, Source("module", model.digest), options or Options(), preprocessing)


def transformation_of(model: TorchModel, widths: Sequence[int] | None = None) -> tuple[Model, tuple[str, ...]]:
    """Return a torch module as a transformation, as a program if one can hold it, and what has to be said about it.

    Raises:
        ArtifactError: it takes or makes something else than rows.
        UsageError: the widths cannot be told from it.
    """
    from fct_infer.artifacts.torch_program import accepted_shapes, program_from_torch

    try:
        program = program_from_torch(model, widths)
    except NotAProgramError as error:
        shapes = next(accepted_shapes(model, widths))
        return ModuleModel("transformation", model, _named(shapes)), not_for_the_core(error)
    shapes = next(shapes for shapes in accepted_shapes(model, tuple(program.dims.values())))
    return ProgramModel(program, _original(model, _named(shapes))), ()


def not_for_the_core(error: NotAProgramError) -> tuple[str, ...]:
    """Return the note that says why a transformation has no file for the core."""
    return (f"no program can hold this transformation, so it gets no file for the core: {'; '.join(error.operations)}",)


def publish(
    model: Model, bundle: str | Path, source: Source, options: Options, preprocessing: Preprocessing | None = None
) -> ExportReport:
    """Write a bundle of ``model``: convert to each target and precision, prove each file, publish all or nothing.

    Raises:
        FctError: as :func:`export_transformation` and :func:`export_backbone`.
    """
    inputs = model.interface.inputs
    if preprocessing is not None and (len(preprocessing.mean), *preprocessing.size) != inputs.get("image"):
        raise UsageError(f"{preprocessing} does not fit a model whose inputs are {dict(inputs)}")
    files = _choose(model, options)
    _check_calibration(options.calibration, inputs)
    draft = Manifest(
        kind=model.kind,
        model_version=options.model_version or source.sha256[:12],
        inputs=dict(inputs),
        output_dim=model.interface.output_dim,
        files=(),
        source=source,
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        program=model.program.structure() if model.program else None,
        preprocessing=preprocessing,
    )
    options.progress("trying the model")
    job = Job(
        probe=make_probe(model, options.calibration),
        metadata={
            "kind": draft.kind,
            "model_version": draft.model_version,
            "source_name": source.name,
            "source_sha256": source.sha256,
            "fct_infer_version": draft.versions["fct-infer"],
        },
        calibration=options.calibration,
        device=options.device,
        allow_unproven=options.allow_unproven,
    )

    def fill(folder: Path) -> Manifest:
        written: list[BundleFile] = []
        for exporter, precision in files:
            options.progress(f"{exporter.target} {precision}: converting, loading back, comparing")
            written.append(exporter.export(model, precision, folder, job))
        return replace(draft, files=tuple(written))

    return ExportReport(Path(bundle), write_bundle(bundle, fill, force=options.force))


def source_of(path: str | Path) -> Source:
    """Name and SHA-256 of the file that is exported; of a bundle, those of its manifest."""
    path = Path(path)
    return Source(path.name, digest_file(path / MANIFEST_NAME if path.is_dir() else path))


def _choose(model: Model, options: Options) -> list[tuple[Exporter, str]]:
    """Return what to write. A target that has none of the precisions is an error, as is a precision of no target."""
    targets = options.targets or _default_targets(model)
    unknown = [f"target {name!r}" for name in targets if name not in _EXPORTERS]
    unknown += [f"precision {name!r}" for name in options.precisions if name not in PRECISIONS]
    if unknown or not options.precisions:
        raise UsageError(
            f"{', '.join(unknown) or 'no precision'} does not exist; there is {', '.join(_EXPORTERS)} in "
            f"{', '.join(PRECISIONS)}"
        )
    chosen = []
    for target in dict.fromkeys(targets):
        if target == "core" and model.program is None:
            raise UsageError("target 'core' is for transformations that a program can hold; leave it out")
        exporter = _EXPORTERS[target](options)
        precisions = [precision for precision in dict.fromkeys(options.precisions) if precision in exporter.precisions]
        if not precisions and target == "core":  # it has one file for all the precisions it computes in
            precisions = ["fp32"]
        if not precisions:
            raise UsageError(
                f"target {target!r} has {', '.join(exporter.precisions)}, not {', '.join(options.precisions)}"
            )
        chosen += [(exporter, precision) for precision in precisions]
    unused = set(options.precisions) - {precision for _, precision in chosen}
    if unused:
        raise UsageError(f"precision {', '.join(sorted(unused))} exists for none of {', '.join(targets)}")
    return chosen


def _default_targets(model: Model) -> tuple[str, ...]:
    if model.kind == "transformation":
        return ("core", "onnx") if model.program else ("onnx",)
    return ("onnx", "torchscript")


def _check_calibration(rows: Batch | None, inputs: Shapes) -> None:
    for name, shape in inputs.items() if rows is not None else ():
        array = rows.get(name) if rows else None
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        if array is None or array.dtype != "float32" or array.shape[1:] != shape or len(array) < 1:
            raise ArrayError(
                f"calibration rows for {name!r}: {found}, wanted float32 (n, {', '.join(map(str, shape))})"
            )


def _torchscript(_options: Options) -> Exporter:
    try:
        from .to_torchscript import ToTorchScript
    except ImportError as error:
        raise MissingExtraError("torch", "export") from error
    return ToTorchScript()


def _pt2(_options: Options) -> Exporter:
    try:
        from .to_pt2 import ToPt2
    except ImportError as error:
        raise MissingExtraError("torch", "export") from error
    return ToPt2()


def _tensorrt(target: str) -> Callable[[Options], Exporter]:
    def make(options: Options) -> Exporter:
        from .to_tensorrt import ToTensorRT

        return ToTensorRT(target, options.engine_rows)

    return make


_EXPORTERS: dict[str, Callable[[Options], Exporter]] = {
    "core": lambda _options: ToCore(),
    "onnx": lambda _options: ToOnnx(),
    "torchscript": _torchscript,
    "pt2": _pt2,
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
}
TARGETS = tuple(_EXPORTERS)


def _named(shapes: Sequence[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return dict(zip(("old", "side"), shapes, strict=False))


def _original(model: TorchModel, inputs: Shapes) -> Any:
    from fct_infer.backends.torch_runtime import TorchRunner

    return TorchRunner(model, inputs, device="cpu")


def _in_eval_mode(module: nn.Module) -> nn.Module:
    from .plain_module import float32_copy

    return float32_copy(module)


def _versions() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    versions = {"fct-infer": "unknown"}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
