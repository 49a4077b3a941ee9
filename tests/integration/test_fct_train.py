"""``fct-train`` as a user types it: from configurations to checkpoints, killed and resumed, mistakes included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from support.openmp import spins_read
from support.training import trained

from fct_infer.cli.train import main
from fct_infer.training.config import read_config
from fct_infer.training.models.base import Backbone, TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint
from fct_infer.training.trainers.backbone_run import run_backbone

MODEL = "model: {name: resnet, arguments: {embedding_dim: 16, widths: [8, 16], blocks: [1, 1], stem_stride: 2}}\n"
DATA = "data: {source: glyphs, arguments: {classes: 4, images_per_class: 20}}\n"
BACKBONE = f"{DATA}{MODEL}training: {{epochs: 2, learning_rate: 0.1, batch_size: 20}}\n"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fct_infer.cli.train", *map(str, arguments)]


def fct_train(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Run in this process, which has PyTorch loaded; return exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["fct-train", *map(str, arguments)])
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(BACKBONE)
    return path


def test_on_busy_cores_threads_wait_briefly(config, tmp_path):
    assert spins_read(command("backbone", config, "-o", tmp_path / "old")) == {"1000"}


def test_the_papers_four_models_one_after_the_other(config, tmp_path, monkeypatch, capsys):
    """Old, new, BCT, side-information; then h on embeddings cached from three of them."""

    def train(*arguments: object) -> dict[str, object]:
        code, out, err = fct_train(monkeypatch, capsys, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    old = train("backbone", config, "-o", tmp_path / "old", "--set", "data.classes=first 50 %")
    assert (old["classes"], old["images"], old["embedding_dim"]) == (2, 40, 16)
    new = train("backbone", config, "-o", tmp_path / "new", "--set", "training.seed=1")
    (tmp_path / "bct.yaml").write_text(f"{BACKBONE}old: {tmp_path / 'old'}\n")
    assert train("bct", tmp_path / "bct.yaml", "-o", tmp_path / "bct")["classes_the_old_model_lacked"] == 2
    (tmp_path / "side.yaml").write_text(f"{BACKBONE}augmentation: {{rotation: 10, noise: 0.05}}\n")
    side = train("side-information", tmp_path / "side.yaml", "-o", tmp_path / "side", "--set", "kind=simclr")

    images = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, result in (("old", old), ("side", side), ("new", new)):
        model, _ = load_checkpoint(Path(str(result["checkpoint"])).with_suffix(""), Backbone)
        with torch.inference_mode():
            np.save(tmp_path / f"{name}.npy", model(images).numpy())
    paths = "\n".join(f"  {name}: {tmp_path / name}.npy" for name in ("old", "side", "new"))
    (tmp_path / "h.yaml").write_text(f"data:\n{paths}\nmodel: {{name: paper, arguments: {{inner_dim: 16}}}}\n")
    settings = ("training.epochs=2", "training.batch_size=20", "validation=0.2")
    train(
        "transformation", tmp_path / "h.yaml", "-o", tmp_path / "h", *(each for s in settings for each in ("--set", s))
    )
    module, _ = load_checkpoint(tmp_path / "h" / "checkpoint", TransformationModule)
    assert (module.old_dim, module.side_dim, module.new_dim) == (16, 16, 16)


def test_a_transformation_from_images_embeds_them_once(config, tmp_path, monkeypatch, capsys):
    for name, seed in (("old", 0), ("new", 1)):
        arguments = ("backbone", config, "-o", tmp_path / name, "--set", f"training.seed={seed}")
        assert fct_train(monkeypatch, capsys, *arguments)[0] == 0
    old, new = tmp_path / "old", tmp_path / "new" / "checkpoint.json"
    (tmp_path / "h.yaml").write_text(
        f"data: {{images: {DATA.removeprefix('data: ').strip()}, views: 2, augmentation: {{rotation: 8}}}}\n"
        f"models: {{old: {old}, side: [{old}], new: {new}}}\n"
        "model: {name: paper, arguments: {inner_dim: 16}}\nvalidation: 0.2\n"
    )
    arguments = ("transformation", tmp_path / "h.yaml", "-o", tmp_path / "h", "--set", "training.batch_size=16")
    code, out, err = fct_train(monkeypatch, capsys, *arguments, "--json", "--set", "training.epochs=2")
    assert code == 0, err
    assert json.loads(out)["training_rows"] == 128
    assert "embed: 80/80 images" in err and "epoch 2/2" in err
    code, out, err = fct_train(monkeypatch, capsys, *arguments, "--json", "--set", "training.epochs=3", "--restart")
    assert code == 0 and "embed" not in err and "epoch 3/3" in err


def test_progress_is_on_stderr_and_a_finished_run_is_not_repeated(config, tmp_path, monkeypatch, capsys):
    code, out, err = fct_train(monkeypatch, capsys, "backbone", config, "-o", tmp_path / "run")
    assert code == 0
    assert f"checkpoint     {tmp_path}/run/checkpoint.safetensors\n" in out
    assert err.splitlines()[0].startswith("epoch 1/2, step 1/8, loss ") and "epoch 2/2, step 8/8, loss" in err
    code, again, err = fct_train(monkeypatch, capsys, "backbone", config, "-o", tmp_path / "run")
    assert (code, again) == (0, out)
    assert err == f"{tmp_path}/run: was finished before; nothing was trained (--restart begins anew)\n"
    code, _, err = fct_train(monkeypatch, capsys, "backbone", config, "-o", tmp_path / "run", "--restart")
    assert code == 0 and "step 8/8" in err


LONG = ("training.epochs=8", "training.learning_rate=0.05", "augmentation.rotation=10")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> bytes:
    """The weights of an uninterrupted run with the settings ``LONG``."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "old.yaml").write_text(BACKBONE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trained(run_backbone, read_config(folder / "old.yaml", LONG), folder / "run")
    torch.set_num_threads(threads)
    return (folder / "run" / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(number, config, tmp_path, whole_run, monkeypatch, capsys):
    folder, settings = tmp_path / "run", [each for setting in LONG for each in ("--set", setting)]
    line, environment = command("backbone", config, "-o", folder, *settings), os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "state.pt").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == (-number if number == signal.SIGKILL else 75), errors
    assert number == signal.SIGKILL or "stopped by SIGTERM; the same command resumes" in errors
    assert (folder / "state.pt").exists() and not (folder / "result.json").exists()

    code, _, said = fct_train(monkeypatch, capsys, "backbone", config, "-o", folder, *settings)
    assert code == 0 and "step 1/" not in said
    assert (folder / "checkpoint.safetensors").read_bytes() == whole_run


def test_two_processes_share_the_batches_and_agree(config, tmp_path):
    """Two CPU processes stand for two GPUs: batch norm aside, they see what one would."""
    settings = ("training.accelerator=cpu", "training.devices=2", "training.epochs=1")
    arguments = [each for setting in settings for each in ("--set", setting)]
    done = subprocess.run(
        command("backbone", config, "-o", tmp_path / "run", "--json", *arguments),
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == 4
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2
    assert done.stderr.count("step 4/4") == 1
    model, _ = load_checkpoint(tmp_path / "run" / "checkpoint", Backbone)
    assert model.embedding_dim == 16


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["backbone", "missing.yaml"], 2, "error: missing.yaml: no such file"),
        (
            ["backbone", "old.yaml", "--set", "training.epoch=1"],
            2,
            "training.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            ["backbone", "old.yaml", "--set", "training.epochs=ten"],
            2,
            "training.epochs: got 'ten' (str), wanted an int",
        ),
        (["backbone", "old.yaml", "--set", "model.name=resnest"], 2, "unknown model 'resnest'"),
        (["backbone", "old.yaml", "--set", "data.classes=first 0"], 2, "data.classes: got 'first 0'"),
        (
            ["backbone", "old.yaml", "--set", "training.batch_size=100"],
            4,
            "got 80 rows, wanted at least 100, one batch",
        ),
        (["backbone", "old.yaml", "--set", "training.learning_rate=1e30"], 3, "the loss is nan at step "),
        (["bct", "old.yaml"], 2, "old: missing, and has no default"),
        (["bct", "old.yaml", "--set", "old=nowhere"], 4, "nowhere/checkpoint.json: no such file"),
        (["side-information", "old.yaml", "--set", "kind=magic"], 2, "kind: got 'magic'"),
        (["transformation", "old.yaml"], 2, "unknown model 'resnet'; known are paper"),
        (
            ["transformation", "old.yaml", "--set", "model.name=paper"],
            2,
            "data.source: unknown key; known are old, new",
        ),
        (["everything", "old.yaml"], 2, "No such command 'everything'"),
    ],
)
def test_mistakes_end_with_one_line_and_an_exit_code(
    config, tmp_path, monkeypatch, capsys, arguments, exit_code, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = fct_train(monkeypatch, capsys, *arguments, "-o", "run")
    assert code == exit_code, err
    assert message in err
    assert out == "" and "Traceback" not in err
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_folder_of_another_run_is_refused(config, tmp_path, monkeypatch, capsys):
    assert fct_train(monkeypatch, capsys, "backbone", config, "-o", tmp_path / "run")[0] == 0
    code, _, err = fct_train(
        monkeypatch, capsys, "backbone", config, "-o", tmp_path / "run", "--set", "training.seed=7"
    )
    assert code == 6 and "holds another run (training.seed is 0, asked for 7)" in err


def test_help_needs_no_heavy_package():
    code = (
        "import sys\n"
        "from fct_infer.cli.train import main\n"
        "sys.argv = ['fct-train', 'backbone', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'yaml', 'PIL', 'lightning_fabric'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_without_torch_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['fct-train', 'backbone', 'glyphs/old', '-o', {str(tmp_path / 'run')!r}]\n"
        "from fct_infer.cli.train import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: torch is not installed; run: pip install 'fct-infer[train]'"]
