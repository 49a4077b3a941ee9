"""Runs that are interrupted at any moment, and folders that hold something else."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.training import TINY_MODEL, in_child, trained

from fct_infer.errors import ArtifactError, FctError, GateError, OutputError, UnsupportedError, UsageError
from fct_infer.training.config import from_plain
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.trainers import backbone_run
from fct_infer.training.trainers.backbone_run import BackboneRunConfig, load_old_model, run_backbone

EPOCHS, ROWS = 4, 40
STEPS_PER_EPOCH = 3
LOADED_PER_EPOCH = 36  # the last, smaller batch is not loaded


def config(**training: Any) -> dict[str, Any]:
    """Everything that changes while it trains: dropout, batch norm, momentum, views, order, warm-up."""
    return {
        "data": {"source": "support.training:NoisyDataset", "arguments": {"count": ROWS}},
        "model": {"name": "support.training:DropoutNet", "arguments": {"embedding_dim": 6}},
        "classifier": {"kind": "arcface", "scale": 16},
        "augmentation": {"rotation": 10, "noise": 0.05, "flip": 0.5},
        "training": {"epochs": EPOCHS, "learning_rate": 0.05, "batch_size": 12, "log_every": 2, **training},
    }


def killed_run(folder: Path, die_at: int, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Train in another process that dies when it loads its ``die_at``-th image."""
    whole = backbone_run.open_data

    def open_data(settings):
        data = whole(settings)
        data.loader._dataset._die_at = die_at
        return data

    with monkeypatch.context() as patch:
        patch.setattr(backbone_run, "open_data", open_data)
        return in_child(lambda: trained(run_backbone, values, folder))


def metrics(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "metrics.csv").open() as file:
        return [tuple(row[name] for name in ("step", "epoch", "loss", "learning_rate")) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained(run_backbone, config(), folder)
    return folder


def same_outcome(folder: Path, whole: Path) -> None:
    for name in ("checkpoint.safetensors", "classifier.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert metrics(folder) == metrics(whole)
    ours, theirs = (json.loads((each / "result.json").read_text()) for each in (folder, whole))
    assert ours | {"checkpoint": ""} == theirs | {"checkpoint": ""}


@pytest.mark.parametrize(
    "deaths",
    [
        [LOADED_PER_EPOCH // 2],  # in the first epoch: nothing is kept
        [2 * LOADED_PER_EPOCH - 7],  # in the middle of the second
        [2 * LOADED_PER_EPOCH + 1],  # between two epochs
        [LOADED_PER_EPOCH + 5, LOADED_PER_EPOCH + 13, 1, LOADED_PER_EPOCH + 1],  # again and again
        [EPOCHS * LOADED_PER_EPOCH + 1],  # all epochs done, nothing of the result written
    ],
    ids=str,
)
def test_a_killed_run_ends_as_an_uninterrupted_one(deaths, uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    for die_at in deaths:
        assert killed_run(folder, die_at, config(), monkeypatch) == signal.SIGKILL
        assert not (folder / "result.json").exists()
    trained(run_backbone, config(), folder)
    same_outcome(folder, uninterrupted)


def test_loading_in_other_processes_changes_nothing(uninterrupted, tmp_path):
    values = config()
    values["data"]["workers"] = 2
    trained(run_backbone, values, tmp_path / "run")
    same_outcome(tmp_path / "run", uninterrupted)


def test_metrics_hold_every_second_step_and_the_end_of_every_epoch(uninterrupted):
    rows = metrics(uninterrupted)
    assert [(int(step), int(epoch)) for step, epoch, *_ in rows] == [
        (step, (step - 1) // STEPS_PER_EPOCH + 1) for step in (2, 3, 4, 6, 8, 9, 10, 12)
    ]
    losses = [float(loss) for _, _, loss, _ in rows]
    assert (2 * losses[0] + losses[1]) / 3 == pytest.approx(
        json.loads((uninterrupted / "result.json").read_text())["first_loss"], rel=1e-6
    )


def test_tensorboard_shows_the_same_figures(uninterrupted):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(uninterrupted))
    events.Reload()
    shown = (
        [(event.step, event.value) for event in events.Tensors("loss")]
        if "loss" in events.Tags()["tensors"]
        else [(event.step, event.value) for event in events.Scalars("loss")]
    )
    assert [step for step, _ in shown] == [int(row[0]) for row in metrics(uninterrupted)]
    assert [value for _, value in shown] == pytest.approx([float(row[2]) for row in metrics(uninterrupted)])


def test_the_state_is_loadable_without_running_code_and_goes_when_the_run_is_finished(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    killed_run(folder, LOADED_PER_EPOCH + 1, config(), monkeypatch)
    state = torch.load(folder / "state.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, STEPS_PER_EPOCH)
    trained(run_backbone, config(), folder)
    assert not (folder / "state.pt").exists()


def test_the_configuration_beside_a_run_has_every_default(uninterrupted):
    written = yaml.safe_load((uninterrupted / "config.yaml").read_text())
    assert written["training"]["momentum"] == 0.875
    assert written["classifier"] == {"kind": "arcface", "scale": 16.0, "margin": 0.5}
    assert (uninterrupted / "config.yaml").read_text().startswith("# fct-train backbone\n")


def test_a_finished_run_is_not_repeated(uninterrupted):
    before = {file: file.stat().st_mtime_ns for file in uninterrupted.iterdir()}
    with RunFolder(uninterrupted) as run:
        result = run_backbone(config(), run)
        assert run.was_finished
    assert result["classes"] == 4
    assert {file: file.stat().st_mtime_ns for file in uninterrupted.iterdir()} == before


def test_another_configuration_in_the_same_folder_is_refused_and_restart_begins_anew(tmp_path):
    folder, first = tmp_path / "run", config(epochs=1)
    trained(run_backbone, first, folder)
    other = config(epochs=2)
    with pytest.raises(OutputError, match=r"holds another run \(training.epochs is 1, asked for 2\)"):
        trained(run_backbone, other, folder)
    with RunFolder(folder) as run, pytest.raises(OutputError, match=r"holds another run .of fct-train backbone"):
        run.open("bct", from_plain(BackboneRunConfig, other))
    trained(run_backbone, other, folder, restart=True)
    assert len(metrics(folder)) == 4 and yaml.safe_load((folder / "config.yaml").read_text())["training"]["epochs"] == 2


@pytest.mark.parametrize(
    "mistake",
    [
        {"model": {"name": "resnest"}},
        {"data": {"source": "folder", "path": "nowhere"}},
        {"training": {"epochs": 1, "learning_rate": 0.1, "batch_size": 1000}},
        {"training": {"epochs": 1, "learning_rate": 0.1, "batch_size": 12, "result": "best"}},
    ],
    ids=lambda mistake: next(iter(mistake)),
)
def test_a_mistake_leaves_no_folder_behind(tmp_path, mistake):
    with pytest.raises(FctError):
        trained(run_backbone, config() | mistake, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_does_not_cost_the_run_that_was_to_be_replaced(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    with pytest.raises(UsageError, match="no such folder"):
        trained(
            run_backbone, config() | {"data": {"source": "folder", "path": "nowhere"}}, tmp_path / "run", restart=True
        )
    same_outcome(tmp_path / "run", uninterrupted)


def test_a_run_of_before_a_key_existed_goes_on_with_its_default(uninterrupted, tmp_path):
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["training"]["result"], values["validation"]
    (folder / "config.yaml").write_text("# fct-train backbone\n" + yaml.safe_dump(values))
    with RunFolder(folder) as run:
        run_backbone(config(), run)
        assert run.was_finished


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.json").write_text("{}")
    for restart in (False, True):
        with pytest.raises(OutputError, match=r"is no training run \(it has no config.yaml\)"):
            trained(run_backbone, config(), tmp_path, restart=restart)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.json"]


def test_a_run_in_use_is_refused(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        settings = from_plain(BackboneRunConfig, config())
        run.open("backbone", settings)
        with RunFolder(tmp_path / "run") as second, pytest.raises(OutputError, match="in use"):
            second.open("backbone", settings)


@pytest.mark.parametrize("validation", [0.3, {"source": "support.training:NoisyDataset", "arguments": {"count": 12}}])
def test_a_backbones_best_epoch_is_a_run_of_its_own(tmp_path, monkeypatch, validation):
    """A share held out, or another set; killed and resumed all the same."""
    values = config(batch_size=9) | {"validation": validation}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    result = trained(run_backbone, values, whole)
    assert result["images"] == (28 if validation == 0.3 else 40)
    assert 0 <= result["validation_accuracy"] <= 1
    if validation == 0.3:  # images that are judged are loaded as well: the death comes in the second epoch
        assert killed_run(folder, 27 + 12 + 5, values, monkeypatch) == signal.SIGKILL
        trained(run_backbone, values, folder)
        same_outcome(folder, whole)
        assert (folder / "validation.csv").read_bytes() == (whole / "validation.csv").read_bytes()
        best = "best/checkpoint.safetensors"
        assert (folder / best).read_bytes() == (whole / best).read_bytes()
    old = load_old_model(whole / "best", trust_code=True)
    assert old.class_names == ("a", "b", "c", "d")
    trained(run_backbone, config(), whole, restart=True)
    assert not (whole / "best").exists() and not (whole / "validation.csv").exists()


def test_a_damaged_state_is_an_error_that_names_the_way_out(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    killed_run(folder, LOADED_PER_EPOCH + 1, config(), monkeypatch)
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"state\.pt: is damaged.*--restart"):
        trained(run_backbone, config(), folder)


def test_a_run_that_diverges_names_the_step_and_keeps_its_folder(tmp_path):
    values = config(learning_rate=1e30, warmup_epochs=0) | {"model": TINY_MODEL, "classifier": {"kind": "linear"}}
    with pytest.raises(GateError, match=r"the loss is nan at step \d+ of 12, epoch 1; lower the learning rate"):
        trained(run_backbone, values, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_an_accelerator_that_is_not_there_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UnsupportedError, match="'cuda'"):
        trained(run_backbone, config(accelerator="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bf16_trains_and_resumes_the_same(tmp_path, monkeypatch):
    values = config(precision="bf16-mixed", epochs=2)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    trained(run_backbone, values, whole)
    assert killed_run(folder, LOADED_PER_EPOCH + 3, values, monkeypatch) == signal.SIGKILL
    trained(run_backbone, values, folder)
    same_outcome(folder, whole)
