"""The reference of recipes: every key, described, and every command's."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

from fct_infer.maps import MAPS
from fct_infer.training.config import shipped_recipes
from fct_infer.training.models.registry import BACKBONES, TRAINED

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reference/configuration.md").read_text()
CONFIGURATIONS = [resolve_name(name) for name in re.findall(r"recipe-keys:: (\S+)", PAGE)]


def load_recipe_keys():
    spec = importlib.util.spec_from_file_location("recipe_keys", DOCS / "recipe_keys.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


recipe_keys = load_recipe_keys()


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_every_key_is_described_and_what_it_holds_is_on_the_page(kind):
    keys = recipe_keys.keys_of(kind)
    assert {key.name for key in keys} == {field.name for field in dataclasses.fields(kind)}
    assert [key.name for key in keys if not key.text] == []
    assert recipe_keys.nested_in(kind) <= {kind, *CONFIGURATIONS}
    for nested in recipe_keys.nested_in(kind) - {kind}:
        assert f"(keys-{nested.__name__})=" in PAGE


def test_every_configuration_that_a_command_reads_is_on_the_page():
    trainers = "".join(path.read_text() for path in Path(resolve_name("fct_infer.training").__path__[0]).rglob("*.py"))
    read = set(re.findall(r"from_plain\((\w+Config),", trainers))
    assert len(read) > 5
    assert read <= {kind.__name__ for kind in CONFIGURATIONS}


@pytest.mark.parametrize("name", shipped_recipes())
def test_keys_of_the_recipes_that_come_along_are_known(name):
    known = {key.name for kind in CONFIGURATIONS for key in recipe_keys.keys_of(kind)}
    assert _keys(yaml.safe_load(shipped_recipes()[name].read_text())) <= known


def _keys(values: Any) -> set[str]:
    if not isinstance(values, dict):
        return set()
    return set(values) | {key for name, each in values.items() if name != "arguments" for key in _keys(each)}


def test_defaults_and_types_read_as_yaml():
    training = next(
        key
        for kind in CONFIGURATIONS
        if kind.__name__ == "TransformationRunConfig"
        for key in recipe_keys.keys_of(kind)
        if key.name == "training"
    )
    assert yaml.safe_load(training.default.strip("`"))["freeze_batch_norm_from"] == 0.5
    assert "batch_size" in training.default
    assert training.type == ":ref:`TrainingConfig <keys-TrainingConfig>`"


def test_arguments_of_models_and_maps_leave_out_what_the_data_say():
    shown = {name: recipe_keys.arguments_of(make) for name, make in {**BACKBONES, **TRAINED, **MAPS}.items()}
    assert "``inner_dim``: integer = ``2048``" in shown["paper"]
    assert "``alphas``: list of number" in shown["ridge"]
    assert shown["linear"] == "none"
    assert "``embedding_dim``: integer or null = ``null``" in shown["resnet50"]
    assert not any(name in text for text in shown.values() for name in ("old_dim", "validation", "uncertainty"))
