"""ONNX Runtime on CPU, inputs and outputs bound to the caller's arrays."""

from __future__ import annotations

import numpy as np
import onnxruntime

from benchmarks.opponents import Apply, NotMeasuredError
from fct_infer.export.graphs.program_graph import program_graph
from fct_infer.transformation import Float32Array, Program


def load(program: Program, precision: str, threads: int, rows: int | None) -> Apply:
    if precision != "fp32":
        raise NotMeasuredError(f"ONNX Runtime: has no {precision} kernels for x86 CPUs")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        program_graph(program).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output = session.get_outputs()[0].name
    binding = session.io_binding()

    def apply(old: Float32Array, side: Float32Array, out: Float32Array) -> Float32Array:
        binding.bind_cpu_input("old", old)
        binding.bind_cpu_input("side", side)
        binding.bind_output(output, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        session.run_with_iobinding(binding)
        return out

    return apply
