from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.programs import random_rows
from support.torch_models import (
    GatedTransformation,
    PublicTransformation,
    TinyBackbone,
    exported,
    randomized,
    scripted,
    traced,
)
from torch import Tensor, nn

from fct_infer.artifacts.loading import load_program
from fct_infer.errors import ArtifactError, NotAProgramError, UsageError
from fct_infer.reference import apply_float64


class Residual(nn.Module):
    def __init__(self, dim: int = 12):
        super().__init__()
        self.stem, self.norm, self.drop = nn.Linear(dim, 9), nn.BatchNorm1d(9), nn.Dropout(0.5)
        self.up, self.down = nn.Linear(9, 20), nn.Linear(20, 9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return F.normalize(x + self.drop(self.down(F.gelu(self.up(x)))))


class Arithmetic(nn.Module):
    """Constants on either side, in place, reshaped back and forth."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("scale", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (1 - self.layer(x * 2)) / self.scale
        x = x.unsqueeze(-1).unsqueeze(-1).add_(0.25).flatten(1)
        return torch.cat([x, x.relu_() * self.scale], dim=-1).clone()


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, old: Tensor, side: Tensor) -> Tensor:
        return self.layers(torch.cat([old, side], dim=1))


def assert_equals_torch(path, model: nn.Module, shapes: list[tuple[int, ...]], **options) -> None:
    program = load_program(path, trust=True, **options)
    rows = [random_rows(50, shape[0], seed) for seed, shape in enumerate(shapes)]
    with torch.no_grad():
        wanted = model(*(torch.from_numpy(x).reshape(-1, *shape) for x, shape in zip(rows, shapes, strict=True)))
    wanted = wanted.flatten(1).numpy()
    assert np.abs(apply_float64(program, *rows) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("save", [scripted, traced])
@pytest.mark.parametrize("seed", range(2))
def test_the_public_layout_with_random_batch_norm_statistics(tmp_path, save, seed):
    torch.manual_seed(seed)
    model = randomized(PublicTransformation(24, 10, 17, 70), seed)
    shapes = [(24, 1, 1), (10, 1, 1)]
    inputs = () if save is scripted else tuple(torch.randn(2, *shape) for shape in shapes)
    path = save(model, tmp_path / "h.pt", *inputs)
    assert_equals_torch(path, model, shapes)
    program = load_program(path, trust=True)
    assert program.dims == {"old": 24, "side": 10}
    assert [type(step).__name__ for step in program.steps] == [*["Linear"] * 4, "Concat", *["Linear"] * 3]


def test_a_frozen_archive_has_no_parameters_but_the_same_layers(tmp_path):
    model = randomized(PublicTransformation(8, 5, 6, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.freeze(torch.jit.script(model)).save(str(tmp_path / "h.pt"))
    with pytest.raises(UsageError, match="give the widths"):
        load_program(tmp_path / "h.pt", trust=True)
    assert_equals_torch(tmp_path / "h.pt", model, [(8, 1, 1), (5, 1, 1)], input_widths=(8, 5))


@pytest.mark.parametrize("save", [scripted, traced])
@pytest.mark.parametrize("make", [Residual, Arithmetic])
def test_other_layers(tmp_path, save, make):
    model = randomized(make())
    dim = next(model.parameters()).shape[1]
    path = save(model, tmp_path / "h.pt", *([] if save is scripted else [torch.randn(2, dim)]))
    assert_equals_torch(path, model, [(dim,)])


def test_inputs_that_meet_before_the_first_layer_need_their_widths(tmp_path):
    model = Concatenated().eval()
    path = scripted(model, tmp_path / "h.pt")
    with pytest.raises(UsageError, match=r"inputs meet before its first layer; give the widths.*--input-shape 128"):
        load_program(path, trust=True)  # 64 + 64 would run
    assert_equals_torch(path, model, [(96,), (32,)], input_widths=(96, 32))
    with pytest.raises(ArtifactError, match=r"h\.pt: does not run on inputs of shape \(3, 96\) and \(3, 33\): "):
        load_program(path, trust=True, input_widths=(96, 33))
    with pytest.raises(ArtifactError, match="takes 2 inputs, wanted 1"):
        load_program(path, trust=True, input_widths=(128,))


class DependsOnTheRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if x.shape[0] > 3:
            x = x * 2
        return x


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


class OneBatchSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] == 3
        return self.layer(x)


class ThreeInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a + b + c


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), *layers)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (sequence(nn.Sigmoid()), r"operation aten\.sigmoid\.default: no transformation program has this"),
        (sequence(nn.GELU(approximate="tanh")), r"aten\.gelu\.default"),
        (sequence(nn.LayerNorm(4)), "native_layer_norm"),
        (nn.Sequential(nn.Conv2d(6, 4, 1, groups=2)), "convolution"),
        (nn.Sequential(nn.Conv2d(6, 4, 1, padding=1)), "convolution with stride"),
        (TinyBackbone(), "convolution"),
        (DependsOnTheRows(), "depends on more than its layers"),
        (OneBatchSize(), r"does not run on inputs of shape \(7, 6\)"),
        (TwoOutputs(), "its output is not one tensor made from its inputs"),
        (ThreeInputs(), "takes 3 inputs, wanted 1 or 2"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_no_program_can_hold_is_named(tmp_path, model, message):
    path = scripted(randomized(model), tmp_path / "h.pt")
    widths = (6,) if isinstance(model, nn.Sequential) else None
    with pytest.raises(ArtifactError, match=rf"h\.pt: .*{message}"):
        load_program(path, trust=True, input_widths=widths)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = sequence(nn.ReLU())
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ArtifactError, match=r"h\.pt: .*finite"):
        load_program(scripted(model.eval(), tmp_path / "h.pt"), trust=True)


def test_assertions_of_an_export_archive_are_no_layers(tmp_path):
    class Cast(nn.Module):
        """PyTorch's exporter writes an assertion where a type is asked for that is there already."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.layer(x.float()).to(torch.float32))

    model = Cast().eval()
    path = exported(model, tmp_path / "h.pt2", torch.zeros(2, 6))
    assert "_assert_tensor_metadata" in str(torch.export.load(path).graph)
    assert_equals_torch(path, model, [(6,)])


def test_every_operation_that_no_program_has_is_named(tmp_path):
    path = scripted(GatedTransformation(6, 5, 4).eval(), tmp_path / "h.pt")
    with pytest.raises(NotAProgramError) as caught:
        load_program(path, trust=True)
    assert caught.value.where == str(path)
    named = [operation.split(":")[0] for operation in caught.value.operations]
    assert named == ["operation aten.native_layer_norm.default", "operation aten.sigmoid.default"]
