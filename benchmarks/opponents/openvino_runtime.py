"""OpenVINO on CPU: static shapes where rows are known, one infer request, its tensors are the caller's arrays."""

from __future__ import annotations

import openvino

from benchmarks.opponents import Apply
from fct_infer.export.graphs.program_graph import program_graph
from fct_infer.transformation import Float32Array, Program


def load(program: Program, precision: str, threads: int, rows: int | None) -> Apply:
    core = openvino.Core()
    model = core.read_model(program_graph(program).SerializeToString())
    if rows is not None:
        model.reshape({name: [rows, dim] for name, dim in program.dims.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # one call at a time that may use every core
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def apply(old: Float32Array, side: Float32Array, out: Float32Array) -> Float32Array:
        request.set_tensor("old", openvino.Tensor(old, shared_memory=True))
        request.set_tensor("side", openvino.Tensor(side, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(out, shared_memory=True))
        request.infer()
        return out

    return apply
