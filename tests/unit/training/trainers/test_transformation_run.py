"""``run_transformation`` from a configuration to a checkpoint that ``fct-export`` reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.features import make_columns, write_columns
from support.galleries import write_gallery

from fct_infer.errors import ArtifactError, FctError, GalleryError, UsageError
from fct_infer.export.checkpoints import open_named
from fct_infer.reference import apply_float64
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.models.classifiers import CosineClassifier
from fct_infer.training.models.folding import to_program, to_uncertainty_program
from fct_infer.training.models.registry import ModelSpec
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.trainers import transformation_run
from fct_infer.training.trainers.transformation_data import FeatureFolders, load_classifier, open_features
from fct_infer.training.trainers.transformation_run import run_transformation
from fct_infer.transformation import Program

TRAINING = {"epochs": 4, "learning_rate": 3e-3, "batch_size": 100, "warmup_epochs": 1}
PAPER = {"name": "paper", "arguments": {"inner_dim": 32}}


@pytest.fixture
def features(tmp_path) -> dict[str, str]:
    columns = make_columns(700, classes=4)
    return {name: str(path) for name, path in write_columns(tmp_path / "features", columns, (300, 400)).items()}


def trained(folder: Path, features: dict[str, str], on_progress=None, **config) -> dict:
    columns = {name: path for name, path in features.items() if name != "labels" or config.get("loss") == "fastfill"}
    config = {"data": columns, "training": TRAINING, "validation": 0.2} | config
    with RunFolder(folder) as run:
        return run_transformation(config, run, on_progress)


def program_of(folder: Path) -> Program:
    return to_program(load_checkpoint(folder / "checkpoint", TransformationModule)[0])


@pytest.mark.parametrize(
    "model",
    [
        PAPER,
        {"name": "residual_mlp", "arguments": {"width": 12, "inner_dim": 16}},
        {"name": "linear"},
        {"name": "procrustes", "arguments": {"scale": True}},
        {"name": "ridge"},
        {"name": "low_rank", "arguments": {"rank": 3}},
    ],
    ids=lambda model: model["name"],
)
def test_every_model_becomes_a_checkpoint_that_export_opens(tmp_path, features, model):
    result = trained(tmp_path / "run", features, model=model)
    opened = open_named(tmp_path / "run" / "checkpoint.safetensors", "transformation", [])
    program = program_of(tmp_path / "run")
    assert opened.model.program.digest == program.digest
    assert (program.dims, program.new_dim) == ({"old": 6, "side": 6}, 8)
    assert (result["training_rows"], result["validation_rows"]) == (560, 140)
    assert result["flops_per_row"] == program.flops_per_row
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


def test_the_figures_are_those_of_the_held_out_rows(tmp_path, features):
    """A least-squares map and its error by hand, on rows that the fit has not seen."""
    result = trained(tmp_path / "run", features, model={"name": "ridge", "arguments": {"alphas": [0.0]}})
    columns = {
        name: np.concatenate([np.load(f) for f in sorted(Path(path).iterdir())]) for name, path in features.items()
    }
    errors = (
        (apply_float64(program_of(tmp_path / "run"), columns["old"], columns["side"]) - columns["new"]) ** 2
    ).mean(1)
    total = errors.sum()
    seen = total - 140 * result["validation_mse"]
    assert result["validation_mse"] > seen / 560  # unseen rows are worse than those fitted
    assert result["mse_by_alpha"]["0.0"] == pytest.approx(result["validation_mse"], rel=1e-4)
    assert 0.5 < result["validation_cosine"] < 1


def test_a_better_model_has_better_figures(tmp_path, features):
    training = TRAINING | {"epochs": 60, "learning_rate": 1e-2}
    found = {
        name: trained(tmp_path / name, features, model=model, training=training)["validation_mse"]
        for name, model in (("paper", PAPER), ("ridge", {"name": "ridge"}), ("procrustes", {"name": "procrustes"}))
    }
    assert found["paper"] < found["ridge"] < found["procrustes"]


def validation_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "validation.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_validation_is_told_for_every_epoch(tmp_path, features):
    steps = []
    result = trained(tmp_path / "run", features, steps.append, model=PAPER, standardize=False)
    history = validation_of(tmp_path / "run")
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["loss"] == pytest.approx(result["validation_mse"], rel=1e-4)
    assert history[-1]["cosine"] == pytest.approx(result["validation_cosine"], rel=1e-4)
    assert len(steps) == 4 * 6  # five whole batches and one of 60


@pytest.mark.parametrize(
    ("rows", "given", "batch_size", "epochs", "warmup"),
    [
        (50, {}, 32, 1250, 78.125),  # batches of 32 and 18
        (1_000, {}, 32, 80, 5.0),
        (1_000, {"batch_size": 500}, 500, 1250, 78.125),
        (1_000, {"batch_size": 500, "warmup_epochs": 2.0}, 500, 1250, 2.0),
        (1_000, {"batch_size": 500, "epochs": 3}, 500, 3, 5.0),
        (400_000, {}, 1024, 80, 5.0),
    ],
)
def test_few_rows_are_taken_in_small_batches_and_often_enough(rows, given, batch_size, epochs, warmup):
    data = {"old": "old.npy", "new": "new.npy"}
    settings = transformation_run._settings({"data": data, "training": given})
    found = transformation_run.fitted_to(rows, settings.training, given)
    assert (found.batch_size, found.epochs, found.warmup_epochs) == (batch_size, epochs, pytest.approx(warmup))


@pytest.mark.parametrize(("rows", "held_out"), [(60, 30), (300, 100), (3_000, 300)])
def test_a_tenth_or_a_hundred_rows_are_held_out_unless_said_otherwise(tmp_path, rows, held_out):
    paths = {name: str(path) for name, path in write_columns(tmp_path, make_columns(rows), (rows,)).items()}
    data = open_features([FeatureFolders(paths["old"], paths["new"])], None, None, 0)
    assert len(data.split.held_out) == held_out


class KilledError(Exception):
    pass


RESUMED_FILES = ("checkpoint.safetensors", "best/checkpoint.safetensors", "validation.csv")


@pytest.mark.parametrize("loss", ["mse", "fastfill"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, features, loss):
    np.save(tmp_path / "classifier.npy", np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32))
    config = {"model": PAPER, "loss": loss, "classifier": str(tmp_path / "classifier.npy")}

    def killer(progress):
        if progress.step == 13:  # in the third epoch
            raise KilledError

    whole = trained(tmp_path / "whole", features, **config)
    with pytest.raises(KilledError):
        trained(tmp_path / "killed", features, killer, **config)
    resumed = trained(tmp_path / "killed", features, **config)
    whole_files, resumed_files = (
        [(tmp_path / name / file).read_bytes() for file in RESUMED_FILES] for name in ("whole", "killed")
    )
    assert resumed_files == whole_files
    assert {**resumed, "checkpoint": whole["checkpoint"]} == whole


def test_without_side_information_the_program_takes_the_old_embedding_alone(tmp_path, features):
    del features["side"]
    result = trained(tmp_path / "run", features, model=PAPER, loss="cosine")
    assert program_of(tmp_path / "run").dims == {"old": 6}
    assert result["validation_cosine"] > 0.5


def test_several_sides_are_one_wide_one(tmp_path, features):
    """Concatenated by hand or by the configuration: the same transformation."""
    by_hand = tmp_path / "both"
    by_hand.mkdir()
    for file in sorted(Path(features["side"]).iterdir()):
        np.save(
            by_hand / file.name, np.concatenate([np.load(file), np.load(Path(features["old"]) / file.name)], axis=1)
        )
    data = {name: features[name] for name in ("old", "new")}
    listed = trained(tmp_path / "l", data | {"side": [features["side"], features["old"]]}, model=PAPER)
    wide = trained(tmp_path / "w", data | {"side": str(by_hand)}, model=PAPER)
    assert program_of(tmp_path / "l").dims == {"old": 6, "side": 12}
    assert program_of(tmp_path / "l").digest == program_of(tmp_path / "w").digest
    assert {**listed, "checkpoint": ""} == {**wide, "checkpoint": ""}


def test_views_of_an_image_are_held_out_together(tmp_path):
    """Two views of each image: of an image that is held out, no row is trained on, or its figures would flatter."""
    images = make_columns(300)
    columns = {name: np.concatenate([column, column]) for name, column in images.items()}
    paths = {name: str(path) for name, path in write_columns(tmp_path / "f", columns, (350, 250)).items()}
    result = trained(tmp_path / "run", paths | {"views": 2}, model={"name": "ridge"})
    assert (result["training_rows"], result["validation_rows"]) == (480, 120)
    data = open_features([FeatureFolders(paths["old"], paths["new"], views=2)], None, 0.2, 0)
    held_out = np.isin(np.arange(600), data.split.held_out)
    np.testing.assert_array_equal(held_out[:300], held_out[300:])


def test_the_best_epoch_can_be_the_result(tmp_path, features):
    training = TRAINING | {"learning_rate": 0.1, "epochs": 6, "schedule": "step"}  # too fast to end where it was best
    found = {
        result: trained(tmp_path / result, features, model=PAPER, training=training | {"result": result})
        for result in ("last", "best")
    }
    history = validation_of(tmp_path / "last")
    best = min(history, key=lambda row: row["loss"])
    assert best["epoch"] < 6
    assert found["best"]["validation_loss"] == pytest.approx(best["loss"], rel=1e-4)
    assert found["last"]["validation_loss"] == pytest.approx(history[-1]["loss"], rel=1e-4)
    # Between standardised spaces the loss is a share of the variance.
    ratios = [each["validation_mse"] / each["validation_loss"] for each in found.values()]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)
    for one, other in (("last", "best"), ("best", "last")):
        beside = (tmp_path / one / other / "checkpoint.safetensors").read_bytes()
        assert beside == (tmp_path / other / "checkpoint.safetensors").read_bytes()


def test_fastfill_writes_the_scores_of_a_gallery(tmp_path, features):
    arrays = write_gallery(tmp_path / "gallery", (30, 20), old_dim=6, side_dim=6)
    spec = ModelSpec("cosine_classifier", {"dim": 8, "classes": 4, "scale": 8.0})
    save_checkpoint(tmp_path / "new" / "classifier", spec.build(CosineClassifier), spec, {})
    trained(
        tmp_path / "run",
        features,
        model=PAPER,
        loss="fastfill",
        classifier=str(tmp_path / "new"),
        scores_gallery=str(tmp_path / "gallery"),
    )
    module, _ = load_checkpoint(tmp_path / "run" / "checkpoint", TransformationModule)
    expected = apply_float64(to_uncertainty_program(module), arrays["old"], arrays["side"])[:, 0]
    np.testing.assert_allclose(np.load(tmp_path / "run" / "scores.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_mixture_is_fitted_on_all_its_rows(tmp_path, features):
    other = write_columns(tmp_path / "other", make_columns(300, seed=1), (300,))
    more = {name: str(path) for name, path in other.items() if name != "labels"}
    result = trained(tmp_path / "run", features, model={"name": "ridge"}, mixture=[more])
    assert result["training_rows"] + result["validation_rows"] == 1000


def test_a_chain_is_judged_beside_the_direct_way(tmp_path):
    """v1 -> v2 -> v3 against v1 -> v3 on the same held-out rows of the same gallery."""
    columns, rng = make_columns(700), np.random.default_rng(3)
    v2 = np.tanh(columns["new"] @ rng.standard_normal((8, 5))).astype(np.float32)
    paths = write_columns(tmp_path / "features", {**columns, "v2": v2}, (700,))
    old, side, v2_path, new = (str(paths[name]) for name in ("old", "side", "v2", "new"))
    steps = {"12": (old, v2_path), "23": (v2_path, new), "direct": (old, new)}
    for name, (source, target) in steps.items():
        trained(tmp_path / name, {"old": source, "side": side, "new": target}, model={"name": "ridge"})
    ends = [str(tmp_path / name / "checkpoint.json") for name in ("12", "23")]
    chain = {"name": "chain", "arguments": {"first": ends[0], "second": ends[1]}}
    chained = trained(tmp_path / "chain", {"old": old, "side": side, "new": new}, model=chain)
    direct = json.loads((tmp_path / "direct" / "result.json").read_text())
    assert chained["validation_rows"] == direct["validation_rows"] == 140
    assert direct["validation_mse"] < chained["validation_mse"]
    assert program_of(tmp_path / "chain").dims == {"old": 6, "side": 6}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"model": {"name": "papier"}}, UsageError, "unknown model 'papier'"),
        ({"model": {"name": "ridg"}}, UsageError, "unknown model 'ridg'; did you mean 'ridge'"),
        ({"model": {"name": "ridge", "arguments": {"alpha": 1}}}, UsageError, "'ridge': unknown argument 'alpha'"),
        ({"model": {"name": "low_rank"}}, UsageError, r"model\.arguments: .*'rank'"),
        ({"model": {"name": "chain"}}, UsageError, "first and second"),
        ({"model": {"name": "chain", "arguments": {"first": "a", "second": "b", "x": 1}}}, UsageError, r"not \['x'\]"),
        ({"model": {"name": "chain", "arguments": {"first": "a", "second": "b"}}}, ArtifactError, r"a\.json"),
        ({"loss": "huber"}, UsageError, "loss: got 'huber'"),
        ({"loss": "fastfill"}, UsageError, "needs labels, the new model's classifier"),
        ({"scores_gallery": "nowhere"}, UsageError, "only FastFill knows uncertainties"),
        ({"scores_gallery": "nowhere", "loss": "fastfill"}, GalleryError, "nowhere: is not a folder"),
        ({"training": {"epoch": 3}}, UsageError, r"training\.epoch: unknown key.*'epochs'"),
        ({"training": 3}, UsageError, "training: got 3"),
        ({"validation": 1.5}, UsageError, "below 1"),
        ({"data": {"old": "a.npy", "new": "b.npy", "side": 3}}, UsageError, r"data\.side: got 3 .*a string or a list"),
        ({"classifier": "nowhere.npy"}, GalleryError, r"nowhere\.npy"),
        ({"mixture": [{"old": "nowhere", "new": "nowhere"}]}, GalleryError, "nowhere"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, features, config, error, message):
    with pytest.raises(error, match=message):
        trained(tmp_path / "run", features, **{"model": PAPER, **config})
    assert not (tmp_path / "run").exists()


def test_labels_that_the_classifier_does_not_know_are_named(tmp_path, features):
    np.save(tmp_path / "classifier.npy", np.zeros((3, 8), np.float32))
    with pytest.raises(FctError, match=r"labels: row \d+ is 3, the classifier knows 0 to 2"):
        trained(tmp_path / "run", features, model=PAPER, loss="fastfill", classifier=str(tmp_path / "classifier.npy"))


@pytest.mark.parametrize("weight", [np.zeros(3), np.zeros((2, 2), np.int64), np.full((2, 2), np.nan)])
def test_a_classifier_that_is_none_is_refused(tmp_path, weight):
    np.save(tmp_path / "classifier.npy", weight)
    with pytest.raises(GalleryError, match=r"wanted finite floats \(classes, d_new\)"):
        load_classifier(tmp_path / "classifier.npy")


def test_a_linear_classifier_is_read_from_its_weight(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "classifier.npy", weight)
    with torch.no_grad():
        logits = load_classifier(tmp_path / "classifier.npy")(torch.ones(1, 2))
    np.testing.assert_array_equal(logits.numpy(), weight.sum(axis=1)[None])
