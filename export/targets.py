"""The targets by name, and which files of each an export writes."""

from __future__ import annotations

from collections.abc import Callable

from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.errors import UsageError, import_error

from .models import Model
from .options import Options
from .template import Exporter
from .to_core import ToCore
from .to_onnx import ToOnnx


def choose_files(model: Model, options: Options) -> list[tuple[Exporter, str]]:
    """Return what to write: exporters with the precision of the file.

    Raises:
        UsageError: a target or a precision does not exist, or a target has none of the precisions, or a precision is
            that of no target.
    """
    targets = options.targets or _default_targets(model)
    unknown = [f"target {name!r}" for name in targets if name not in _TARGETS]
    unknown += [f"precision {name!r}" for name in options.precisions if name not in PRECISIONS]
    if unknown or not options.precisions:
        raise UsageError(
            f"{', '.join(unknown) or 'no precision'} does not exist; there is {', '.join(_TARGETS)} in "
            f"{', '.join(PRECISIONS)}"
        )
    chosen = []
    for target in dict.fromkeys(targets):
        if target == "core" and model.program is None:
            raise UsageError("target 'core' is for transformations that a program can hold; leave it out")
        exporter = _TARGETS[target](options)
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


def _torchscript(_options: Options) -> Exporter:
    try:
        from .to_torchscript import ToTorchScript
    except ImportError as error:
        raise import_error("torch", "export", error) from error
    return ToTorchScript()


def _pt2(_options: Options) -> Exporter:
    try:
        from .to_pt2 import ToPt2
    except ImportError as error:
        raise import_error("torch", "export", error) from error
    return ToPt2()


def _tensorrt(target: str) -> Callable[[Options], Exporter]:
    def make(options: Options) -> Exporter:
        from .to_tensorrt import ToTensorRT

        return ToTensorRT(target, options.engine_rows)

    return make


_TARGETS: dict[str, Callable[[Options], Exporter]] = {
    "core": lambda _options: ToCore(),
    "onnx": lambda _options: ToOnnx(),
    "torchscript": _torchscript,
    "pt2": _pt2,
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
}
