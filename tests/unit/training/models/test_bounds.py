"""Configurations and checkpoints that ask for more than anybody has."""

from __future__ import annotations

import json
import os
import time

import pytest

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.training.config import MAX_ALIASES, MAX_CONFIG_CHARACTERS, read_config
from fct_infer.training.models.base import Backbone, TransformationModule
from fct_infer.training.models.checkpoints import load_checkpoint, save_checkpoint
from fct_infer.training.models.registry import ModelSpec


def test_aliases_of_aliases_are_not_followed(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(levels))
    start = time.monotonic()
    with pytest.raises(UsageError, match=rf"bomb\.yaml.* 81 aliases, at most {MAX_ALIASES}"):
        read_config(tmp_path / "bomb.yaml")
    assert time.monotonic() - start < 60
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


def test_what_is_no_configuration_file_is_not_read_either(tmp_path):
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(100 << 30)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4")
    refusals = {
        "large": "wanted at most",
        "pipe": "not a regular file",
        "latin": "not UTF-8",
        "missing": "no such file",
    }
    for name, message in refusals.items():
        with pytest.raises(UsageError, match=rf"{name}\.yaml: .*{message}"):
            read_config(tmp_path / f"{name}.yaml")


def test_a_description_of_a_far_larger_model_is_refused_before_memory_is_taken(tmp_path):
    spec = ModelSpec("mlp", {"old_dim": 8, "side_dim": 4, "new_dim": 6, "hidden_dims": [5]})
    save_checkpoint(tmp_path / "h", spec.build(TransformationModule), spec, {})
    description = json.loads((tmp_path / "h.json").read_text())
    description["model"]["arguments"]["hidden_dims"] = [300_000, 300_000]  # 360 GB
    (tmp_path / "h.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match=r"h\.safetensors: .*bytes, its model needs 360,0"):
        load_checkpoint(tmp_path / "h", TransformationModule)


CHAIN = [
    {"op": "linear", "input": f"s{step}" if step else "old", "output": f"s{step + 1}", "activation": "none"}
    for step in range(5_000)
]
DIMS = {"old_dim": 1, "side_dim": 0, "new_dim": 1}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("paper", {**DIMS, "inner_dim": 1, "mixer_depth": 10**12}),
        ("paper", {**DIMS, "inner_dim": 1, "branch_depth": 10**12}),
        ("mlp", {**DIMS, "hidden_dims": [1] * 40_000}),
        ("residual_mlp", {**DIMS, "width": 1, "inner_dim": 1, "blocks": 10**12}),
        ("resnet", {"embedding_dim": 4, "blocks": [1, 10**12, 1]}),
        (
            "program",
            {
                "structure": {"inputs": {"old": 1}, "steps": CHAIN, "output": "s5000"},
                "widths": {f"s{step}": 1 for step in range(1, 5_001)},
            },
        ),
    ],
)
def test_a_description_of_countless_layers_is_refused_before_any_is_built(tmp_path, name, arguments):
    spec = ModelSpec("mlp", {"old_dim": 8, "side_dim": 4, "new_dim": 6, "hidden_dims": [5]})
    save_checkpoint(tmp_path / "h", spec.build(TransformationModule), spec, {})
    description = json.loads((tmp_path / "h.json").read_text())
    description["model"] = {"name": name, "arguments": arguments}
    (tmp_path / "h.json").write_text(json.dumps(description))
    start = time.monotonic()
    with pytest.raises(ArtifactError, match=r"h\.safetensors: .* layers or blocks, at most 1,000 are built"):
        load_checkpoint(tmp_path / "h", (TransformationModule, Backbone))
    assert time.monotonic() - start < 60
