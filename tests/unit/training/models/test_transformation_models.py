"""Every transformation module and the program it becomes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import examples, random_rows
from torch import nn

from fct_infer.errors import UsageError
from fct_infer.reference import apply_float64
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.training.models.program import ProgramTransformation, program_arguments
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.models.transformation import LayeredTransformation

SPECS = {
    "paper": {"inner_dim": 12},
    "paper, deep": {"inner_dim": 12, "branch_depth": 3, "mixer_depth": 4},
    "paper, flat": {"inner_dim": 12, "branch_depth": 1, "mixer_depth": 1},
    "mlp": {"hidden_dims": [9, 7]},
    "residual_mlp": {"width": 10, "inner_dim": 14, "blocks": 2},
    "residual_mlp, no blocks": {"width": 10, "blocks": 0},
    "linear": {},
}


def built(name: str, dims=(6, 5, 8), uncertainty=False, seed=0) -> LayeredTransformation:
    """A module as after a training: batch norm has statistics, and no weight is zero."""
    arguments = dict(zip(("old_dim", "side_dim", "new_dim"), dims, strict=True)) | SPECS[name]
    torch.manual_seed(seed)
    spec = ModelSpec(name.partition(",")[0], arguments | {"uncertainty": uncertainty})
    module = spec.build(LayeredTransformation)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.1, 4)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.3)
    return module.eval()


def rows_for(module: TransformationModule) -> tuple[torch.Tensor, torch.Tensor | None]:
    old, side = random_rows(9, module.old_dim, 1), random_rows(9, module.side_dim or module.old_dim, 2)
    return torch.from_numpy(old), torch.from_numpy(side) if module.side_dim else None


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SPECS)),
    dims=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9)),
    seed=st.integers(0, 999),
)
def test_a_module_and_its_program_agree(name, dims, seed):
    module = built(name, dims, uncertainty=True, seed=seed)
    old, side = rows_for(module)
    with torch.no_grad():
        expected, log_variance = module.double().with_uncertainty(old.double(), None if side is None else side.double())
    for program, values in ((to_program(module), expected), (to_uncertainty_program(module), log_variance[:, None])):
        found = apply_float64(program, old.numpy(), None if side is None else side.numpy())
        np.testing.assert_allclose(found, values.numpy(), rtol=0, atol=2e-5 * max(1.0, float(values.abs().max())))
        assert program.dims == {"old": dims[0]} | ({"side": dims[1]} if dims[1] else {})


@pytest.mark.parametrize("name", SPECS)
def test_without_side_information_the_other_input_is_not_looked_at(name):
    module = built(name, (6, 0, 8))
    old, other = torch.randn(4, 6), torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(module(old), module(old, other), rtol=0, atol=0)


def test_without_side_information_the_papers_h_reads_the_old_embedding_twice():
    with_side, without = built("paper", (6, 6, 8), seed=3), built("paper", (6, 0, 8), seed=3)
    old = torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(with_side(old, old), without(old), rtol=0, atol=0)


def test_the_uncertainty_head_leaves_the_weights_of_h_as_they_are_drawn():
    plain, uncertain = built("paper", seed=5).state_dict(), built("paper", uncertainty=True, seed=5).state_dict()
    assert set(uncertain) - set(plain) == {"uncertainty.weight", "uncertainty.bias"}
    assert all(torch.equal(tensor, uncertain[name]) for name, tensor in plain.items() if "conv" in name)


@pytest.mark.parametrize("name", SPECS)
def test_the_uncertainty_is_a_linear_map_of_hs_output(name):
    module = built(name, uncertainty=True)
    with torch.no_grad():
        new, log_variance = module.with_uncertainty(*rows_for(module))
        torch.testing.assert_close(new, module(*rows_for(module)), rtol=0, atol=0)
        torch.testing.assert_close(log_variance, module.uncertainty(new).squeeze(1))


def test_fastfills_h_has_as_many_parameters_as_the_public_one():
    arguments = {"old_dim": 384, "side_dim": 384, "new_dim": 768, "uncertainty": True}
    with torch.device("meta"):
        module = ModelSpec("paper", arguments).build(LayeredTransformation)
    assert sum(parameter.numel() for parameter in module.parameters()) == 15_026_689


def test_a_residual_mlp_begins_as_a_linear_map():
    torch.manual_seed(0)
    module = ModelSpec("residual_mlp", {"old_dim": 4, "side_dim": 3, "new_dim": 5}).build(LayeredTransformation).eval()
    first, second = ((torch.randn(6, 4), torch.randn(6, 3)) for _ in range(2))
    zero = (torch.zeros(6, 4), torch.zeros(6, 3))
    with torch.no_grad():
        both = module(first[0] + second[0], first[1] + second[1]) + module(*zero)
        torch.testing.assert_close(both, module(*first) + module(*second))


@pytest.mark.parametrize("name", examples())
def test_any_program_is_a_module_that_can_be_saved_and_loaded(name, tmp_path):
    program = examples()[name]
    module = ProgramTransformation.of(program)
    inputs = {key: random_rows(7, dim, seed) for seed, (key, dim) in enumerate(program.dims.items())}
    with torch.no_grad():
        found = module.double()(*(torch.from_numpy(each).double() for each in inputs.values())).numpy()
    np.testing.assert_allclose(found, apply_float64(program, **inputs), rtol=1e-9, atol=1e-9)
    arguments = json.loads(json.dumps(program_arguments(program)))
    save_checkpoint(tmp_path / "h", ProgramTransformation.of(program), ModelSpec("program", arguments), {})
    loaded, _ = load_checkpoint(tmp_path / "h", TransformationModule)
    assert to_program(loaded).digest == program.digest
    assert (loaded.old_dim, loaded.new_dim) == (program.dims["old"], program.new_dim)


def linear_of(width: int) -> dict:
    step = {"op": "linear", "input": "old", "output": "x", "activation": "none"}
    return {"structure": {"inputs": {"old": width}, "steps": [step], "output": "x"}, "widths": {"x": width}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": {}, "widths": {}}, "malformed program"),
        ({"structure": {"inputs": {"old": 2}, "steps": [{"op": "linear"}], "output": "x"}, "widths": {}}, "malformed"),
        ({"structure": {"inputs": {"old": 2}, "steps": [], "output": "x"}, "widths": {}}, "no step produces"),
        ({"structure": None, "widths": {}}, "cannot be built"),
        (linear_of(1 << 40), "cannot be built"),
    ],
)
def test_a_malformed_program_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        ModelSpec("program", arguments).build(TransformationModule)


def test_depths_below_one_are_refused():
    arguments = {"old_dim": 2, "side_dim": 2, "new_dim": 2, "mixer_depth": 0}
    with pytest.raises(UsageError, match="wanted at least 1"):
        ModelSpec("paper", arguments).build(TransformationModule)


def test_an_uncertainty_program_needs_the_head():
    with pytest.raises(UsageError, match="no uncertainty head"):
        to_uncertainty_program(built("paper"))
    with pytest.raises(UsageError, match=r"\.eval\(\)"):
        to_uncertainty_program(built("paper", uncertainty=True).train())
