from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fct_infer.errors import UsageError
from fct_infer.reference import apply_float64
from fct_infer.training.models.base import Backbone, TransformationModule
from fct_infer.training.models.folding import to_program
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.models.resnet import ResNet
from fct_infer.training.models.transformation import MlpTransformation, PaperTransformation

PUBLIC_PAPER_SHAPES = {
    "p1.0.conv.weight": (16, 8, 1, 1),
    "p1.1.conv.weight": (20, 16, 1, 1),
    "p2.0.conv.weight": (12, 6, 1, 1),
    "p2.1.conv.weight": (20, 12, 1, 1),
    "mixer.0.conv.weight": (32, 40, 1, 1),
    "mixer.1.conv.weight": (32, 32, 1, 1),
    "mixer.2.conv.weight": (10, 32, 1, 1),
    "mixer.2.conv.bias": (10,),
}


def trained_looking(module: TransformationModule, seed: int) -> TransformationModule:
    """Batch norm with statistics and scales as after a training, not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
                tensor.normal_(generator=generator)
            layer.running_var.uniform_(0.01, 4, generator=generator)
    return module.eval()


def test_the_papers_h_carries_the_public_checkpoints_names_and_shapes():
    state = PaperTransformation(old_dim=8, side_dim=6, new_dim=10, inner_dim=32).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if ".conv." in name}
    assert shapes == PUBLIC_PAPER_SHAPES
    normalizers = {name.split(".normalizer.")[0] for name in state if ".normalizer." in name}
    assert normalizers == {"p1.0", "p1.1", "p2.0", "p2.1", "mixer.0", "mixer.1"}


def test_the_papers_h_has_the_papers_arithmetic():
    program = to_program(PaperTransformation(128, 128, 128).eval())
    assert program.flops_per_row == pytest.approx(11.4e6, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(
    dims=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    inner=st.integers(1, 24),
    seed=st.integers(0, 1000),
)
def test_a_program_computes_what_the_papers_module_does(dims, inner, seed):
    torch.manual_seed(seed)
    check_program(trained_looking(PaperTransformation(*dims, inner_dim=inner), seed), seed)


@settings(max_examples=25, deadline=None)
@given(
    dims=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    hidden=st.lists(st.integers(1, 16), max_size=3),
    seed=st.integers(0, 1000),
)
def test_a_program_computes_what_the_mlp_does(dims, hidden, seed):
    torch.manual_seed(seed)
    check_program(trained_looking(MlpTransformation(*dims, hidden_dims=hidden), seed), seed)


def check_program(module: TransformationModule, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, side = (torch.randn(9, dim, generator=generator) for dim in (module.old_dim, module.side_dim))
    program = to_program(module)
    computed = apply_float64(program, old.numpy(), side.numpy())
    with torch.no_grad():
        expected = module.double()(old.double(), side.double()).numpy()
    assert program.dims == {"old": module.old_dim, "side": module.side_dim}
    # float32 weights with batch norm folded in: a few roundings of 6e-8 each, relative to the largest output.
    np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-5 * max(1.0, np.abs(expected).max()))


def test_a_module_in_training_mode_is_no_program():
    with pytest.raises(UsageError, match=r"\.eval\(\)"):
        to_program(PaperTransformation(2, 2, 2, inner_dim=4))


def test_an_embedding_is_a_non_negative_mean_over_the_image():
    model = ResNet(embedding_dim=24, widths=(4, 8), blocks=(1, 2)).eval()
    embedding = model(torch.rand(5, 3, 32, 32))
    assert embedding.shape == (5, 24)
    assert embedding.min() >= 0
    assert embedding.max() > 0


def test_the_stem_stride_quarters_the_arithmetic_of_all_that_follows():
    sizes = []
    for stride in (1, 2):
        model = ResNet(embedding_dim=8, widths=(4, 8), blocks=(1, 1), stem_stride=stride).eval()
        model.features.register_forward_hook(lambda *args: sizes.append(tuple(args[2].shape[2:])))
        model(torch.rand(1, 3, 32, 32))
    assert sizes == [(16, 16), (8, 8)]


def test_a_model_is_built_by_name():
    model = ModelSpec("resnet", {"embedding_dim": 8, "widths": [4], "blocks": [2]}).build(Backbone)
    assert isinstance(model, ResNet)
    assert model.embedding_dim == 8


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("resnest"), "unknown model 'resnest'"),
        (ModelSpec("resnet", {"embeding_dim": 8}), "embeding_dim"),
        (ModelSpec("resnet", {"embedding_dim": 8, "widths": [4], "blocks": [1, 1]}), "of one length"),
        (ModelSpec("paper", {"old_dim": 8, "side_dim": 8, "new_dim": 8}), "wanted a Backbone"),
        (ModelSpec("resnet", {"embedding_dim": -1}), "cannot be built"),
    ],
)
def test_a_model_that_does_not_exist_is_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        spec.build(Backbone)
