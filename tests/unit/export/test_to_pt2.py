from __future__ import annotations

import pytest
import torch
from support.outputs import assert_within, rows_for
from support.programs import examples
from support.torch_models import GatedTransformation, TinyBackbone, outputs, randomized, scripted, traced
from torch import Tensor, nn

from fct_infer.artifacts.torch_files import load_torch
from fct_infer.errors import UnsupportedError
from fct_infer.export import Options, export_backbone, export_transformation

PT2 = Options(("pt2",), ("fp32", "bf16"))


def test_the_archive_takes_any_batch_and_only_its_widths(tmp_path):
    export_transformation(examples()["gelu_mlp"], tmp_path / "h", PT2)
    for name in ("model.pt2", "model.bf16.pt2"):
        program = torch.export.load(tmp_path / "h" / name)
        shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"][-2:]
        assert [shape[1] for shape in shapes] == [7, 3]
        assert not any(isinstance(shape[0], int) for shape in shapes)
    module = load_torch(tmp_path / "h" / "model.pt2").module
    for rows in (1, 2, 7, 4096):
        assert module(torch.zeros(rows, 7), torch.zeros(rows, 3)).shape == (rows, 5)
    with pytest.raises((RuntimeError, AssertionError)):
        module(torch.zeros(2, 8), torch.zeros(2, 3))


def test_bf16_weights_are_bf16_and_rows_float32(tmp_path):
    export_transformation(examples()["gelu_mlp"], tmp_path / "h", PT2)
    module = load_torch(tmp_path / "h" / "model.bf16.pt2", low_precision=True).module
    assert {tensor.dtype for tensor in module.parameters()} == {torch.bfloat16}
    assert module(torch.zeros(2, 7), torch.zeros(2, 3)).dtype == torch.float32


@pytest.mark.parametrize("save", [scripted, lambda *args: traced(*args, torch.zeros(2, 8), torch.zeros(2, 5))])
def test_torchscript_becomes_an_export_archive(tmp_path, save):
    model = GatedTransformation(8, 5, 6).eval()
    module = load_torch(save(model, tmp_path / "h.pt")).module
    export_transformation(module, tmp_path / "h", PT2)
    rows = rows_for({"old": 8, "side": 5}, 7)
    found = load_torch(tmp_path / "h" / "model.pt2").module
    assert_within(outputs(found, *rows.values()), outputs(model, *rows.values()), "fp32")


def test_a_scripted_backbone_whose_batch_norm_asks_for_its_mode(tmp_path):
    torch.manual_seed(0)
    model = randomized(TinyBackbone())
    module = load_torch(scripted(model, tmp_path / "b.pt")).module
    assert "prim::If" in str(module.inlined_graph)
    export_backbone(module, tmp_path / "b", Options(("pt2",)), image_shape=(3, 8, 8))
    images = torch.randn(5, 3, 8, 8).numpy()
    found = outputs(load_torch(tmp_path / "b" / "model.pt2").module, images)
    assert_within(found, outputs(model, images), "fp32")


class Branches(nn.Module):
    """What it runs depends on the numbers, what it makes does not."""

    def forward(self, image: Tensor) -> Tensor:
        pooled = image.mean(dim=(2, 3))
        return pooled if pooled.sum() > 0 else pooled * 1.0


def test_a_module_that_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="target pt2, fp32: PyTorch cannot export the model: "):
        export_backbone(Branches(), tmp_path / "b", Options(("pt2",)), image_shape=(3, 8, 8))
    assert not (tmp_path / "b").exists()
