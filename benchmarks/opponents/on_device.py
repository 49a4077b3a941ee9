"""What a user would pick for rows that lie on a device already.

Each is a function (program, precision, sets) -> calls, one for each set of rows. A call returns the result, or fills
the set's ``out`` where the runtime can write there. NotMeasuredError says why one cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.device_clock import Call, RowSet
from benchmarks.opponents import NotMeasuredError
from benchmarks.opponents.torch_eager import DTYPES
from fct_infer.errors import FctError
from fct_infer.export.graphs.low_precision import lower
from fct_infer.export.graphs.program_graph import program_graph
from fct_infer.export.plain_module import Lowered
from fct_infer.export.program_module import ProgramModule
from fct_infer.transformation import Program

LOW = {**DTYPES, "fp16": torch.float16}
WARM_UPS = 3  # before a graph is captured, as PyTorch's manual asks


def module_of(program: Program, precision: str, device: torch.device) -> nn.Module:
    """Return a program as a module on a device: float32 in and out, everything between in ``precision``."""
    if precision == "fp8":
        raise NotMeasuredError("PyTorch: nn.Linear has no fp8")
    module: nn.Module = ProgramModule(program).eval()
    if precision in LOW:
        module = Lowered(module, LOW[precision])
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return module.to(device).eval()


def eager(program: Program, precision: str, sets: Sequence[RowSet]) -> list[Call]:
    """PyTorch, layer by layer."""
    module = module_of(program, precision, sets[0].old.device)
    return [partial(torch.inference_mode()(module), rows.old, rows.side) for rows in sets]


@torch.inference_mode()
def compiled(program: Program, precision: str, sets: Sequence[RowSet]) -> list[Call]:
    """torch.compile, tuned as far as it goes."""
    if not sets[0].old.is_cuda:
        raise NotMeasuredError("torch.compile: max-autotune is for devices")
    torch._dynamo.reset()
    # Without graphs of its own: those would copy every input to where they were captured.
    module = torch.compile(
        module_of(program, precision, sets[0].old.device), mode="max-autotune-no-cudagraphs", dynamic=False
    )
    try:
        module(sets[0].old, sets[0].side)
    except Exception as error:  # whatever the compiler behind it raises
        raise NotMeasuredError(f"torch.compile: {str(error).strip().splitlines()[0]}") from error
    return [partial(torch.inference_mode()(module), rows.old, rows.side) for rows in sets]


@torch.inference_mode()
def graphs(program: Program, precision: str, sets: Sequence[RowSet]) -> list[Call]:
    """CUDA graphs of PyTorch, one for each set of rows, all in one pool of memory."""
    if not sets[0].old.is_cuda:
        raise NotMeasuredError("CUDA graphs: need a device")
    module = module_of(program, precision, sets[0].old.device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            module(sets[0].old, sets[0].side)
    torch.cuda.current_stream().wait_stream(stream)
    pool = torch.cuda.graph_pool_handle()
    return [_captured(module, rows, pool) for rows in sets]


def _captured(module: nn.Module, rows: RowSet, pool: Any) -> Call:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = module(rows.old, rows.side)

    def call() -> Tensor:
        graph.replay()
        return result

    return call


def onnx_runtime(program: Program, precision: str, sets: Sequence[RowSet]) -> list[Call]:
    """ONNX Runtime, inputs and outputs bound to where the rows lie, on PyTorch's stream."""
    import onnxruntime

    on_device = sets[0].old.is_cuda
    provider = "CUDAExecutionProvider" if on_device else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise NotMeasuredError("ONNX Runtime: the one installed is built without CUDA; onnxruntime-gpu has it")
    stream = torch.cuda.current_stream().cuda_stream if on_device else 0
    options = {"use_tf32": int(precision == "tf32"), "user_compute_stream": str(stream)} if on_device else {}
    session = onnxruntime.InferenceSession(_graph(program, precision), providers=[(provider, options)])
    if session.get_providers()[0] != provider:  # it goes on without the device, and without a word
        raise NotMeasuredError("ONNX Runtime: cannot use the device")
    run = onnxruntime.RunOptions()
    if on_device:
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")
    place, number = sets[0].old.device.type, sets[0].old.device.index or 0
    calls: list[Call] = []
    for rows in sets:
        binding = session.io_binding()
        for name, tensor in (("old", rows.old), ("side", rows.side)):
            binding.bind_input(name, place, number, np.float32, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output(
            session.get_outputs()[0].name, place, number, np.float32, tuple(rows.out.shape), rows.out.data_ptr()
        )
        calls.append(partial(session.run_with_iobinding, binding, run))
    return calls


def tensorrt(program: Program, precision: str, sets: Sequence[RowSet]) -> list[Call]:
    """TensorRT, an engine tuned for just so many rows."""
    if not sets[0].old.is_cuda:
        raise NotMeasuredError("TensorRT: needs a device")
    try:
        import tensorrt as trt
    except ImportError as error:
        raise NotMeasuredError(f"TensorRT: {error}") from error
    from fct_infer.backends.tensorrt_runtime import build_engine

    count = len(sets[0].old)
    try:
        built = build_engine(trt, _graph(program, precision), rows=(count, count, count), tf32=precision == "tf32")
    except FctError as error:
        raise NotMeasuredError(f"TensorRT: {error}") from error
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(built.data)
    return [_engine_call(engine, rows) for rows in sets]


def _engine_call(engine: Any, rows: RowSet) -> Call:
    context = engine.create_execution_context()
    tensors = {"old": rows.old, "side": rows.side}
    for name, tensor in tensors.items():
        context.set_input_shape(name, tuple(tensor.shape))
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        context.set_tensor_address(name, tensors.get(name, rows.out).data_ptr())
    return lambda: context.execute_async_v3(torch.cuda.current_stream().cuda_stream)


def _graph(program: Program, precision: str) -> bytes:
    if precision == "fp8":
        raise NotMeasuredError("ONNX: an fp8 graph wants calibration, which fct-export does; not compared here")
    model = program_graph(program)
    return bytes((lower(model, precision) if precision in LOW else model).SerializeToString())


ON_DEVICE: dict[str, Callable[[Program, str, Sequence[RowSet]], list[Call]]] = {
    "torch eager": eager,
    "CUDA graphs": graphs,
    "ONNX Runtime": onnx_runtime,
    "TensorRT": tensorrt,
    "torch.compile": compiled,
}
