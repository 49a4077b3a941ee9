"""TensorRT and TensorRT for RTX: engines built from ONNX and run. The only file that calls either.

Both are one API (TensorRT 10 and 11 alike), so every function takes the module, from :func:`import_tensorrt`.

Note [Precision]
Networks are strongly typed: every layer computes in the type that the ONNX file gives it (casts, or Q/DQ pairs), so
whoever wrote the file decided on the precision. Only TF32 is a flag: it is how products of float32 are computed.
"""

from __future__ import annotations

import importlib
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from types import ModuleType
from typing import Any

import numpy as np

from fct_infer.artifacts.files import MEBIBYTE, read_file
from fct_infer.artifacts.manifest import Engine
from fct_infer.backends.cuda_memory import CudaMemory, DeviceMemory
from fct_infer.backends.runner import Batch, DeviceBatch, Interface, Runner
from fct_infer.backends.tensorrt_lane import Lane, aligned_rows, close_all
from fct_infer.backends.tensorrt_log import log_of
from fct_infer.device_arrays import DeviceRows
from fct_infer.errors import ArtifactError, ResourceError, UnsupportedError, UsageError, import_error
from fct_infer.storage import write_bytes
from fct_infer.transformation import Float32Array

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
_EXTRAS = {TENSORRT: "gpu", TENSORRT_RTX: "rtx"}
_OLDEST_TENSORRT = 10
_OLDEST_BY_DEFAULT = 8.0  # compute capability that TensorRT for RTX builds for if none is named
_MAX_TIMING_CACHE_BYTES = 512 * MEBIBYTE
_DEVICE_NAME_LENGTH = 64


def import_tensorrt(target: str) -> ModuleType:
    """Return the module of ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        MissingExtraError: it is not installed.
        UnsupportedError: it is installed, but its libraries do not load, or it is older than TensorRT 10.
        UsageError: there is no such target.
    """
    if target not in _EXTRAS:
        raise UsageError(f"no TensorRT is called {target!r}; known are {', '.join(_EXTRAS)}")
    try:
        trt = importlib.import_module(target.replace("-", "_"))
    except ImportError as error:
        raise import_error(target, _EXTRAS[target], error) from error
    except OSError as error:
        raise UnsupportedError(f"{target} is installed, but does not load: {error}") from error
    if target == TENSORRT and int(trt.__version__.split(".")[0]) < _OLDEST_TENSORRT:
        raise UnsupportedError(f"TensorRT {trt.__version__} is installed, wanted {_OLDEST_TENSORRT} or newer")
    return trt


def target_of(trt: ModuleType) -> str:
    """Return ``tensorrt`` or ``tensorrt-rtx``."""
    return trt.__name__.replace("_", "-")


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine, which is code: pin its digest; and what it was built by and for."""

    data: bytes
    engine: Engine


def build_engine(
    trt: ModuleType,
    onnx_model: bytes,
    *,
    rows: tuple[int, int, int],
    tf32: bool,
    timing_cache: Path | None = None,
    compute_capabilities: Sequence[str] | None = None,
    memory: DeviceMemory | None = None,
) -> BuiltEngine:
    """Build an engine from ONNX, in the precision the file has; see Note [Precision].

    TensorRT tunes for the device it builds on, so it needs one. TensorRT for RTX builds without, for many devices; what
    is left is compiled when the engine is loaded.

    Args:
        trt: the module.
        onnx_model: a whole model; its inputs are float32 and only their first axis, the rows, is dynamic.
        rows: 1, typical and most rows of one call. The engine is tuned for the typical and runs no more than the most.
        tf32: whether products of float32 numbers may be computed in TF32 (10 bits of mantissa).
        timing_cache: file that keeps what TensorRT measured, so that the next build is quick; made if absent, ignored
            if it is damaged, of another device or another version. TensorRT for RTX measures nothing and ignores it.
        compute_capabilities: devices that the engine is for, such as ``("8.9", "12.0")``; TensorRT for RTX only, where
            None stands for 8.0 and newer.
        memory: the device to build on; None is ``cuda:0``. Not used by TensorRT for RTX.

    Raises:
        ArtifactError: TensorRT cannot read the model (each node it refuses is named) or cannot build it.
        ResourceError: it ran out of memory.
        UnsupportedError: there is no GPU, or TensorRT knows no such compute capability.
        UsageError: ``rows`` are no profile.
    """
    if rows[0] != 1 or list(rows) != sorted(rows):
        raise UsageError(f"rows is {rows}, wanted 1, the typical and the most rows of a call")
    if target_of(trt) == TENSORRT_RTX:
        data = _build(trt, onnx_model, rows, tf32, None, compute_capabilities)
        capabilities = compute_capabilities or [
            name for name in _capabilities(trt) if float(name) >= _OLDEST_BY_DEFAULT
        ]
        return BuiltEngine(data, Engine(trt.__version__, "any", ",".join(capabilities), rows))
    if compute_capabilities is not None:
        raise UsageError("TensorRT builds for the device it runs on; only TensorRT for RTX takes compute capabilities")
    memory = memory or CudaMemory()
    with memory.current():
        data = _build(trt, onnx_model, rows, tf32, timing_cache, None)
    return BuiltEngine(data, Engine(trt.__version__, memory.gpu.name, memory.gpu.compute_capability, rows))


def engine_file_name(target: str, precision: str, engine: Engine) -> str:
    """Return ``model.h200.fp16.engine`` or, for TensorRT for RTX, ``model.rtx.fp16.engine``."""
    if target == TENSORRT_RTX:
        return f"model.rtx.{precision}.engine"
    model = re.sub(r"[^a-z0-9]+", "-", engine.gpu.lower().removeprefix("nvidia ")).strip("-")[:_DEVICE_NAME_LENGTH]
    return f"model.{model or 'gpu'}.{precision}.engine"


def _build(
    trt: ModuleType,
    onnx_model: bytes,
    rows: tuple[int, int, int],
    tf32: bool,
    timing_cache: Path | None,
    compute_capabilities: Sequence[str] | None,
) -> bytes:
    log = log_of(trt)
    builder = log.made("builder", trt.Builder, log.logger)
    network = log.made("network", builder.create_network, _creation_flags(trt))
    parser = log.made("parser", trt.OnnxParser, network, log.logger)  # owns weights of the network: kept to the end
    _parse(parser, onnx_model)
    config = log.made("configuration", builder.create_builder_config)
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    profile = log.made("profile", builder.create_optimization_profile)
    for name, shape in _row_shapes(trt, network).items():
        profile.set_shape(name, *((count, *shape) for count in rows))
    if config.add_optimization_profile(profile) < 0:
        raise ArtifactError(f"TensorRT refuses a profile of {rows} rows: {log.reason()}")
    if compute_capabilities is not None:
        _set_capabilities(trt, config, compute_capabilities)
    cache = None if timing_cache is None else _attach_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise log.failure("TensorRT cannot build this model")
    if timing_cache is not None and cache is not None:
        # A cache that cannot be kept costs the next build its time, never this one its engine.
        with suppress(ResourceError):
            write_bytes(timing_cache, bytes(cache.serialize()))
    return bytes(plan)


def _creation_flags(trt: ModuleType) -> int:
    """Ask for a strongly typed network where that is a choice: TensorRT 11 knows no other."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(parser: Any, onnx_model: bytes) -> None:
    if parser.parse(onnx_model):
        return
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    reasons = [
        f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.code().name} {error.desc()}"
        if error.node_operator()
        else error.desc()
        for error in errors
    ]
    raise ArtifactError("TensorRT cannot read this ONNX model: " + "; ".join(reasons or ["it does not say why"]))


def _row_shapes(trt: ModuleType, network: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row of every input; the first axis, and no other, must be dynamic."""
    shapes = {}
    for tensor in (network.get_input(place) for place in range(network.num_inputs)):
        count, *shape = tuple(tensor.shape) or (0,)
        if tensor.dtype != trt.DataType.FLOAT or count != -1 or -1 in shape:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ArtifactError(f"input {tensor.name!r} is {found}, wanted float32 with a dynamic first axis only")
        shapes[tensor.name] = tuple(shape)
    return shapes


def _capabilities(trt: ModuleType) -> dict[str, Any]:
    """Return the compute capabilities that TensorRT for RTX builds for, oldest first: ``{"8.9": SM89, ...}``."""
    members = trt.ComputeCapability.__members__
    numbers = sorted(int(name.removeprefix("SM")) for name in members if name.startswith("SM"))
    return {f"{number // 10}.{number % 10}": members[f"SM{number}"] for number in numbers}


def _set_capabilities(trt: ModuleType, config: Any, wanted: Sequence[str]) -> None:
    known = _capabilities(trt)
    if unknown := [name for name in wanted if name not in known]:
        raise UnsupportedError(f"TensorRT for RTX builds for {', '.join(known)}, not for {', '.join(unknown)}")
    config.num_compute_capabilities = len(wanted)
    for place, name in enumerate(wanted):
        if not config.set_compute_capability(known[name], place):
            raise UnsupportedError(f"TensorRT for RTX does not build for {', '.join(wanted)} at once")


def _attach_timing_cache(config: Any, path: Path) -> Any:
    saved = b""
    with suppress(ArtifactError):  # absent or unreadable
        saved = read_file(path, _MAX_TIMING_CACHE_BYTES)
    for data in (saved, b""):  # TensorRT checks what it is given; an empty one always fits
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


class TensorRTRunner(Runner):
    """An engine on a GPU, called with NumPy arrays (copied in, computed, copied out) or with arrays on the GPU.

    Calls of more rows than the engine takes are cut. Callers at the same time compute at the same time, each with an
    execution context, a stream and buffers of its own; more than ``contexts`` wait for each other.

    Args:
        trt: the module that built it.
        data: the serialized engine. It is code, and it runs: check its digest first.
        interface: what the model is said to be; the engine must agree.
        device: number of the CUDA device.
        engine: what the engine is said to be for; told if it cannot be loaded.
        contexts: most calls that compute at once. Each context holds working memory for the most rows of the profile.
        memory: the device; None is the CUDA device of that number.

    Raises:
        ArtifactError: the engine is damaged, of another TensorRT, for another device, or of another model.
        MissingExtraError: ``cuda-bindings`` is not installed.
        ResourceError: not enough memory on the device, or the device fails.
        UnsupportedError: there is no CUDA driver, or no such device.
    """

    def __init__(
        self,
        trt: ModuleType,
        data: bytes,
        interface: Interface,
        *,
        device: int = 0,
        engine: Engine | None = None,
        contexts: int = 2,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.backend = target_of(trt)
        self._memory = memory or CudaMemory(device, extra=_EXTRAS[self.backend])
        self.device = f"cuda:{self._memory.index}"
        self.runtime = f"{self.backend} {trt.__version__} {self._memory.gpu.name}"
        self.interface = interface
        self._log = log_of(trt)
        with self._memory.current():
            self._engine = self._deserialize(trt, data, engine)
            self._output, self._most_rows = _check_engine(trt, self._engine, interface)
            first = Lane(self._engine, self._memory, self._log)
        # The last one put back is the first one taken: lanes beyond the first are made when a caller needs one.
        self._idle: LifoQueue[Lane | None] = LifoQueue()
        for lane in (*[None] * (contexts - 1), first):
            self._idle.put(lane)
        self._making = threading.Lock()
        weakref.finalize(self, close_all, self._idle)

    def run(self, batch: Batch) -> Float32Array:  # noqa: D102
        count = len(next(iter(batch.values())))
        result = np.empty((count, self.interface.output_dim), np.float32)
        with self._memory.current(), self._lane() as lane:
            for start in range(0, count, self._most_rows):
                piece = slice(start, start + self._most_rows)
                lane.run({name: array[piece] for name, array in batch.items()}, self._output, result[piece])
        return result

    def run_on_device(self, batch: DeviceBatch, out: DeviceRows, stream: int) -> None:
        """Compute one batch on the device, in order with the caller's stream; see :meth:`Runner.run_on_device`."""
        size = aligned_rows([*batch.values(), out], self._most_rows)
        shapes = self.interface.inputs
        with self._memory.current(), self._lane() as lane:
            self._memory.follow(lane.stream, stream)
            for start in range(0, out.rows, size):
                rows = min(size, out.rows - start)
                addresses = {name: each.row_address(start) for name, each in (*batch.items(), (self._output, out))}
                inputs = {name: (rows, *shapes[name]) for name in batch}
                lane.enqueue(inputs, addresses, self._output, (rows, self.interface.output_dim))
            self._memory.follow(stream, lane.stream)

    def _deserialize(self, trt: ModuleType, data: bytes, engine: Engine | None) -> Any:
        runtime = self._log.made("runtime", trt.Runtime, self._log.logger)
        deserialized = runtime.deserialize_cuda_engine(data)
        if deserialized is not None:
            return deserialized
        here = f"{trt.__version__} on {self._memory.gpu.name} ({self._memory.gpu.compute_capability})"
        made = engine and f"built by {engine.version} for {engine.gpu} ({engine.compute_capability}), "
        raise self._log.failure(f"{self.backend} cannot load this engine; {made or ''}here is {here}")

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """Lend a lane to one caller; one that failed is given up, for nobody knows what it still does."""
        lane = self._idle.get()
        try:
            if lane is None:
                with self._making:
                    lane = Lane(self._engine, self._memory, self._log)
            yield lane
        except BaseException:
            if lane is not None:
                lane.close()
            lane = None
            raise
        finally:
            self._idle.put(lane)


def _check_engine(trt: ModuleType, engine: Any, interface: Interface) -> tuple[str, int]:
    """Return the output's name and the most rows of a call; an engine that is not ``interface`` is an ArtifactError."""
    found, outputs, most = {}, [], []
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        shape, dtype = tuple(engine.get_tensor_shape(name))[1:], engine.get_tensor_dtype(name)
        if dtype != trt.DataType.FLOAT:
            raise ArtifactError(f"the engine's {name!r} is {dtype}, wanted float32")
        if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
            outputs.append((name, shape))
            continue
        found[name] = shape
        (fewest, *_), _, (largest, *_) = engine.get_tensor_profile_shape(name, 0)
        if fewest > 1:
            raise ArtifactError(f"the engine takes no fewer than {fewest} rows of {name!r}, wanted one that takes 1")
        most.append(largest)
    wanted = (interface.output_dim,)
    if found != dict(interface.inputs) or [shape for _, shape in outputs] not in ([wanted], [(-1,)]):
        raise ArtifactError(
            f"the engine maps {found} to {dict(outputs)}, wanted {dict(interface.inputs)} to one output {wanted}"
        )
    return outputs[0][0], min(most)
