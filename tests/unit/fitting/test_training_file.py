from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.pairs import curved

from fct_infer import Transformation
from fct_infer.errors import OutputError, UsageError
from fct_infer.fitting.crossfit import statistics_of
from fct_infer.fitting.network import Schedule, train
from fct_infer.fitting.training_file import refuse_existing_config, write_config
from fct_infer.maps import Recipe
from fct_infer.reference import apply_float64
from fct_infer.training.config import read_config
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint
from fct_infer.training.models.folding import to_program
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.trainers.transformation_run import run_transformation


def chosen(pairs, recipe, steps=300):
    """What a fit returns, as far as a configuration needs it."""
    schedule = Schedule(32, steps, steps)
    return SimpleNamespace(network=(recipe, schedule, 1.0), pairs=len(pairs)), schedule


@pytest.mark.parametrize("recipe", [Recipe(alpha=0.1, side_alpha=0.1), Recipe(alpha=0.1, unit_deviation=True)])
def test_the_configuration_trains_what_was_chosen(tmp_path, recipe):
    pairs, fresh = replace(curved(700), matched=700), curved(400, seed=1)
    found, schedule = chosen(pairs, recipe)
    write_config(found, pairs, {}, tmp_path / "h.yaml")
    config = read_config(tmp_path / "h.yaml")
    assert config["data"]["old"] == str(tmp_path / "h-pairs" / "old.npy")
    assert ("side" in config["data"]) == (recipe.side_alpha is not None)
    with RunFolder(tmp_path / "run") as run:
        run_transformation(config, run)
    program = to_program(load_checkpoint(tmp_path / "run" / "checkpoint", TransformationModule)[0])
    rows = np.arange(700)
    own = to_program(train(pairs, rows, (recipe, statistics_of(pairs, rows)), schedule))
    assert program.structure() == own.structure()
    errors = {}
    for name, each in (("again", program), ("own", own), ("start", recipe.fit(statistics_of(pairs, rows)))):
        h = Transformation(each, "fp32")
        errors[name] = np.mean((h(fresh.old, fresh.side if h.side_dim else None) - fresh.new) ** 2)
    assert abs(errors["again"] - errors["own"]) < 0.4 * (errors["start"] - errors["own"])


def test_files_that_are_the_pairs_are_named_instead_of_copied(tmp_path):
    pairs = replace(curved(200), matched=200)
    paths = {name: tmp_path / f"{name}.npy" for name in ("old", "new", "side")}
    for name, path in paths.items():
        np.save(path, getattr(pairs, name))
    found, _ = chosen(pairs, Recipe(side_alpha=1.0))
    write_config(found, pairs, paths, tmp_path / "h.yaml")
    assert read_config(tmp_path / "h.yaml")["data"] == {name: str(path) for name, path in paths.items()}
    assert not (tmp_path / "h-pairs").exists()
    for changed in ({"old_ids": tmp_path / "ids.npy"}, {"old": tmp_path / "old.parquet"}):
        write_config(found, pairs, paths | changed, tmp_path / "h.yaml")
        assert "h-pairs" in read_config(tmp_path / "h.yaml")["data"]["old"]


@pytest.mark.parametrize(
    "recipe",
    [Recipe(alpha=0.3, side_alpha=2.0), Recipe(share=0.5, unit_deviation=True), Recipe(rank=3), Recipe(share=1)],
    ids=lambda recipe: recipe.name,
)
def test_a_closed_form_is_solved_for_again(tmp_path, recipe):
    pairs = replace(curved(300), matched=300)
    found = SimpleNamespace(network=None, chosen=SimpleNamespace(recipe=recipe), pairs=300)
    write_config(found, pairs, {}, tmp_path / "h.yaml")
    config = read_config(tmp_path / "h.yaml") | {"validation": 0.0}
    with RunFolder(tmp_path / "run") as run:
        run_transformation(config, run)
    program = to_program(load_checkpoint(tmp_path / "run" / "checkpoint", TransformationModule)[0])
    own = recipe.fit(statistics_of(pairs, np.arange(300)))
    side = pairs.side if "side" in own.dims else None
    np.testing.assert_allclose(
        apply_float64(program, pairs.old, side), apply_float64(own, pairs.old, side), rtol=1e-4, atol=1e-4
    )


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    there = tmp_path / "h.yaml"
    there.write_text("mine")
    with pytest.raises(OutputError, match="--force replaces it"):
        refuse_existing_config(there, tmp_path / "h", {}, force=False)
    refuse_existing_config(there, tmp_path / "h", {}, force=True)
    with pytest.raises(OutputError, match="exists"):
        refuse_existing_config(tmp_path, tmp_path / "h", {}, force=True)
    with pytest.raises(UsageError, match="is the bundle, too"):
        refuse_existing_config(tmp_path / "h", tmp_path / "h", {}, force=True)
    with pytest.raises(UsageError):
        refuse_existing_config(there, tmp_path / "h", {"--old": there}, force=True)


def test_the_papers_h_is_configured_by_its_width():
    from fct_infer.fitting.training_file import network_settings

    found = network_settings(Recipe(side_alpha=1.0), Schedule(64, 300, 200, model="paper", batch_rows=40), 1000)
    assert found["model"] == {"name": "paper", "arguments": {"inner_dim": 64}}
    training = found["training"]
    assert (training["epochs"], training["batch_size"], training["warmup_epochs"]) == (8, 40, 0.5)
    assert (training["optimizer"], training["weight_decay"]) == ("adam", 2**-15)


def test_what_a_network_was_mixed_with_is_said_beside_its_configuration(tmp_path):
    pairs = replace(curved(100), matched=100)
    network = Recipe(share=1, side_alpha=1.0), Schedule(64, 300, 200, model="paper"), 0.25
    screened = SimpleNamespace(closed_form=SimpleNamespace(name="Procrustes, unit deviation"))
    write_config(SimpleNamespace(network=network, pairs=100, screened=screened), pairs, {}, tmp_path / "h.yaml")
    text = (tmp_path / "h.yaml").read_text()
    assert "fct-fit took 25 % of it and 75 % of a closed form (Procrustes, unit deviation)" in text
    assert read_config(tmp_path / "h.yaml")["model"]["name"] == "paper"
