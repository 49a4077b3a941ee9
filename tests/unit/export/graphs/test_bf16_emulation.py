from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.onnx_models import saved
from support.outputs import relative_error, rows_for
from support.programs import examples, plain_mlp
from support.torch_models import TinyBackbone, randomized
from torch import Tensor

from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.export.graphs.bf16_emulation import EmulatedBf16Runner
from fct_infer.export.graphs.low_precision import lower
from fct_infer.export.models import ModuleModel, ProgramModel
from fct_infer.transformation import Add, Concat, Linear, Normalize, Program

ULP = 2**-8  # of bfloat16, relative


def rounded(values: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, as float32."""
    return values.to(torch.bfloat16).float()


def by_hand(program: Program, rows: dict[str, np.ndarray]) -> np.ndarray:
    """The program with operands and results of every layer rounded to bfloat16, sums in float32 or better."""
    values = {name: rounded(torch.from_numpy(array)) for name, array in rows.items()}
    for step in program.steps:
        match step:
            case Linear():
                weight, bias = (rounded(torch.from_numpy(array)) for array in (step.weight, step.bias))
                product = rounded((values[step.input].double() @ weight.double().T + bias).float())
                values[step.output] = {
                    "none": lambda x: x, "relu": F.relu, "gelu": lambda x: rounded(F.gelu(x))
                }[step.activation](product)  # fmt: skip
            case Concat():
                values[step.output] = torch.cat([values[name] for name in step.inputs], 1)
            case Add():
                values[step.output] = rounded(values[step.inputs[0]] + values[step.inputs[1]])
            case Normalize():
                x = values[step.input]
                norm = rounded(x.norm(dim=1, keepdim=True).clamp_min(1e-12))
                values[step.output] = rounded(x / norm)
    return values[program.output].numpy()


def emulated(model, tmp_path) -> EmulatedBf16Runner:
    return EmulatedBf16Runner(saved(lower(model.to_onnx(), "bf16"), tmp_path / "model.onnx"), model.interface)


@pytest.mark.parametrize("name", examples())
def test_equals_a_computation_by_hand(tmp_path, name):
    program = examples()[name]
    runner = emulated(ProgramModel(program), tmp_path)
    for count in (1, 2, 7, 200):
        rows = rows_for(program.dims, count)
        found, wanted = runner.run(rows), by_hand(program, rows)
        # Sums of another order can land on the other side of a rounding, which later layers carry on.
        assert relative_error(found, wanted) <= 4 * ULP
        assert (found == wanted).mean() >= 0.5


def test_every_result_is_a_bfloat16_number(tmp_path):
    program = plain_mlp(9, 4, 30, hidden=(20,))
    found = torch.from_numpy(emulated(ProgramModel(program), tmp_path).run(rows_for(program.dims, 50)))
    assert torch.equal(found, rounded(found))


def test_it_rounds_where_float32_would_not(tmp_path):
    """One layer has one rounding of each operand and of its result: exactly predictable."""
    program = examples()["linear_map"]
    rows = rows_for(program.dims, 300)
    found, wanted = emulated(ProgramModel(program), tmp_path).run(rows), by_hand(program, rows)
    assert (found == wanted).mean() > 0.99
    exact = torch.from_numpy(rows["old"]).double() @ torch.from_numpy(program.steps[0].weight).double().T
    assert relative_error(found, (exact + torch.from_numpy(program.steps[0].bias)).numpy()) > ULP / 4


def test_a_convolution_equals_pytorch_in_bfloat16(tmp_path):
    torch.manual_seed(0)
    module = randomized(TinyBackbone())
    model = ModuleModel("backbone", TorchModel("b", module, 1), {"image": (3, 16, 16)})
    runner = emulated(model, tmp_path)
    assert (runner.backend, runner.device) == ("onnxruntime", "cpu")
    assert runner.runtime.endswith("cpu, bf16 emulated")
    images = np.random.default_rng(3).standard_normal((20, 3, 16, 16), np.float32)
    with torch.no_grad():
        wanted = randomized(TinyBackbone()).load_state_dict(module.state_dict()) and module.to(torch.bfloat16)(
            torch.from_numpy(images).to(torch.bfloat16)
        )
    found = runner.run({"image": images})
    assert relative_error(found, wanted.float().flatten(1).numpy()) <= 4 * ULP
