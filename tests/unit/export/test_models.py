from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from support.onnx_models import onnx_model, run_onnx, saved, weights
from support.outputs import assert_within, reference, relative_error, rows_for
from support.programs import examples
from support.torch_models import PublicTransformation, TinyBackbone, exported, outputs, randomized, scripted
from torch import nn

from fct_infer.artifacts.torch_files import TorchModel, load_torch
from fct_infer.backends.runner import Interface
from fct_infer.errors import ArtifactError, UnsupportedError
from fct_infer.export.models import ModuleModel, OnnxModel, ProgramModel

COLUMNS = {"old": (8, 1, 1), "side": (5, 1, 1)}


@pytest.fixture(scope="module")
def public():
    return randomized(PublicTransformation(8, 5, 6, 20))


@pytest.mark.parametrize("name", examples())
def test_a_program_answers_in_float64_and_becomes_both_others(name):
    program = examples()[name]
    model, rows = ProgramModel(program), rows_for(program.dims, 7)
    wanted = reference(program, rows)
    np.testing.assert_array_equal(model.run(rows), wanted)
    assert model.run(rows).dtype == np.float64
    assert relative_error(outputs(model.to_module(), *rows.values()), wanted) <= 1e-5
    assert relative_error(run_onnx(model.to_onnx(), **rows), wanted) <= 1e-5
    assert (model.kind, model.digest, model.program) == ("transformation", program.digest, program)


def test_a_module_with_another_layout_takes_and_makes_plain_rows(public):
    model = ModuleModel("transformation", TorchModel("h", public, 2), COLUMNS)
    assert model.interface == Interface({"old": (8,), "side": (5,)}, 6)
    rows = rows_for(model.interface.inputs, 7)
    wanted = outputs(public, *(array[..., None, None] for array in rows.values()))
    np.testing.assert_array_equal(model.run(rows), wanted)
    np.testing.assert_array_equal(outputs(model.to_module(), *rows.values()), wanted)
    assert_within(run_onnx(model.to_onnx(), **rows), wanted, "fp32")


def test_a_module_is_copied_and_its_own_mode_and_type_do_not_matter(public):
    other = PublicTransformation(8, 5, 6, 20)
    other.load_state_dict(public.state_dict())
    other.double().train()
    model = ModuleModel("transformation", TorchModel("h", other, 2), COLUMNS)
    before, digest = model.run(rows_for(model.interface.inputs, 7)), model.digest
    nn.init.zeros_(other.mixer[0].conv.weight)
    np.testing.assert_array_equal(model.run(rows_for(model.interface.inputs, 7)), before)
    assert other.training and next(other.parameters()).dtype == torch.float64
    assert digest == ModuleModel("transformation", TorchModel("h", public, 2), COLUMNS).digest
    assert digest != ModuleModel("transformation", TorchModel("h", other, 2), COLUMNS).digest


@pytest.mark.parametrize("precision", ["scripted", "pt2"])
def test_archives_become_modules_and_graphs(tmp_path, public, precision):
    examples_in = (torch.zeros(2, 8, 1, 1), torch.zeros(2, 5, 1, 1))
    save = {"scripted": scripted, "pt2": lambda module, path: exported(module, path, *examples_in)}[precision]
    archive = load_torch(save(public, tmp_path / "h.pt"))
    model = ModuleModel("transformation", archive, COLUMNS)
    rows = rows_for(model.interface.inputs, 7)
    wanted = outputs(public, *(array[..., None, None] for array in rows.values()))
    assert_within(outputs(model.to_module(), *rows.values()), wanted, "fp32")
    assert_within(run_onnx(model.to_onnx(), **rows), wanted, "fp32")


def test_writing_onnx_moves_no_batch_norm_statistics(tmp_path, public):
    """PyTorch's exporter runs TorchScript in training mode."""
    archive = load_torch(scripted(public, tmp_path / "h.pt"))
    model = ModuleModel("transformation", archive, COLUMNS)
    before, rows = model.digest, rows_for(model.interface.inputs, 7)
    wanted = model.run(rows)
    model.to_onnx()
    np.testing.assert_array_equal(model.run(rows), wanted)
    assert ModuleModel("transformation", archive, COLUMNS).digest == before


def test_a_graph_answers_in_onnx_runtime_and_is_no_module(tmp_path):
    sigmoid = onnx.helper.make_node("Sigmoid", ["a"], ["y"])
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["a"]), sigmoid]
    path = saved(onnx_model(nodes, {"x": ["N", 8]}, {"y": ["N", 6]}, weights(w=(8, 6))), tmp_path / "h.onnx")
    model = OnnxModel("transformation", path)
    rows = rows_for({"old": 8}, 7)
    wanted = run_onnx(onnx.load(str(path)), x=rows["old"])
    assert_within(model.run(rows), wanted, "fp32")
    assert_within(run_onnx(model.to_onnx(), **rows), wanted, "fp32")
    with pytest.raises(UnsupportedError, match="cannot be made a PyTorch model"):
        model.to_module()


def test_a_module_that_is_no_model_is_refused():
    with pytest.raises(ArtifactError, match="Linear: does not run on inputs of shape 8x1x1 and 5x1x1"):
        ModuleModel("transformation", TorchModel("Linear", nn.Linear(8, 3), 2), COLUMNS)
    with pytest.raises(ArtifactError, match=r"Sequential: makes \(2, 24, 2, 1\) of 2 rows, wanted \(n, d\)"):
        headless = nn.Sequential(*list(TinyBackbone().children())[:-1])
        ModuleModel("backbone", TorchModel("Sequential", headless, 1), {"image": (3, 8, 4)})
