"""From a model to a published bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fct_infer.artifacts.bundle import write_bundle
from fct_infer.artifacts.files import digest_file
from fct_infer.artifacts.foreign_code import foreign_code
from fct_infer.artifacts.manifest import MANIFEST_NAME, BundleFile, Kind, Manifest, Preprocessing, Source
from fct_infer.artifacts.roles import roles, roles_by_name, told
from fct_infer.artifacts.torch_files import TorchModel, count_inputs, input_names
from fct_infer.backends.runner import Batch, Shapes
from fct_infer.errors import ArrayError, NotAProgramError, UsageError
from fct_infer.identity import ModelId, model_id
from fct_infer.transformation import INPUTS, Program

from .models import Model, ModuleModel, ProgramModel
from .options import ExportReport, Options
from .probe import make_probe
from .targets import choose_files
from .template import Job
from .to_uncertainty import write_uncertainty

if TYPE_CHECKING:
    from torch import nn

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
_LIBRARIES = ("fct-infer", "numpy", "safetensors", "onnx", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx-cu13")


def export_transformation(
    source: Program | nn.Module,
    bundle: str | Path,
    options: Options | None = None,
    *,
    input_widths: Sequence[int] | None = None,
    old_first: Sequence[str] | None = None,
) -> ExportReport:
    """Export a transformation h(old, side) -> new as a bundle.

    Args:
        source: a program, or a torch module in eval mode with one or two inputs (n, d) or (n, d, 1, 1);
            it is copied.
        bundle: folder to write.
        options: see :class:`Options`.
        input_widths: of a module's inputs, (d_old,) or (d_old, d_side), where its weights do not tell them.
        old_first: of a module with two inputs, how ``forward`` calls the old embedding and the side-information, where
            names like ``old`` and ``side`` do not tell which is which.

    Raises:
        UsageError: a target or precision does not exist or does not fit, or the widths are needed.
        ArtifactError: the source is malformed.
        GateError: a file computes something else than the source; nothing is published.
        OutputError: ``bundle`` exists, or is being written by another process.
    """
    if isinstance(source, Program):
        if old_first is not None:
            raise UsageError("a program's inputs are old and side; old_first= is for a module")
        return publish(ProgramModel(source), bundle, Source("program", source.digest), options or Options())
    source = unwrapped(source)
    name = type(source).__name__
    with foreign_code(f"{name}: its forward does not tell its inputs"):
        names, count = input_names(source), count_inputs(source)
    model = TorchModel(name, _in_eval_mode(source), count, None, names)
    exported, notes = transformation_of(model, input_widths, old_first)
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
    module = unwrapped(module)
    torch_model = TorchModel(type(module).__name__, module, 1)
    model = ModuleModel(kind, torch_model, {"image": tuple(image_shape)})
    return publish(model, bundle, Source("module", model.digest), options or Options(), preprocessing)


def transformation_of(
    model: TorchModel, widths: Sequence[int] | None = None, old_first: Sequence[str] | None = None
) -> tuple[Model, tuple[str, ...]]:
    """Return a torch module as a transformation, as a program if one can hold it, and what has to be said about it.

    Raises:
        ArtifactError: it takes or makes something else than rows, or nothing tells its two inputs apart.
        UsageError: the widths cannot be told from it.
    """
    from fct_infer.artifacts.input_order import in_order, refuse_untold
    from fct_infer.artifacts.torch_program import accepted_shapes, program_from_torch

    notes = _input_notes(model, widths, old_first)
    model = in_order(model, old_first)
    try:
        program = program_from_torch(model, widths)
    except NotAProgramError as error:
        shapes = next(accepted_shapes(model, widths))
        refuse_untold(model, shapes)
        return ModuleModel("transformation", model, _named(shapes)), (*notes, *not_for_the_core(error))
    shapes = next(shapes for shapes in accepted_shapes(model, tuple(program.dims.values())))
    return ProgramModel(program, _original(model, _named(shapes))), notes


def _input_notes(model: TorchModel, widths: Sequence[int] | None, old_first: Sequence[str] | None) -> tuple[str, ...]:
    """Say which input is taken for which, and which is not taken at all."""
    count = max(model.input_count, len(widths or ()), len(old_first or ()))
    names, left_out = model.input_names[:count], model.input_names[count:]
    found = roles_by_name(names) if old_first is None else roles(names, (), old_first)
    notes = [told(names, found or INPUTS)] if 1 <= len(names) <= len(INPUTS) else []
    if left_out:
        notes.append(
            f"exported without its optional input {', '.join(left_out)}: give the width of every input to export it "
            "too (--input-shape for each; input_widths=)"
        )
    return tuple(notes)


def not_for_the_core(error: NotAProgramError) -> tuple[str, ...]:
    """Return the note that says why a transformation has no file for the core."""
    return (f"no program can hold this transformation, so it gets no file for the core: {'; '.join(error.operations)}",)


def publish(
    model: Model,
    bundle: str | Path,
    source: Source,
    options: Options,
    preprocessing: Preprocessing | None = None,
    models: Mapping[str, ModelId] | None = None,
) -> ExportReport:
    """Write a bundle of ``model``: convert to each target and precision, prove each file, publish all or nothing.

    ``models`` is what the source says of the models that vectors are of; see :class:`Manifest`.

    Raises:
        FctError: as :func:`export_transformation` and :func:`export_backbone`.
    """
    inputs = model.interface.inputs
    if preprocessing is not None and (len(preprocessing.mean), *preprocessing.size) != inputs.get("image"):
        raise UsageError(f"{preprocessing} does not fit a model whose inputs are {dict(inputs)}")
    files = choose_files(model, options)
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
        models=_models(model, options, models or {}),
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
        if model.uncertainty is not None:
            written.append(write_uncertainty(model.uncertainty, folder, job))
        return replace(draft, files=tuple(written))

    return ExportReport(Path(bundle), write_bundle(bundle, fill, force=options.force))


def _models(model: Model, options: Options, said: Mapping[str, ModelId]) -> dict[str, ModelId]:
    given = {"old": model_id(options.old_model), "new": model_id(options.new_model)}
    named = {name: known for name, known in given.items() if known is not None}
    if named and model.kind != "transformation":
        raise UsageError("old_model and new_model are of a transformation; model_version names an image model")
    return {**said, **named}


def source_of(path: str | Path) -> Source:
    """Name and SHA-256 of the file that is exported; of a bundle, those of its manifest."""
    path = Path(path)
    return Source(path.name, digest_file(path / MANIFEST_NAME if path.is_dir() else path))


def _check_calibration(rows: Batch | None, inputs: Shapes) -> None:
    for name, shape in inputs.items() if rows is not None else ():
        array = rows.get(name) if rows else None
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        if array is None or array.dtype != "float32" or array.shape[1:] != shape or len(array) < 1:
            raise ArrayError(
                f"calibration rows for {name!r}: {found}, wanted float32 (n, {', '.join(map(str, shape))})"
            )


def _named(shapes: Sequence[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return dict(zip(("old", "side"), shapes, strict=False))


def _original(model: TorchModel, inputs: Shapes) -> Any:
    from fct_infer.backends.torch_runtime import TorchRunner

    return TorchRunner(model, inputs, device="cpu")


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what torch.compile, a data-parallel wrapper or an average of weights was put around.

    Raises:
        UsageError: it is no module.
    """
    from torch import nn

    if not isinstance(module, nn.Module):
        hint = "; fct_infer.export.export_file takes a file" if isinstance(module, str | Path) else ""
        raise UsageError(f"the source is {_described(module)}, wanted a torch.nn.Module or a Program{hint}")
    inner = getattr(module, _WRAPPERS.get(type(module).__name__, ""), None)
    return module if inner is None else unwrapped(inner)


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


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
