"""Configurations and checkpoints that ask for more than anybody has."""

from __future__ import annotations

import json
import time

import pytest

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.training.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.config import MAX_ALIASES, MAX_CONFIG_CHARACTERS, read_config
from fct_infer.training.models.base import TransformationModule
from fct_infer.training.models.registry import ModelSpec


def test_aliases_of_aliases_are_not_followed(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(levels))
    start = time.monotonic()
    with pytest.raises(UsageError, match=rf"bomb\.yaml.* 81 aliases, at most {MAX_ALIASES}"):
        read_config(tmp_path / "bomb.yaml")
    assert time.monotonic() - start < 10
    (tmp_path / "few.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert read_config(tmp_path / "few.yaml") == {"a": [1, 2], "b": [1, 2]}


def test_deep_nesting_is_refused_as_it_is_read(tmp_path):
    """Whole, 100,000 levels take PyYAML minutes."""
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="nested more than 64 levels deep"):
        read_config(tmp_path / "deep.yaml")


def test_a_huge_configuration_is_not_read(tmp_path):
    (tmp_path / "long.yaml").write_text("a: " + "x" * MAX_CONFIG_CHARACTERS)
    with pytest.raises(UsageError, match="characters, at most"):
        read_config(tmp_path / "long.yaml")


def test_a_description_of_a_far_larger_model_is_refused_before_memory_is_taken(tmp_path):
    spec = ModelSpec("mlp", {"old_dim": 8, "side_dim": 4, "new_dim": 6, "hidden_dims": [5]})
    save_checkpoint(tmp_path / "h", spec.build(TransformationModule), spec, {})
    description = json.loads((tmp_path / "h.json").read_text())
    description["model"]["arguments"]["hidden_dims"] = [300_000, 300_000]  # 360 GB
    (tmp_path / "h.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match=r"h\.safetensors: .*bytes, its model needs 360,0"):
        load_checkpoint(tmp_path / "h", TransformationModule)
