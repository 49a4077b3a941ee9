"""ONNX Runtime, on the CPU or a CUDA device; never silently on another device than asked for."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.artifacts.files import GIBIBYTE
from fct_infer.artifacts.foreign_code import foreign_code, said_by
from fct_infer.artifacts.manifest import is_image
from fct_infer.artifacts.onnx_file import read_onnx
from fct_infer.artifacts.onnx_signature import read_signature
from fct_infer.artifacts.roles import told
from fct_infer.backends.cuda_memory import CudaMemory, DeviceMemory
from fct_infer.backends.device import cuda_index
from fct_infer.backends.runner import Batch, DeviceBatch, Interface, Runner
from fct_infer.device_arrays import DeviceRows
from fct_infer.errors import ArtifactError, UnsupportedError, import_error
from fct_infer.transformation import Float32Array

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_DEVICE_TYPE = "cuda"  # of memory on a device
_TRIED_ROWS = 2
TRIAL_BYTES = GIBIBYTE  # for what a model computes of two rows, beside its weights
TRIAL_SECONDS = 15.0
MAX_OUTPUT_DIM = 1 << 16


class OnnxRuntimeRunner(Runner):
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file, weights in files beside it included; inputs and output may have any names, rows may be (n, d)
            or (n, d, 1, 1).
        precision: of the file; what the runtime lacks on the device is refused.
        device: ``auto`` is the first CUDA device if the runtime can use one, else the CPU.
        threads: CPU threads of one call; None leaves it to the runtime.
        old_first: its inputs in the order old, side, where their names do not tell.
        self_contained: refuse weights in other files.

    Attributes:
        sha256: of the model with all its weights.

    Raises:
        ArtifactError: the runtime refuses the file.
        UnsupportedError: the device or the precision cannot be had here.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        precision: str = "fp32",
        device: str = "auto",
        threads: int | None = None,
        old_first: Sequence[str] | None = None,
        self_contained: bool = False,
    ) -> None:
        runtime = _import_onnxruntime()
        model, data = read_onnx(path, self_contained=self_contained)
        inputs = read_signature(model, path, old_first)
        del model
        self.sha256 = hashlib.sha256(data).hexdigest()
        has_cuda = _CUDA in runtime.get_available_providers()
        index = (0 if has_cuda else None) if device == "auto" else cuda_index(device)
        if index is not None and not has_cuda:
            raise UnsupportedError(f"device {device}: this ONNX Runtime has no CUDA; pip install 'fct-infer[gpu]'")
        if index is None and precision == "bf16":
            raise UnsupportedError("ONNX Runtime has no bf16 on the CPU; use fp32, or a CUDA device")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = threads or 0
        if precision == "fp8":  # its optimizer fuses Q/DQ into a product that it has for int8 only
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        zeros = {each.name: np.zeros((_TRIED_ROWS, *each.shape), np.float32) for each in inputs.values()}
        tried = _try_out(runtime, path, data, zeros, index, threads)
        session = _open(runtime, path, data, options, index)
        if index is not None and session.get_providers()[0] != _CUDA:
            if device != "auto":
                raise UnsupportedError(
                    f"device {device}: ONNX Runtime fell back to the CPU; are driver and cuDNN there?"
                )
            index = None
        self._session, self._inputs = session, inputs
        self.assignment = told([each.name for each in inputs.values()], list(inputs))
        self._output_row, self._output_dtype = tried.shape[1:], tried.dtype
        self.device = "cpu" if index is None else f"cuda:{index}"
        self.runtime = f"onnxruntime {runtime.__version__} {self.device}"
        outer = {name: each.shape if is_image(each.shape) else each.shape[:1] for name, each in inputs.items()}
        self.interface = Interface(outer, tried.size // _TRIED_ROWS)

    def run(self, batch: Batch) -> Float32Array:
        """Compute one batch; see :meth:`Runner.run`."""
        feed = {each.name: batch[name].reshape(-1, *each.shape) for name, each in self._inputs.items()}
        rows = len(next(iter(batch.values())))
        with foreign_code(f"{self.runtime}: does not run on a batch of {rows} rows"):
            output = np.asarray(self._session.run(None, feed)[0])
        return np.ascontiguousarray(output.reshape(len(output), -1), np.float32)

    def run_on_device(self, batch: DeviceBatch, out: DeviceRows, stream: int) -> None:
        """Compute one batch on the device; see :meth:`Runner.run_on_device`. The result is there when it returns.

        A session computes on streams of its own, and a call ends by waiting for them unless it is told not to. So all
        that is left to do is to wait for the caller's stream.
        """
        device_number = self.device_number
        if self._output_dtype != np.float32:
            raise UnsupportedError(
                f"this model makes {self._output_dtype}; ONNX Runtime fills only float32 on a device"
            )
        binding = self._session.io_binding()
        for name, each in self._inputs.items():
            shape = (out.rows, *each.shape)
            binding.bind_input(each.name, _DEVICE_TYPE, device_number, np.float32, shape, batch[name].address)
        (output,) = self._session.get_outputs()
        binding.bind_output(
            output.name, _DEVICE_TYPE, device_number, np.float32, (out.rows, *self._output_row), out.address
        )
        with self._memory.current():
            self._memory.synchronize(stream)
        with foreign_code(f"{self.runtime}: does not run on a batch of {out.rows} rows"):
            self._session.run_with_iobinding(binding)

    @functools.cached_property
    def _memory(self) -> DeviceMemory:
        return CudaMemory(self.device_number)


def _try_out(
    runtime: Any, path: Path, data: bytes, zeros: dict[str, Any], index: int | None, threads: int | None
) -> NDArray[Any]:
    """Run rows of zeros with bounded memory and time, and return the output, whose shape no graph need state.

    A few nodes in a small file can ask for terabytes, or for hours. The optimizer, which would run whatever does not
    depend on the inputs without any bounds, is left out here and gets the graph only once all its nodes have run.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # none: the errors are raised
    options.intra_op_num_threads = threads or 0
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    _bound_memory(runtime)
    session = _open(runtime, path, data, options, index)
    run = runtime.RunOptions()
    run.log_severity_level = 4
    run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    timer = threading.Timer(TRIAL_SECONDS, lambda: setattr(run, "terminate", True))
    timer.start()
    try:
        output = np.asarray(session.run(None, zeros, run)[0])
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        reason = f"still runs after {TRIAL_SECONDS:.0f} s" if run.terminate else said_by(error)
        raise ArtifactError(f"{path}: ONNX Runtime cannot run it on {_TRIED_ROWS} rows of zeros: {reason}") from error
    finally:
        timer.cancel()
    dim = output.size // _TRIED_ROWS
    if output.dtype.kind != "f" or output.shape[:1] != (_TRIED_ROWS,) or not 1 <= dim <= MAX_OUTPUT_DIM:
        raise ArtifactError(f"{path}: makes {output.dtype} {output.shape} of {_TRIED_ROWS} rows, wanted float (n, d)")
    return output


@functools.cache
def _bound_memory(runtime: Any) -> None:
    """Set up, once for the process, the memory that trials share."""
    place = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    same_as_asked = 1  # instead of the next power of two
    limits = runtime.OrtArenaCfg({"max_mem": TRIAL_BYTES, "arena_extend_strategy": same_as_asked})
    runtime.create_and_register_allocator(place, limits)


def _open(runtime: Any, path: Path, data: bytes, options: Any, index: int | None) -> Any:
    providers = [_CPU] if index is None else [(_CUDA, {"device_id": index}), _CPU]
    try:
        return runtime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # as above
        raise ArtifactError(f"{path}: ONNX Runtime refuses it: {said_by(error)}") from error


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise import_error("onnxruntime", "cpu", error) from error
    return onnxruntime
