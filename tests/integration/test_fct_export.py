"""``fct-export`` as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from support.programs import random_rows
from support.torch_models import PublicTransformation, TinyBackbone, randomized, scripted, traced

from fct_infer import load_transformation
from fct_infer.artifacts.torchscript import load_torchscript
from fct_infer.cli.export import main


def fct_export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fct_infer.cli.export import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    scripted(randomized(PublicTransformation(24, 10, 17, 70)), folder / "h.pt")
    traced(randomized(TinyBackbone()), folder / "backbone.pt", torch.zeros(2, 3, 32, 32))
    torch.save(TinyBackbone().state_dict(), folder / "weights.pt")
    return folder


def test_a_torchscript_transformation_becomes_a_bundle_that_computes_the_same(folder, tmp_path):
    done = fct_export(folder / "h.pt", "-o", tmp_path / "h", "--targets", "core,onnx,torchscript")
    assert done.returncode == 0, done.stderr
    assert "which is code" in done.stderr
    table = re.search(
        r"target +file +size +max error +min cosine\n"
        r"core +transformation\.safetensors .*\nonnx +model\.onnx .*\ntorchscript +model\.pt .*\n",
        done.stdout,
    )
    assert table, done.stdout
    assert done.stdout.endswith(f"next: fct-upgrade-gallery GALLERY --transformation {tmp_path}/h -o DEST\n")

    old, side = random_rows(100, 24), random_rows(100, 10, 1)
    module = load_torchscript(folder / "h.pt")
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(x)[..., None, None] for x in (old, side))).flatten(1).numpy()
    scale = np.abs(wanted).max()
    assert np.abs(load_transformation(tmp_path / "h", "fp32")(old, side) - wanted).max() <= 1e-5 * scale
    session = onnxruntime.InferenceSession(str(tmp_path / "h" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"old": old, "side": side})[0] - wanted).max() <= 1e-5 * scale


def test_json_is_one_document_and_nothing_else(folder, tmp_path):
    done = fct_export(folder / "backbone.pt", "-o", tmp_path / "b", "--input-shape", "3x32x32", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["manifest"] == json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert report["manifest"]["inputs"] == {"image": [3, 32, 32]}
    assert sorted(report["manifest"]["files"]) == ["model.onnx", "model.pt"]
    assert all(f"note: {note}\n" in done.stderr for note in report["notes"])


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["weights.pt"], 4, "weights.pt: a pickle written by torch.save"),
        (["missing.pt"], 4, "missing.pt: no such file"),
        (["missing.onnx"], 4, "missing.onnx: no such file"),
        (["h.pt", "--targets", "core,engine"], 2, "target 'engine' does not exist"),
        (["h.pt", "--kind", "classifier"], 2, "'classifier' is not one of"),
        (["h.pt", "--input-shape", "3x0x32"], 2, "'3x0x32' is not of the form 3x32x32"),
        (["h.pt", "-o", "."], 6, "exists already"),
        (["h.pt", "-o", "h.pt/b"], 5, "h.pt"),
    ],
)
def test_mistakes_end_with_one_line_and_an_exit_code(folder, monkeypatch, capsys, arguments, exit_code, message):
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["fct-export", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code == exit_code, printed.err
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(folder.iterdir()) == before


def test_help_names_every_option_without_loading_torch():
    code = (
        "import sys\n"
        "from fct_infer.cli.export import main\n"
        "sys.argv = ['fct-export', '--help']\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for option in ("--output", "--kind", "--targets", "--input-shape", "--force", "--json"):
        assert option in done.stdout
