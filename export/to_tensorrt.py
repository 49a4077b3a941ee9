"""Targets ``tensorrt`` and ``tensorrt-rtx``: an engine built from this project's ONNX graph."""

from __future__ import annotations

import os
from pathlib import Path

from fct_infer.backends.tensorrt_runtime import build_engine, engine_file_name, import_tensorrt

from .graphs.onnx_model import serialize
from .models import Model
from .template import Converted, Exporter, Job
from .to_onnx import graph_in

ROWS = (4096, 65536)
IMAGES = (32, 256)  # every context reserves memory for the most


class ToTensorRT(Exporter):
    """``model.<gpu>.engine``; the network is strongly typed, so its precision stands in the graph.

    Args:
        target: ``tensorrt`` or ``tensorrt-rtx``.
        rows: of a call, (typical, most); None is :data:`ROWS`, or :data:`IMAGES` for image models.
    """

    precisions = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")

    def __init__(self, target: str, rows: tuple[int, int] | None) -> None:
        self.target = target  # type: ignore[misc]  # one class, two targets
        self._trt, self._rows = import_tensorrt(target), rows

    def convert(self, model: Model, precision: str, job: Job) -> Converted:
        """Return the engine."""
        graph = serialize(graph_in(model, precision, job), job.metadata)
        typical, most = self._rows or (IMAGES if "image" in model.interface.inputs else ROWS)
        cache = _cache_folder() / f"{self.target}-{self._trt.__version__}.timing"
        built = build_engine(self._trt, graph, rows=(1, typical, most), tf32=precision == "tf32", timing_cache=cache)
        return Converted(engine_file_name(self.target, precision, built.engine), built.data, built.engine)


def _cache_folder() -> Path:
    """Where measured kernel timings are kept between exports, as the XDG base directories say."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fct_infer"
