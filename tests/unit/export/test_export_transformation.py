from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.outputs import assert_within, reference, relative_error, rows_for
from support.programs import examples, linear_map, paper_h, plain_mlp
from support.torch_models import GatedTransformation, PublicTransformation, outputs, randomized, scripted
from torch import nn

from fct_infer import load_transformation
from fct_infer.artifacts.bundle import open_bundle
from fct_infer.artifacts.loading import load_program
from fct_infer.artifacts.precisions import LIMITS
from fct_infer.artifacts.torch_files import load_torch
from fct_infer.backends.onnx_runtime import OnnxRuntimeRunner
from fct_infer.backends.torch_runtime import TorchRunner
from fct_infer.errors import ArrayError, ArtifactError, GateError, OutputError, UnsupportedError, UsageError
from fct_infer.export import Options, export_file, export_transformation, to_core, to_onnx
from fct_infer.export.graphs import onnx_model
from fct_infer.export.models import ProgramModel
from fct_infer.transformation import Linear, Program

TARGETS = ("core", "onnx", "torchscript", "pt2")
FLOATS = ("fp32", "fp16", "bf16")
BATCHES = (1, 2, 7, 4096)
PROGRAM = plain_mlp(7, 3, 5, hidden=(4,))
WIDE = ("paper_h", "plain_mlp", "linear_map", "residual_mlp")  # enough that rounding to 8 bits averages out


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Every program in every target and every precision that needs no calibration."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, program in examples().items():
        export_transformation(program, folder / name, Options(targets=TARGETS, precisions=FLOATS))
    return folder


@pytest.fixture(scope="module", params=examples())
def exported(request, bundles):
    """A program and its bundle."""
    return examples()[request.param], bundles / request.param


def torch_archive(path: Path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path), **options)


def test_the_bundle_gives_back_the_program_exactly(exported):
    program, bundle = exported
    assert load_program(bundle).digest == program.digest
    files = {(file.target, file.precision) for file in open_bundle(bundle).manifest.files}
    assert files == {("core", "fp32"), *((target, precision) for target in TARGETS[1:] for precision in FLOATS)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_plain_onnx_runtime_agrees_at_any_batch_size(exported, precision):
    """By the file's contract alone: no code of this project."""
    program, bundle = exported
    name = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}[precision]
    session = onnxruntime.InferenceSession(str(bundle / name), providers=["CPUExecutionProvider"])
    for count in BATCHES:
        rows = rows_for(program.dims, count)
        found = session.run(["embedding"], rows)[0]
        assert_within(found, reference(program, rows), precision)


@pytest.mark.parametrize("name", ["model.pt", "model.fp16.pt", "model.bf16.pt"])
def test_plain_pytorch_agrees_at_any_batch_size(exported, name):
    program, bundle = exported
    module, precision = torch_archive(bundle / name), {".pt": "fp32"}.get(name[5:], name[6:10])
    for count in BATCHES:
        rows = rows_for(program.dims, count)
        assert_within(outputs(module, *rows.values()), reference(program, rows), precision)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
@pytest.mark.parametrize("precision", FLOATS)
def test_every_backend_equals_the_core_within_its_precision(exported, backend, precision):
    program, bundle = exported
    if (backend, precision) == ("onnxruntime", "bf16"):
        with pytest.raises(UnsupportedError, match="no bf16 on the CPU"):
            load_transformation(bundle, precision, backend=backend)
        return
    h = load_transformation(bundle, precision, 1, backend, trust=True)
    assert (h.backend, h.device, h.precision) == (backend, "cpu", precision)
    core = load_transformation(bundle, "fp32", 1, "core")
    for count in BATCHES:
        rows = rows_for(program.dims, count)
        assert_within(h(*rows.values()), core(*rows.values()), precision)
        assert relative_error(core(*rows.values()), reference(program, rows)) <= 1e-5


@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "model.pt2"])
def test_exported_files_are_read_back_as_the_same_program(exported, name):
    program, bundle = exported
    widths = [*program.dims.values()] if name == "model.pt" else None
    found = load_program(bundle / name, trust=True, input_widths=widths)
    assert [type(step) for step in found.steps] == [type(step) for step in program.steps]
    rows = rows_for(program.dims, 9)
    np.testing.assert_allclose(reference(found, rows), reference(program, rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.bf16.onnx"])
def test_the_onnx_files_keep_their_contract(exported, name):
    program, bundle = exported
    model = onnx.load(str(bundle / name), load_external_data=False)
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
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        onnx.TensorProto.FLOAT
    }
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["model_version"] == program.digest[:12]
    assert metadata["source_sha256"] == program.digest
    assert metadata["kind"] == "transformation"


def test_metadata_stands_in_every_format_that_has_a_place_for_it(exported):
    program, bundle = exported
    scripts, archives = {"metadata.json": ""}, {"metadata": ""}
    torch_archive(bundle / "model.pt", _extra_files=scripts)
    torch.export.load(bundle / "model.pt2", extra_files=archives)
    for text in (scripts["metadata.json"], archives["metadata"]):
        assert json.loads(text)["source_sha256"] == program.digest


def test_parity_figures_are_measured(exported):
    _, bundle = exported
    for file in open_bundle(bundle).manifest.files:
        limits, parity = LIMITS[file.precision], file.parity
        assert (parity.rows, parity.real_rows) == (1 + 2 + 7 + 64, 0)
        assert 0 < parity.max_relative_error < (1e-5 if file.precision == "fp32" else limits.max_relative_error)
        assert limits.min_cosine <= parity.min_cosine <= 1
        assert parity.rows_per_second > 0
        assert parity.runtime.startswith({"core": "core", "onnx": "onnxruntime"}.get(file.target, "torch"))
    emulated = open_bundle(bundle).file("onnx", "bf16").parity.runtime
    assert emulated.endswith("bf16 emulated")  # it says so where the runtime has none


@pytest.mark.parametrize(("precision", "name"), [(each, name) for each in ("int8", "fp8") for name in WIDE])
def test_eight_bit_files_agree_at_any_batch_size(tmp_path, precision, name):
    program = examples()[name]
    options = Options(("onnx",), (precision,), calibration=rows_for(program.dims, 300, seed=7))
    report = export_transformation(program, tmp_path / "h", options)
    (file,) = report.manifest.files
    assert (file.name, file.parity.real_rows) == (f"model.{precision}.onnx", 300)
    h = load_transformation(tmp_path / "h", precision, backend="onnxruntime")
    assert h.precision == precision
    for count in BATCHES:
        rows = rows_for(program.dims, count)
        assert_within(h(*rows.values()), reference(program, rows), precision)


def test_real_rows_are_part_of_every_proof(tmp_path):
    calibration = rows_for(PROGRAM.dims, 500)
    report = export_transformation(PROGRAM, tmp_path / "h", Options(TARGETS, calibration=calibration))
    assert {(file.parity.rows, file.parity.real_rows) for file in report.manifest.files} == {(74 + 500, 500)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.pop("side"), "'side': missing, wanted float32"),
        (lambda rows: rows.update(old=rows["old"][:, :6]), r"'old': float32 \(9, 6\), wanted float32 \(n, 7\)"),
        (lambda rows: rows.update(old=rows["old"].astype(np.float64)), r"'old': float64 \(9, 7\)"),
        (lambda rows: rows.update(old=rows["old"][:0]), r"'old': float32 \(0, 7\)"),
        (lambda rows: rows.clear(), "'old': missing"),
    ],
)
def test_calibration_rows_that_do_not_fit_are_named(tmp_path, spoil, message):
    rows = rows_for(PROGRAM.dims, 9)
    spoil(rows)
    with pytest.raises(ArrayError, match=f"calibration rows for {message}"):
        export_transformation(PROGRAM, tmp_path / "h", Options(calibration=rows))


def test_the_report_is_the_manifest_and_the_next_command(tmp_path):
    report = export_transformation(PROGRAM, tmp_path / "my h", Options(model_version="v7", targets=("core",)))
    assert open_bundle(tmp_path / "my h").manifest == report.manifest
    assert report.manifest.model_version == "v7"
    assert report.next_command == f"fct-upgrade-gallery GALLERY --transformation '{tmp_path}/my h' -o DEST"
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["manifest"] == json.loads((tmp_path / "my h" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A TorchScript h, and the files of its bundle."""
    folder = tmp_path_factory.mktemp("public")
    model = randomized(PublicTransformation(8, 5, 6, 20))
    scripted(model, folder / "h.pt")
    export_file(folder / "h.pt", folder / "bundle", Options(TARGETS))
    return model, folder


@pytest.mark.parametrize(
    "name", ["h.pt", "bundle", "bundle/model.onnx", "bundle/model.pt", "bundle/model.pt2", "module"]
)
def test_every_form_of_a_transformation_goes_to_every_target(tmp_path, public, name):
    model, folder = public
    rows = rows_for({"old": 8, "side": 5}, 9)
    wanted = outputs(model, *(array[..., None, None] for array in rows.values()))
    options = Options(TARGETS)
    if name == "module":
        report = export_transformation(model, tmp_path / "again", options)
        assert report.manifest.source.name == "module"
    else:
        report = export_file(folder / name, tmp_path / "again", options)
        assert report.manifest.source.name == (folder / name).name
    assert [file.target for file in report.manifest.files] == [*TARGETS]
    assert_within(reference(load_program(tmp_path / "again"), rows).astype(np.float32), wanted, "fp32")
    for backend in ("core", "onnxruntime", "torch"):
        h = load_transformation(tmp_path / "again", "fp32", backend=backend, trust=True)
        assert_within(h(*rows.values()), wanted, "fp32")


def test_what_no_program_can_hold_goes_to_the_other_targets_and_every_operation_is_named(tmp_path):
    model = GatedTransformation(8, 5, 6).eval()
    report = export_transformation(model, tmp_path / "h", Options(TARGETS[1:], FLOATS))
    _, note = report.notes
    for operation in ("native_layer_norm", "aten.sigmoid.default"):
        assert operation in note
    assert report.manifest.program is None
    rows = rows_for({"old": 8, "side": 5}, 4096)
    for backend, precisions in (("onnxruntime", ("fp32", "fp16")), ("torch", FLOATS)):
        for precision in precisions:
            h = load_transformation(tmp_path / "h", precision, backend=backend, trust=True)
            assert_within(h(*rows.values()), outputs(model, *rows.values()), precision)
    with pytest.raises(UsageError, match="'core' is for transformations that a program can hold"):
        export_transformation(model, tmp_path / "again", Options(("core", "onnx")))
    with pytest.raises(ArtifactError, match="the bundle holds no program, only files for onnx, torchscript, pt2"):
        load_transformation(tmp_path / "h", backend="core")


class Standardised(nn.Module):
    """Rows less their mean, which broadcasts against (n, d, 1, 1), too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)
        self.register_buffer("mean", torch.arange(8.0))

    def forward(self, old):
        return self.layer(old - self.mean)


def test_rows_less_a_mean_are_rows(tmp_path):
    model = Standardised().eval()
    export_transformation(model, tmp_path / "h", Options(("onnx",)))
    rows = rows_for({"old": 8}, 50)
    assert_within(load_transformation(tmp_path / "h")(*rows.values()), outputs(model, *rows.values()), "fp32")


def test_a_module_is_left_as_it_was(tmp_path):
    model = PublicTransformation(8, 5, 6, 20).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_transformation(model, tmp_path / "b", Options(TARGETS))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_onnx_bundle_without_the_core_file_is_loaded_from_onnx(tmp_path):
    export_transformation(PROGRAM, tmp_path / "h", Options(("onnx",), ("fp16", "fp32")))
    rows = rows_for(PROGRAM.dims, 9)
    np.testing.assert_allclose(reference(load_program(tmp_path / "h"), rows), reference(PROGRAM, rows), rtol=1e-9)


def test_a_bundle_is_converted_onward_to_what_it_lacks(tmp_path):
    export_transformation(PROGRAM, tmp_path / "first", Options(("core",)))
    report = export_file(tmp_path / "first", tmp_path / "second", Options(("pt2", "onnx"), ("fp16",)))
    assert [file.name for file in report.manifest.files] == ["model.fp16.pt2", "model.fp16.onnx"]
    assert load_torch(tmp_path / "second" / "model.fp16.pt2", low_precision=True).shapes == ((7,), (3,))


@pytest.mark.parametrize("name", ["manifest.json", "transformation.safetensors", "model.onnx", "model.pt"])
def test_a_changed_byte_in_any_file_is_found_and_the_file_named(tmp_path, name):
    export_transformation(PROGRAM, tmp_path / "h", Options(("core", "onnx", "torchscript")))
    path = tmp_path / "h" / name
    data = bytearray(path.read_bytes())
    for position in (0, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        for load in (load_program, load_transformation):
            with pytest.raises(ArtifactError, match=name):
                load(tmp_path / "h")


def test_nothing_is_published_if_a_file_computes_something_else(tmp_path, monkeypatch):
    wrong = to_onnx.graph_in
    other = plain_mlp(7, 3, 5, hidden=(4,), seed=1)
    monkeypatch.setattr(to_onnx, "graph_in", lambda _, precision, job: wrong(ProgramModel(other), precision, job))
    with pytest.raises(GateError, match=r"target onnx, fp16: relative error .* is above 5e-03; row \d+ of the probe"):
        export_transformation(PROGRAM, tmp_path / "h", Options(("core", "onnx"), ("fp16",)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "runner", "precision"),
    [
        ("core", to_core._CoreRunner, "fp32"),
        ("onnx", OnnxRuntimeRunner, "fp32"),
        ("onnx", OnnxRuntimeRunner, "fp16"),
        ("torchscript", TorchRunner, "fp32"),
        ("pt2", TorchRunner, "fp32"),
    ],
)
def test_a_file_that_answers_otherwise_in_other_batches_is_refused(tmp_path, monkeypatch, target, runner, precision):
    """Batches of 1, 2, 7 and 4,096 rows are as they should be."""
    run = runner.run
    monkeypatch.setattr(runner, "run", lambda self, batch: run(self, batch) * (1.01 if len(batch["old"]) == 3 else 1))
    with pytest.raises(GateError, match=rf"target {target}, .*: computes something else of a row in a batch of 3 than"):
        export_transformation(PROGRAM, tmp_path / "h", Options((target,), (precision,)))
    assert list(tmp_path.iterdir()) == []


def test_a_lost_bias_is_noticed(tmp_path, monkeypatch):
    layer = next(step for step in PROGRAM.steps if isinstance(step, Linear))
    steps = tuple(replace(step, bias=np.zeros_like(layer.bias)) if step is layer else step for step in PROGRAM.steps)
    altered = Program(PROGRAM.dims, steps, PROGRAM.output)
    tensor_bytes = to_core.tensor_bytes
    monkeypatch.setattr(to_core, "tensor_bytes", lambda _, metadata: tensor_bytes(altered, metadata))
    with pytest.raises(GateError, match="target core, fp32: "):
        export_transformation(PROGRAM, tmp_path / "h")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_forced(tmp_path):
    export_transformation(PROGRAM, tmp_path / "h", Options(("core",)))
    other = linear_map(6, 4)
    with pytest.raises(OutputError, match="exists already"):
        export_transformation(other, tmp_path / "h")
    export_transformation(other, tmp_path / "h", Options(force=True))
    assert load_program(tmp_path / "h").digest == other.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(("engine", "")), "target 'engine', target '' does not exist; there is core, onnx, torchscript, pt2"),
        (Options(precisions=("fp64",)), "precision 'fp64' does not exist"),
        (Options(precisions=()), "no precision does not exist"),
        (Options(("torchscript",), ("int8",)), "target 'torchscript' has fp32, fp16, bf16, not int8"),
        (Options(("onnx",), ("fp32", "tf32")), "precision tf32 exists for none of onnx"),
        (Options(("onnx",), ("int8",)), "target onnx, int8: takes its scales from real rows: --calibration GALLERY"),
        (Options(device="gpu"), "device 'gpu' does not exist"),
    ],
)
def test_what_does_not_exist_is_named_and_nothing_written(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        export_transformation(PROGRAM, tmp_path / "h", options)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_no_proof(tmp_path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is one")
    options = Options(("onnx",), device="cuda")
    with pytest.raises(GateError, match="cannot be run here, so it is not proven: device cuda"):
        export_transformation(PROGRAM, tmp_path / "h", options)
    assert list(tmp_path.iterdir()) == []
    report = export_transformation(PROGRAM, tmp_path / "h", replace(options, allow_unproven=True))
    assert [file.parity for file in report.manifest.files] == [None]


def test_too_large_for_onnx_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "MAX_ONNX_BYTES", 100)
    with pytest.raises(UnsupportedError, match="target onnx, fp32: the ONNX file would exceed 2 GB"):
        export_transformation(PROGRAM, tmp_path / "h")


def test_the_output_may_be_read_by_a_later_step(tmp_path: Path):
    h = paper_h(6, 4, 25, inner=8)
    extra = linear_map(25, 3).steps[0]
    program = Program(h.dims, (*h.steps, replace(extra, input=h.output, output="embedding.extra")), h.output)
    export_transformation(program, tmp_path / "h", Options(TARGETS[:3], FLOATS))
    assert load_program(tmp_path / "h").digest == program.digest
