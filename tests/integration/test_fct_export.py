"""``fct-export`` as a user types it, and what becomes of its bundles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.commands import run_command
from support.galleries import write_gallery
from support.outputs import assert_within
from support.programs import random_rows
from support.torch_models import (
    GatedTransformation,
    PublicTransformation,
    TinyBackbone,
    exported,
    outputs,
    randomized,
    scripted,
    traced,
)

from fct_infer import load_embedder, load_transformation
from fct_infer.artifacts.bundle import open_bundle
from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.cli.export import command, main
from fct_infer.export import probe, to_onnx


def fct_export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_command("export", *arguments, env={"COLUMNS": "300"})  # tables keep their lines whole


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from fct_infer.cli.export import main; main()", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def export_here(*arguments: object) -> Result:
    """In this process; a failure is raised as what it is."""
    return CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    scripted(randomized(PublicTransformation(24, 10, 32, 70)), folder / "h.pt")
    exported(GatedTransformation(24, 10, 17).eval(), folder / "gated.pt2", torch.zeros(2, 24), torch.zeros(2, 10))
    traced(randomized(TinyBackbone()), folder / "backbone.pt", torch.zeros(2, 3, 32, 32))
    torch.save(TinyBackbone().state_dict(), folder / "weights.pt")
    write_gallery(folder / "gallery", (500, 1), old_dim=24, side_dim=10)
    for name in ("embeddings", "side_information"):  # pairs, so that neighbours mean something
        rows = np.load(folder / "gallery" / name / "000000.npy")
        rows[1::2] = rows[::2] + 0.01 * rows[1::2]
        np.save(folder / "gallery" / name / "000000.npy", rows)
        (folder / "gallery" / name / "000001.npy").unlink()
    write_gallery(folder / "narrow", (500,), old_dim=23, side_dim=10)
    write_gallery(folder / "sideless", (500,), old_dim=24, side_dim=None)
    write_gallery(folder / "nan", (500,), old_dim=24, side_dim=10)
    rows = np.load(folder / "nan" / "embeddings" / "000000.npy")
    rows[77, 3] = np.nan
    np.save(folder / "nan" / "embeddings" / "000000.npy", rows)
    return folder


def rows_and_answer(folder: Path, count: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    old, side = random_rows(count, 24), random_rows(count, 10, 1)
    module = torch.jit.load(folder / "h.pt")
    return old, side, outputs(module, old[..., None, None], side[..., None, None])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_transformation_becomes_a_bundle_that_computes_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "LARGE_BATCH", 4096)  # as users have it
    done = fct_export(folder / "h.pt", "-o", tmp_path / "h", "--targets", "core,onnx,torchscript")
    assert done.returncode == 0, done.stderr
    assert "which is code and runs with your rights" in done.stderr
    table = re.search(
        r"target +precision +MB +error +cosine +agree +rows/s +run by *\n"
        r"core +fp32 .*\d+ +core .*\n(?: +.*\n)*"
        r"onnx +fp32 .*onnxruntime .*\n(?: +.*\n)*"
        r"torchscript +fp32 .*torch .*\n",
        done.stdout,
    )
    assert table, done.stdout
    assert f"written: {tmp_path}/h: transformation.safetensors, model.onnx, model.pt\n" in done.stdout
    assert max(map(len, table[0].splitlines())) <= 80
    assert done.stdout.endswith(f"next: fct-upgrade-gallery GALLERY --transformation {tmp_path}/h -o DEST\n")
    assert {file.parity.rows for file in open_bundle(tmp_path / "h").manifest.files} == {1 + 2 + 7 + 4096}

    old, side, wanted = rows_and_answer(folder)
    for backend in ("core", "onnxruntime", "torch"):
        h = load_transformation(tmp_path / "h", "fp32", backend=backend, trust=True)
        assert_within(h(old, side), wanted, "fp32")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_json_is_one_document_though_precisions_are_many(folder, tmp_path):
    """In a process of its own: what a library prints to the real stdout would show."""
    done = in_a_process(
        folder / "h.pt", "-o", tmp_path / "h", "--targets", "onnx,core,pt2", "--precision", "fp32,fp16,bf16,int8",
        "--calibration", folder / "gallery", "--calibration-rows", 500, "--model-version", "v2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["manifest"] == json.loads((tmp_path / "h" / "manifest.json").read_text())
    files = report["manifest"]["files"]
    assert sorted(files) == sorted([
        "transformation.safetensors", "model.onnx", "model.fp16.onnx", "model.bf16.onnx", "model.int8.onnx",
        "model.pt2", "model.fp16.pt2", "model.bf16.pt2",
    ])  # fmt: skip
    assert report["manifest"]["model_version"] == "v2"
    for file in files.values():
        assert file["parity"]["real_rows"] == 500
        assert file["parity"]["top1_agreement"] >= 0.8
    old, side, wanted = rows_and_answer(folder)
    for precision in ("fp32", "fp16", "int8"):
        h = load_transformation(tmp_path / "h", precision, backend="onnxruntime")
        assert_within(h(old, side), wanted, precision)


def test_an_image_model_and_how_its_images_are_prepared(folder, tmp_path):
    done = export_here(
        folder / "backbone.pt", "-o", tmp_path / "b", "--input-shape", "3x32x24", "--kind", "side-information",
        "--image-mean", "0.485,0.456,0.406", "--image-std", "0.229,0.224,0.225", "--image-resize", 36,
    )  # fmt: skip
    assert done.exit_code == 0
    assert "note:" not in done.stderr
    assert done.stdout.endswith(f"--side-information {tmp_path}/b -o GALLERY\n")
    embed = load_embedder(tmp_path / "b")
    assert (embed.kind, embed.image_shape) == ("side-information", (3, 32, 24))
    assert embed.preprocessing == Preprocessing((32, 24), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 36)


def test_interpolation_and_crop_are_settings_that_the_bundle_keeps(folder, tmp_path):
    line = (folder / "backbone.pt", "--input-shape", "3x32x24", "--targets", "onnx", "--image-mean", "0.5,0.5,0.5",
            "--image-std", "0.2,0.2,0.2")  # fmt: skip
    done = export_here(*line, "-o", tmp_path / "b", "--image-interpolation", "bicubic", "--image-crop-fraction", 0.9)
    assert done.exit_code == 0, done.stderr
    wanted = Preprocessing((32, 24), (0.5,) * 3, (0.2,) * 3, 35, "bicubic")
    assert load_embedder(tmp_path / "b").preprocessing == wanted
    onward = export_here(tmp_path / "b", "-o", tmp_path / "c", "--targets", "onnx", "--image-interpolation", "lanczos")
    assert onward.exit_code == 0, onward.stderr
    assert load_embedder(tmp_path / "c").preprocessing == replace(wanted, interpolation="lanczos")
    both = export_here(*line, "-o", tmp_path / "d", "--image-resize", 40, "--image-crop-fraction", 0.9)
    assert both.exit_code == 2 and "give one" in both.stderr


def test_what_was_assumed_is_said(folder, tmp_path):
    done = export_here(folder / "backbone.pt", "-o", tmp_path / "b", "--targets", "torchscript", "--json")
    notes = json.loads(done.stdout)["notes"]
    assert len(notes) == 3
    assert all(f"note: {note}\n" in done.stderr for note in notes)


def test_what_no_program_can_hold_goes_to_the_other_targets(folder, tmp_path):
    done = export_here(folder / "gated.pt2", "-o", tmp_path / "h")
    assert done.exit_code == 0
    assert "aten.native_layer_norm.default" in done.stderr and "aten.sigmoid.default" in done.stderr
    assert [file.name for file in open_bundle(tmp_path / "h").manifest.files] == ["model.onnx"]


def run_main(monkeypatch, capsys, folder, *arguments: object) -> tuple[int, str]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["fct-export", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return caught.value.code, printed.err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["weights.pt"], 4, "weights.pt: a pickle written by torch.save"),
        (["missing.pt"], 4, "missing.pt: no such file"),
        (["missing.onnx"], 4, "missing.onnx: no such file"),
        (["h.pt", "--targets", "core,engine"], 2, "target 'engine' does not exist; there is core, onnx, torchscript"),
        (["h.pt", "--precision", "fp64"], 2, "precision 'fp64' does not exist; there is"),
        (["h.pt", "--precision", ""], 2, "precision"),
        (["h.pt", "--targets", "torchscript", "--precision", "int8"], 2, "has fp32, fp16, bf16, not int8"),
        (["gated.pt2", "--targets", "core"], 2, "'core' is for transformations that a program can hold"),
        (["h.pt", "--kind", "classifier"], 2, "'classifier' is not one of"),
        (["h.pt", "--kind", "backbone"], 4, "does not run on images, wanted a backbone model"),
        (["h.pt", "--input-shape", "3x0x32"], 2, "'3x0x32' is not of the form 3x32x32"),
        (["h.pt", "--input-shape", "24"], 4, "takes 2 inputs, wanted 1"),
        (["backbone.pt", "--input-shape", "4x32x32"], 4, "does not run on inputs of shape 4x32x32"),
        (["backbone.pt", "--input-shape", "3x32x32", "--image-mean", "0.5"], 2, "--image-std go together"),
        (["backbone.pt", "--input-shape", "3x32x32", "--image-mean", "grey"], 2, "'grey' is not of the form"),
        (["h.pt", "--image-mean", "1,1,1", "--image-std", "1,1,1"], 2, "are for models that take images"),
        (["h.pt", "--precision", "int8"], 2, "takes its scales from real rows: --calibration GALLERY"),
        (["h.pt", "--calibration", "nowhere"], 4, "nowhere"),
        (["h.pt", "--calibration", "narrow"], 4, "narrow/embeddings: rows are 23 wide, the model wants 24 for 'old'"),
        (["h.pt", "--calibration", "sideless"], 4, "sideless/embeddings: rows are 24 wide, the model wants 10"),
        (["h.pt", "--calibration", "nan"], 4, "nan: row 77 of the sample (old) holds NaN or infinity"),
        (["h.pt", "--engine-rows", "64,8"], 2, "--engine-rows"),
        (["h.pt", "--device", "gpu"], 2, "device 'gpu' does not exist"),
        (["h.pt", "-o", "."], 2, "is not the name of a folder"),
        (["h.pt", "-o", "h.pt/b"], 2, "h.pt is not a folder"),
    ],
)  # fmt: skip
def test_mistakes_end_with_one_line_and_an_exit_code(folder, monkeypatch, capsys, arguments, exit_code, message):
    before = sorted(folder.iterdir())
    code, printed = run_main(monkeypatch, capsys, folder, *arguments)
    assert code == exit_code, printed
    assert message in printed
    assert sorted(folder.iterdir()) == before


def test_a_file_that_computes_something_else_is_not_published(folder, tmp_path, monkeypatch, capsys):
    write = to_onnx.serialize

    def damage(model, metadata):
        weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".bias"))
        weight.raw_data = b"\x00" * len(weight.raw_data)
        return write(model, metadata)

    monkeypatch.setattr(to_onnx, "serialize", damage)
    code, printed = run_main(monkeypatch, capsys, folder, "h.pt", "-o", tmp_path / "h")
    assert code == 3
    assert re.search(r"error: target onnx, fp32: .* row \d+ of the probe is worst", printed), printed
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_and_its_files_are_converted_onward(folder, tmp_path):
    assert export_here(folder / "h.pt", "-o", tmp_path / "first").exit_code == 0
    for path in ("first", "first/model.onnx"):
        done = export_here(tmp_path / path, "-o", tmp_path / "again", "--targets", "core,pt2", "--force")
        assert done.exit_code == 0
        assert open_bundle(tmp_path / "again").manifest.source.name == Path(path).name


def test_help_names_every_option_without_loading_torch():
    code = (
        "import sys\n"
        "from fct_infer.cli.export import main\n"
        "sys.argv = ['fct-export', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for option in ("--output", "--kind", "--targets", "--precision", "--calibration", "--input-shape", "--image-mean",
                   "--device", "--allow-unproven", "--force", "--json"):  # fmt: skip
        assert option in done.stdout
