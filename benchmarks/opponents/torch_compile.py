"""torch.compile (inductor), one static graph per row count, weights frozen and packed."""

from __future__ import annotations

import torch
import torch._inductor.config
import torch._inductor.exc

from benchmarks.opponents import Apply, NotMeasuredError
from benchmarks.opponents.torch_eager import program_module
from fct_infer.transformation import Float32Array, Program

torch._inductor.config.freezing = True


def load(program: Program, precision: str, threads: int, rows: int | None) -> Apply:
    if rows is None:
        raise NotMeasuredError("torch.compile: one graph for any number of rows is not what it is good at")
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    module = torch.compile(program_module(program, precision), dynamic=False)

    @torch.no_grad()
    def apply(old: Float32Array, side: Float32Array, out: Float32Array) -> Float32Array:
        result: Float32Array = module(torch.from_numpy(old), torch.from_numpy(side)).numpy()
        return result

    example = [torch.zeros(rows, dim) for dim in program.dims.values()]
    try:
        with torch.no_grad():
            module(*example)
    except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.InductorError) as error:
        raise NotMeasuredError(f"torch.compile: {str(error).strip().splitlines()[0]}") from error
    return apply
