"""Modules whose code fails somewhere: every failure is one typed line, and says whose fault it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.programs import random_rows
from torch import nn

import fct_infer
from fct_infer.embedding import embed_gallery
from fct_infer.errors import ArtifactError, ResourceError, UsageError
from fct_infer.export import Options, export_backbone, export_transformation
from fct_infer.export.user_files import export_file

ONNX = Options(("onnx",))


class Layer(nn.Module):
    """A linear layer, and what ``then`` makes of its output."""

    def __init__(self, then=torch.tanh):
        super().__init__()
        self.layer, self.then = nn.Linear(8, 6), then

    def forward(self, x):
        return self.then(self.layer(x))


class Raising(Layer):
    """Raises in one of the methods of a module."""

    def __init__(self, method):
        super().__init__()

        def fail(*_arguments, **_keywords):
            raise ValueError("not\nhere")

        object.__setattr__(self, method, fail)


class NoForward(nn.Module):
    @property
    def forward(self):
        raise ZeroDivisionError


def raising(error, most_rows=0):
    def then(x):
        if len(x) > most_rows:
            raise error
        return torch.tanh(x)

    return Layer(then)


def quantized():
    return torch.ao.quantization.quantize_dynamic(Layer().eval(), {nn.Linear})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (lambda: Layer().to("meta"), ArtifactError, "layer.weight is on the meta device"),
        (quantized, ArtifactError, "has a quantized Linear; export the float model"),
        (lambda: Raising("eval"), ArtifactError, "cannot be brought to .* eval mode: not here"),
        (lambda: Raising("state_dict"), ArtifactError, "its weights cannot be read: not here"),
        (lambda: Raising("named_parameters"), ArtifactError, "does not tell its weights: not here"),
        (lambda: Raising("__deepcopy__"), ArtifactError, "cannot be copied .*: not here"),
        (NoForward, ArtifactError, "its forward does not tell its inputs"),
        (lambda: raising(SystemExit(3)), ArtifactError, "does not run on inputs of shape .*: SystemExit 3"),
        (lambda: raising(SystemExit(3), 3), ArtifactError, "does not run on a batch of 7 rows: SystemExit 3"),
        (lambda: raising(MemoryError()), ResourceError, "does not run on inputs of shape .*: MemoryError"),
        (lambda: raising(MemoryError(), 3), ResourceError, "does not run on a batch of 7 rows: MemoryError"),
        (lambda: raising(RuntimeError("too\nmany"), 3), ArtifactError, "does not run on a batch of 7 rows: too many"),
        (lambda: Layer(lambda x: x.long()), ArtifactError, "makes torch.int64, wanted floating-point"),
        (lambda: Layer(lambda x: torch.complex(x, x)), ArtifactError, "makes torch.complex64, wanted floating-point"),
        (lambda: Layer(lambda x: x[:, :0]), ArtifactError, r"makes \(2, 0\) of 2 rows"),
        (lambda: None, UsageError, "the source is a NoneType, wanted a torch.nn.Module or a Program"),
        (lambda: Layer.forward, UsageError, "the source is a function, wanted"),
        (lambda: Layer, UsageError, "the source is the class Layer, wanted"),
        (lambda: "model.pt", UsageError, "the source is a str, wanted .*export_file takes a file"),
    ],
)
def test_what_fails_is_one_typed_line(tmp_path, source, kind, message):
    with pytest.raises(kind, match=message) as found:
        export_transformation(source(), tmp_path / "h", ONNX, input_widths=(8,))
    assert "\n" not in str(found.value) and type(found.value) is kind
    assert not (tmp_path / "h").exists()


def test_parameters_that_cannot_be_listed(tmp_path):
    with pytest.raises(ArtifactError, match="does not tell its parameters: not here"):
        export_transformation(Raising("parameters"), tmp_path / "h", ONNX)


def test_ctrl_c_passes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export_transformation(raising(KeyboardInterrupt()), tmp_path / "h", ONNX, input_widths=(8,))


def test_an_image_model_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="the source is a NoneType"):
        export_backbone(None, tmp_path / "b", image_shape=(3, 8, 8))


class Normed(nn.Module):
    """Batch norm over the batch it gets, which one row alone cannot have."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x):
        return F.batch_norm(self.layer(x), None, None, training=True)


def test_scripted_batch_norm_over_the_batch_is_bad_input(tmp_path):
    torch.jit.script(Normed()).save(tmp_path / "m.pt")
    with pytest.raises(ArtifactError, match=r"does not run on a batch of 1 rows: .*more than 1 value per channel"):
        export_file(tmp_path / "m.pt", tmp_path / "h", ONNX, input_shapes=[(8,)])


class Stateful(Layer):
    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("make", [Stateful, lambda: torch.optim.swa_utils.AveragedModel(Layer())])
def test_extra_state_and_averaged_weights_are_exported(tmp_path, make):
    module, rows = make().eval(), random_rows(5, 8)
    export_transformation(module, tmp_path / "h", ONNX)
    with torch.no_grad():
        wanted = module(torch.from_numpy(rows)).numpy()
    found = fct_infer.load_transformation(tmp_path / "h", backend="onnxruntime")(rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_none_instead_of_a_model_is_told_what_to_pass(tmp_path):
    with pytest.raises(UsageError, match=r"h is a NoneType, wanted a Transformation \(load_"):
        fct_infer.upgrade_gallery(tmp_path, None, tmp_path / "new")
    with pytest.raises(UsageError, match="h is a NoneType, wanted a Transformation"):
        fct_infer.choose_precision(None, random_rows(3, 8))
    for load in (fct_infer.load_transformation, fct_infer.load_embedder, export_file):
        with pytest.raises(UsageError, match="the path of a model is a NoneType"):
            load(None)
    with pytest.raises(UsageError, match="a model is a NoneType, wanted an Embedder"):
        embed_gallery([tmp_path], tmp_path / "g", None)
