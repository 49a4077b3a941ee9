from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.programs import examples, linear_map, paper_h, plain_mlp, random_rows
from support.torch_models import PublicTransformation, randomized, scripted

from fct_infer.artifacts.bundle import open_bundle
from fct_infer.artifacts.loading import load_program
from fct_infer.artifacts.torchscript import load_torchscript
from fct_infer.errors import ArtifactError, GateError, OutputError, UnsupportedError, UsageError
from fct_infer.export import to_core, to_onnx
from fct_infer.export.exporting import export_transformation
from fct_infer.reference import apply_float64
from fct_infer.transformation import Linear, Program

TARGETS = ("core", "onnx", "torchscript")
PROGRAM = plain_mlp(7, 3, 5, hidden=(4,))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name, program in examples().items():
        export_transformation(program, folder / name, targets=TARGETS)
    return folder


@pytest.fixture(scope="module", params=examples())
def exported(request, bundles):
    """A program and its bundle with all targets."""
    return examples()[request.param], bundles / request.param


def inputs_for(program: Program, rows: int) -> dict[str, np.ndarray]:
    return {name: random_rows(rows, dim, seed) for seed, (name, dim) in enumerate(program.dims.items())}


def reference(program: Program, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return apply_float64(program, inputs["old"], inputs.get("side"))


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_bundle_gives_back_the_program_exactly(exported):
    program, bundle = exported
    assert load_program(bundle).digest == program.digest
    assert {file.target for file in open_bundle(bundle).manifest.files} == set(TARGETS)


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_onnx_runtime_agrees_at_any_batch_size(exported, rows):
    program, bundle = exported
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = inputs_for(program, rows)
    assert_close(session.run(["embedding"], inputs)[0], reference(program, inputs))


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_torchscript_agrees_at_any_batch_size(exported, rows):
    program, bundle = exported
    module, inputs = load_torchscript(bundle / "model.pt"), inputs_for(program, rows)
    with torch.inference_mode():
        found = module(*map(torch.from_numpy, inputs.values())).numpy()
    assert_close(found, reference(program, inputs))


@pytest.mark.parametrize("name", ["model.onnx", "model.pt"])
def test_exported_files_are_read_back_as_the_same_program(exported, name):
    program, bundle = exported
    found = load_program(
        bundle / name, trust=True, input_widths=None if name == "model.onnx" else [*program.dims.values()]
    )
    assert [type(step) for step in found.steps] == [type(step) for step in program.steps]
    inputs = inputs_for(program, 9)
    np.testing.assert_allclose(reference(found, inputs), reference(program, inputs), rtol=1e-12, atol=1e-12)


def test_the_onnx_file_keeps_its_contract(exported):
    program, bundle = exported
    model = onnx.load(str(bundle / "model.onnx"), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 20
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dims == {
        **{name: ["batch", dim] for name, dim in program.dims.items()},
        "embedding": ["batch", program.new_dim],
    }
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["model_version"] == program.digest[:12]
    assert metadata["source_sha256"] == program.digest
    assert metadata["kind"] == "transformation"


def test_parity_figures_are_measured(exported):
    _, bundle = exported
    for file in open_bundle(bundle).manifest.files:
        assert file.parity.rows == 1024
        assert 0 < file.parity.max_relative_error < 1e-5
        assert 0.99999 < file.parity.min_cosine <= 1


def test_the_report_is_the_manifest_and_the_next_command(tmp_path):
    report = export_transformation(PROGRAM, tmp_path / "my h", model_version="v7", targets=("core",))
    assert open_bundle(tmp_path / "my h").manifest == report.manifest
    assert report.manifest.model_version == "v7"
    assert report.next_command == f"fct-upgrade-gallery GALLERY --transformation '{tmp_path}/my h' -o DEST"
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["manifest"] == json.loads((tmp_path / "my h" / "manifest.json").read_text())


@pytest.mark.parametrize("name", ["bundle", "model.onnx", "h.pt"])
def test_files_are_exported_onward(tmp_path, name):
    model = randomized(PublicTransformation(8, 5, 6, 20))
    scripted(model, tmp_path / "h.pt")
    first = export_transformation(tmp_path / "h.pt", tmp_path / "bundle", trust=True)
    path = {"bundle": tmp_path / "bundle", "model.onnx": tmp_path / "bundle" / "model.onnx"}.get(name, tmp_path / name)
    second = export_transformation(path, tmp_path / "again", trust=True)
    assert second.manifest.source.name == path.name
    inputs = inputs_for(load_program(tmp_path / "bundle"), 9)
    old, side = (torch.from_numpy(array)[..., None, None] for array in inputs.values())
    with torch.no_grad():
        wanted = model(old, side).flatten(1).numpy()
    assert_close(reference(load_program(tmp_path / "again"), inputs), wanted)
    assert first.manifest.output_dim == 6


def test_an_onnx_bundle_without_the_core_file_is_loaded_from_onnx(tmp_path):
    export_transformation(PROGRAM, tmp_path / "h", targets=("onnx",))
    inputs = inputs_for(PROGRAM, 9)
    np.testing.assert_allclose(reference(load_program(tmp_path / "h"), inputs), reference(PROGRAM, inputs), rtol=1e-9)


@pytest.mark.parametrize("name", ["manifest.json", "transformation.safetensors", "model.onnx", "model.pt"])
def test_a_changed_byte_in_any_file_is_found_and_the_file_named(tmp_path, name):
    export_transformation(PROGRAM, tmp_path / "h", targets=TARGETS)
    path = tmp_path / "h" / name
    data = bytearray(path.read_bytes())
    for position in (0, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(ArtifactError, match=name):
            load_program(tmp_path / "h")


def test_nothing_is_published_if_a_file_computes_something_else(tmp_path, monkeypatch):
    wrong = plain_mlp(7, 3, 5, hidden=(4,), seed=1)
    convert = to_onnx.TransformationToOnnx.convert
    monkeypatch.setattr(
        to_onnx.TransformationToOnnx, "convert", lambda self, _, metadata: convert(self, wrong, metadata)
    )
    with pytest.raises(GateError, match=r"target onnx: relative error .* is above"):
        export_transformation(PROGRAM, tmp_path / "h")
    assert list(tmp_path.iterdir()) == []


def test_a_lost_bias_is_noticed(tmp_path, monkeypatch):
    first, *rest = PROGRAM.steps
    layer = next(step for step in rest if isinstance(step, Linear))
    steps = tuple(replace(step, bias=np.zeros_like(layer.bias)) if step is layer else step for step in PROGRAM.steps)
    altered = Program(PROGRAM.dims, steps, PROGRAM.output)
    tensor_bytes = to_core.tensor_bytes
    monkeypatch.setattr(to_core, "tensor_bytes", lambda _, metadata: tensor_bytes(altered, metadata))
    with pytest.raises(GateError, match="target core"):
        export_transformation(PROGRAM, tmp_path / "h")
    assert first in PROGRAM.steps and list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_forced(tmp_path):
    export_transformation(PROGRAM, tmp_path / "h", targets=("core",))
    other = linear_map(6, 4)
    with pytest.raises(OutputError, match="exists already"):
        export_transformation(other, tmp_path / "h")
    export_transformation(other, tmp_path / "h", force=True)
    assert load_program(tmp_path / "h").digest == other.digest


@pytest.mark.parametrize("targets", [("tensorrt",), ("core", ""), ()])
def test_unknown_targets_are_named_before_any_work(tmp_path, targets):
    with pytest.raises(UsageError, match="there is core, onnx, torchscript"):
        export_transformation(tmp_path / "missing.onnx", tmp_path / "h", targets=targets)


def test_too_large_for_onnx_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "MAX_ONNX_BYTES", 100)
    with pytest.raises(UnsupportedError, match="target onnx: the ONNX file would exceed 2 GB"):
        export_transformation(PROGRAM, tmp_path / "h")


def test_the_output_may_be_read_by_a_later_step(tmp_path):
    h = paper_h(6, 4, 5, inner=8)
    extra = linear_map(5, 3).steps[0]
    program = Program(h.dims, (*h.steps, replace(extra, input=h.output, output="embedding.extra")), h.output)
    export_transformation(program, tmp_path / "h", targets=TARGETS)
    assert load_program(tmp_path / "h").digest == program.digest
