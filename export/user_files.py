"""Exports the file a user names: finds out what it is, and says what had to be assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fct_infer.artifacts.bundle import refuse_existing
from fct_infer.artifacts.loading import is_torchscript, load_program
from fct_infer.artifacts.manifest import Kind
from fct_infer.artifacts.torchscript import count_inputs, load_torchscript
from fct_infer.errors import ArtifactError, UsageError
from fct_infer.transformation import Program

from .exporting import (
    IMAGE_MODEL_TARGETS,
    TRANSFORMATION_TARGETS,
    ExportReport,
    export_backbone,
    export_transformation,
    source_of,
)

if TYPE_CHECKING:
    import torch

_USUAL_IMAGE_SIZES = (224, 32, 64, 96, 112, 128, 160, 192, 256, 299, 384)


def export_file(
    path: str | Path,
    bundle: str | Path | None = None,
    *,
    kind: Kind | None = None,
    targets: Sequence[str] | None = None,
    input_shapes: Sequence[tuple[int, ...]] = (),
    force: bool = False,
) -> ExportReport:
    """Export a TorchScript archive (a transformation or an image model), an ONNX file or a bundle (a transformation).

    TorchScript is code: to name the file here is to trust it.

    Args:
        path: the file.
        bundle: folder to write; by default beside the file, with the suffix ``.bundle``.
        kind: None finds it from the inputs of the file and a trial run; an image model is then a ``backbone``.
        targets: None is the default of :func:`export_transformation` or :func:`export_backbone`.
        input_shapes: where the file cannot tell: one (channels, height, width), or one (width,) per input.
        force: replace a bundle that is there already.

    Raises:
        FctError: as :func:`export_transformation` and :func:`export_backbone`.
    """
    path = Path(path)
    bundle = path.with_suffix(".bundle") if bundle is None else Path(bundle)
    refuse_existing(bundle, force=force)
    module = load_torchscript(path) if is_torchscript(path) else None
    may_take_images = module is not None and kind != "transformation" and count_inputs(module) == 1
    image_shape, notes = _image_shape(module, kind, input_shapes) if module and may_take_images else (None, ())
    if module is None or image_shape is None:
        program = _read_program(path, kind, input_shapes, may_take_images)
        targets = targets or TRANSFORMATION_TARGETS
        return export_transformation(program, bundle, targets=targets, origin=source_of(path), force=force)
    try:
        report = export_backbone(
            module,
            bundle,
            image_shape=image_shape,
            targets=targets or IMAGE_MODEL_TARGETS,
            kind=kind or "backbone",
            origin=source_of(path),
            force=force,
        )
    except ArtifactError as error:
        error.args = (f"{path}: {error}",)
        raise
    return replace(report, notes=notes)


def _read_program(
    path: Path, kind: Kind | None, input_shapes: Sequence[tuple[int, ...]], images_were_tried: bool
) -> Program:
    if kind not in (None, "transformation"):
        raise ArtifactError(f"{path}: does not run on images, wanted a {kind} model; is --input-shape missing?")
    if any(len(shape) != 1 for shape in input_shapes):
        raise UsageError(f"{path}: takes rows; give the width of each input: --input-shape 128 --input-shape 64")
    widths = tuple(shape[0] for shape in input_shapes) or None
    try:
        return load_program(path, trust=True, input_widths=widths)
    except (ArtifactError, UsageError) as error:
        if images_were_tried and not input_shapes:
            error.args = (f"{error}. Nor does it make embeddings of images of a usual size (--input-shape 3x32x32)",)
        raise


def _image_shape(
    module: torch.jit.ScriptModule, kind: Kind | None, input_shapes: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return the shape of the images the module takes, None if it takes none; and what was assumed."""
    notes = ["the file does not hold mean and standard deviation of its images: the manifest has no preprocessing"]
    if kind is None:
        notes.append("taken as a backbone; a side-information model looks the same: --kind side-information")
    if input_shapes:
        return (input_shapes[0], tuple(notes)) if len(input_shapes[0]) == 3 else (None, ())
    for size in _USUAL_IMAGE_SIZES:
        if _runs(module, (3, size, size)):
            notes.append(f"the file does not tell its image size: exported for 3x{size}x{size}; --input-shape sets it")
            return (3, size, size), tuple(notes)
    return None, ()


def _runs(module: torch.jit.ScriptModule, image_shape: tuple[int, ...]) -> bool:
    from .image_model import ImageModel

    try:
        ImageModel(module, image_shape)
    except ArtifactError:
        return False
    return True
