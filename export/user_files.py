"""Exports the file a user names: finds out what it is, and says what had to be assumed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fct_infer.artifacts.bundle import open_bundle, refuse_existing
from fct_infer.artifacts.files import path_of
from fct_infer.artifacts.loading import is_code, program_from_bundle, refuse_data
from fct_infer.artifacts.manifest import (
    DEFAULT_INTERPOLATION,
    Interpolation,
    Kind,
    Preprocessing,
    Source,
    is_image,
)
from fct_infer.artifacts.onnx_file import read_onnx
from fct_infer.artifacts.onnx_graph import program_of_graph
from fct_infer.artifacts.onnx_signature import OnnxInput, read_signature
from fct_infer.artifacts.precisions import CALIBRATION_ROWS
from fct_infer.artifacts.roles import told
from fct_infer.artifacts.torch_files import TorchModel, load_torch
from fct_infer.artifacts.uncertainty import uncertainty_of
from fct_infer.backends.onnx_runtime import OnnxRuntimeRunner
from fct_infer.backends.runner import Interface, Shapes
from fct_infer.errors import ArtifactError, NotAProgramError, UsageError
from fct_infer.identity import ModelId
from fct_infer.images import shorter_side

from .calibration import read_calibration
from .exporting import not_for_the_core, publish, source_of, transformation_of
from .models import Model, ModuleModel, OnnxModel, ProgramModel
from .options import ExportReport, Options

_USUAL_IMAGE_SIZES = (224, 32, 64, 96, 112, 128, 160, 192, 256, 299, 384)


@dataclass(frozen=True)
class OpenedModel:
    """A user's file as a model.

    Attributes:
        model: what it holds.
        source: its name and digest.
        preprocessing: of its images, where the file tells.
        notes: what had to be assumed, one sentence each.
        models: what it says of the models that vectors are of; see :class:`~fct_infer.artifacts.manifest.Manifest`.
    """

    model: Model
    source: Source
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()
    models: Mapping[str, ModelId] = field(default_factory=dict)


def export_file(
    path: str | Path,
    bundle: str | Path | None = None,
    options: Options | None = None,
    *,
    kind: Kind | None = None,
    input_shapes: Sequence[tuple[int, ...]] = (),
    old_first: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    calibration: str | Path | None = None,
    calibration_rows: int = CALIBRATION_ROWS,
) -> ExportReport:
    """Export a TorchScript or torch.export archive, an ONNX file, or (to convert it onward) a bundle.

    The archives are code: to name the file here is to trust it.

    Args:
        path: the file.
        bundle: folder to write; by default beside the file, with the suffix ``.bundle``.
        options: see :class:`fct_infer.export.Options`.
        kind: None finds it from the inputs of the file and a trial run; an image model is then a ``backbone``.
        input_shapes: where the file cannot tell: one (channels, height, width), or one (width,) per input.
        old_first: of a file with two inputs, its own names of the old embedding and the side-information, where they
            do not tell which is which.
        preprocessing: what images must go through before the model; None is what the file says, if it does.
        calibration: see :func:`fct_infer.export.calibration.read_calibration`; takes the place of the option's rows.
        calibration_rows: rows to take of it.

    Raises:
        FctError: as :func:`export_transformation` and :func:`export_backbone`.
    """
    path, options = path_of(path), options or Options()
    bundle = default_bundle(path) if bundle is None else Path(bundle)
    inputs = {"model": path} | ({"calibration": calibration} if calibration is not None else {})
    refuse_existing(bundle, inputs, force=options.force)
    opened = open_model(path, kind, input_shapes, old_first)
    if calibration is not None:
        rows = read_calibration(calibration, opened.model.interface.inputs, calibration_rows)
        options = replace(options, calibration=rows)
    return export_opened(opened, path, bundle, options, preprocessing)


def export_opened(
    opened: OpenedModel, path: Path, bundle: Path, options: Options, preprocessing: Preprocessing | None = None
) -> ExportReport:
    """Export what was opened from ``path``; errors as for :func:`export_file`."""
    preprocessing = preprocessing or opened.preprocessing
    notes = opened.notes
    if "image" in opened.model.interface.inputs and preprocessing is None:
        notes += ("nothing tells how its images are prepared, which fct-embed needs: --image-mean and --image-std",)
    try:
        report = publish(opened.model, bundle, opened.source, options, preprocessing, _kept(opened, options))
    except ArtifactError as error:
        error.args = (str(error) if str(path) in str(error) else f"{path}: {error}",)
        raise
    return replace(report, notes=notes)


def _kept(opened: OpenedModel, options: Options) -> Mapping[str, ModelId]:
    """Return what the source says of models; of an image model nothing if it is given another name now."""
    return {} if options.model_version and "self" in opened.models else opened.models


def preprocessing_of(
    inputs: Shapes,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    *,
    crop_fraction: float | None = None,
    interpolation: Interpolation | None = None,
    known: Preprocessing | None = None,
) -> Preprocessing | None:
    """Return how images are prepared for a model with these inputs; None if nothing is said about it.

    Args:
        inputs: of the model.
        mean, std: one of each per channel; they go together.
        resize: the shorter side before the centre crop.
        crop_fraction: says the same as the share of the shorter side that is cut out.
        interpolation: None is bilinear, or as known.
        known: what the file says; without ``mean`` and ``std`` the rest is changed in it.

    Raises:
        UsageError: only a part of it is said, or it does not fit the model.
    """
    if all(said is None for said in (mean, std, resize, crop_fraction, interpolation)):
        return known
    shape = inputs.get("image")
    if shape is None:
        raise UsageError("--image-mean, --image-std and what else prepares images are for models that take images")
    if mean is None and std is None and known is not None:
        mean, std, resize = known.mean, known.std, known.resize if resize is None else resize
        interpolation = interpolation or known.interpolation
    if mean is None or std is None or len(mean) != shape[0] or len(std) != shape[0] or min(std) <= 0:
        raise UsageError(f"--image-mean and --image-std go together, {shape[0]} numbers each, the latter positive")
    size = (shape[1], shape[2])
    if crop_fraction is not None:
        if not 0 < crop_fraction <= 1:
            raise UsageError(f"--image-crop-fraction {crop_fraction} is no share; wanted above 0 and at most 1")
        resize = shorter_side(size, crop_fraction)
    if resize is not None and resize < max(size):
        raise UsageError(f"--image-resize {resize} is smaller than the model's images, {shape[1]}x{shape[2]}")
    return Preprocessing(size, tuple(mean), tuple(std), resize, interpolation or DEFAULT_INTERPOLATION)


def default_bundle(path: Path) -> Path:
    """Return the bundle's place when none is given: beside the file, ``.bundle`` for its suffix."""
    return path.with_suffix(".bundle") if path.suffix != ".bundle" else path.with_suffix(".exported.bundle")


def open_model(
    path: Path,
    kind: Kind | None = None,
    input_shapes: Sequence[tuple[int, ...]] = (),
    old_first: Sequence[str] | None = None,
) -> OpenedModel:
    """Open a file and find out what it holds; arguments and errors as for :func:`export_file`."""
    if path.is_dir():
        if old_first is not None:
            raise UsageError(f"{path}: a bundle's inputs are old and side; --inputs is for a file")
        opened = _open_bundle(path)
    elif not path.exists():
        raise ArtifactError(f"{path}: no such file or bundle")
    elif is_code(path):
        opened = _open_torch(path, kind, input_shapes, old_first)
    else:
        opened = _open_onnx(path, kind, old_first)
    inputs = opened.model.interface.inputs
    if kind is not None and (kind == "transformation") == ("image" in inputs):
        found = "an image model" if "image" in inputs else "a transformation"
        raise ArtifactError(f"{path}: takes {', '.join(inputs)}, which makes it {found}, not a {kind}")
    return opened


def _open_bundle(path: Path) -> OpenedModel:
    bundle = open_bundle(path)
    manifest, source = bundle.manifest, source_of(path)
    if manifest.kind == "transformation" and manifest.program is not None:
        transformation = ProgramModel(program_from_bundle(bundle), uncertainty=uncertainty_of(bundle))
        return OpenedModel(transformation, source, models=manifest.models)
    if not bundle.has("onnx"):
        raise ArtifactError(f"{path}: has no ONNX file to convert onward; export from the source instead")
    file = path / bundle.file("onnx", "fp32").name
    model = OnnxModel(manifest.kind, file, self_contained=True)
    if model.interface != Interface(manifest.inputs, manifest.output_dim):
        raise ArtifactError(f"{file}: has other inputs or outputs than the manifest states")
    models = manifest.models if manifest.kind == "transformation" else {"self": manifest.model}
    return OpenedModel(model, source, manifest.preprocessing, models=models)


def _open_onnx(path: Path, kind: Kind | None, old_first: Sequence[str] | None) -> OpenedModel:
    refuse_data(path)
    model, data = read_onnx(path)
    source = Source(path.name, hashlib.sha256(data).hexdigest())  # with its weights, wherever they lie
    signature = read_signature(model, path, old_first)
    if "image" in signature:
        if old_first is not None:
            raise UsageError(f"{path}: takes images; --inputs is for a transformation")
        notes = () if kind else (_IMAGE_NOTE,)
        return OpenedModel(OnnxModel(kind or "backbone", path), source, notes=notes)
    try:
        program = program_of_graph(model.graph, path, old_first)
    except NotAProgramError as error:
        found = OnnxModel("transformation", path, old_first)
        return OpenedModel(found, source, notes=(_assignment(signature), *not_for_the_core(error)))
    runner = OnnxRuntimeRunner(path, device="cpu", old_first=old_first)
    return OpenedModel(ProgramModel(program, runner), source, notes=(_assignment(signature),))


def _assignment(signature: Mapping[str, OnnxInput]) -> str:
    return told([each.name for each in signature.values()], list(signature))


def _open_torch(
    path: Path, kind: Kind | None, input_shapes: Sequence[tuple[int, ...]], old_first: Sequence[str] | None
) -> OpenedModel:
    model, source = load_torch(path), source_of(path)
    may_take_images = kind != "transformation" and model.input_count == 1 and old_first is None
    if may_take_images:
        image_shape, notes = _image_shape(model, input_shapes)
        if image_shape is not None:
            if kind is None:
                notes += (_IMAGE_NOTE,)
            return OpenedModel(ModuleModel(kind or "backbone", model, {"image": image_shape}), source, notes=notes)
    if kind not in (None, "transformation"):
        raise ArtifactError(f"{path}: does not run on images, wanted a {kind} model; is --input-shape missing?")
    if any(len(shape) != 1 for shape in input_shapes):
        raise UsageError(f"{path}: takes rows; give the width of each input: --input-shape 128 --input-shape 64")
    widths = tuple(shape[0] for shape in input_shapes) or None
    try:
        transformation, notes = transformation_of(model, widths, old_first)
    except (ArtifactError, UsageError) as error:
        if may_take_images and not input_shapes:
            error.args = (f"{error}. Nor does it make embeddings of images of a usual size (--input-shape 3x32x32)",)
        raise
    return OpenedModel(transformation, source, notes=notes)


_IMAGE_NOTE = "taken as a backbone; a side-information model looks the same: --kind side-information"


def _image_shape(
    model: TorchModel, input_shapes: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return the shape of the images the module takes, None if it takes none; and what was assumed."""
    if input_shapes:
        return (input_shapes[0] if len(input_shapes[0]) == 3 else None), ()
    if model.shapes is not None:
        return (model.shapes[0] if is_image(model.shapes[0]) else None), ()
    for size in _USUAL_IMAGE_SIZES:
        if _runs(model, (3, size, size)):
            return (3, size, size), (
                f"the file does not tell its image size: exported for 3x{size}x{size}; --input-shape sets it",
            )
    return None, ()


def _runs(model: TorchModel, image_shape: tuple[int, ...]) -> bool:
    from fct_infer.backends.torch_runtime import TorchRunner

    try:
        TorchRunner(model, {"image": image_shape}, device="cpu")
    except ArtifactError:
        return False
    return True
