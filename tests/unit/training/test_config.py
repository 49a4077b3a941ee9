"""Configurations: every mistake is named by its key, and what is written is what is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from fct_infer.errors import UsageError
from fct_infer.training.config import from_plain, read_config, shipped_recipes, to_plain, to_yaml
from fct_infer.training.runs.loop import TrainingConfig
from fct_infer.training.trainers.backbone_run import BackboneRunConfig, BctRunConfig
from fct_infer.training.trainers.side_information_run import AutoencoderRunConfig, SimClrRunConfig
from fct_infer.training.trainers.transformation_run import ImageTransformationRunConfig, TransformationRunConfig

KINDS = {
    "old": BackboneRunConfig,
    "new": BackboneRunConfig,
    "bct": BctRunConfig,
    "side_information": SimClrRunConfig,
    "transformation": TransformationRunConfig,
    "transformation_from_images": ImageTransformationRunConfig,
}
OTHER_KINDS = {"autoencoder": AutoencoderRunConfig}
CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*/*.yaml"))


@dataclass(frozen=True)
class Wheel:
    size: float
    kind: Literal["spoked", "solid"] = "spoked"


@dataclass(frozen=True)
class Bicycle:
    wheels: tuple[Wheel, ...]
    gears: int = 7
    name: str | None = None
    tags: str | list[str] = "all"
    bell: bool = True
    extras: dict[str, int] = field(default_factory=dict)


def test_values_are_read_into_nested_types_with_defaults():
    bicycle = from_plain(Bicycle, {"wheels": [{"size": 26}, {"size": "2.6e1", "kind": "solid"}], "tags": ["a"]})
    assert bicycle == Bicycle((Wheel(26.0), Wheel(26.0, "solid")), tags=["a"])
    assert isinstance(bicycle.wheels[0].size, float)


def test_what_is_written_is_what_is_read():
    bicycle = Bicycle((Wheel(1e-5, "solid"),), 3, "née", ["x", "50 %"], False, {"lamps": 2})
    assert from_plain(Bicycle, yaml.safe_load(to_yaml(to_plain(bicycle)))) == bicycle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gear": 1}, r"^gear: unknown key; did you mean 'gears'\?"),
        ({"saddle": 1}, r"^saddle: unknown key; known are wheels, gears, "),
        ({"gears": 1.5}, r"^gears: got 1.5 \(float\), wanted an integer"),
        ({"gears": True}, r"^gears: got True \(bool\), wanted an integer"),
        ({"gears": "many"}, r"^gears: got 'many' \(str\), wanted an integer"),
        ({"bell": 1}, r"^bell: got 1 \(int\), wanted true or false"),
        ({"name": 3}, r"^name: got 3 \(int\), wanted a string"),
        ({"tags": 3}, r"^tags: got 3 \(int\), wanted a string or a list"),
        ({"extras": []}, r"^extras: got \[\] \(list\), wanted a mapping"),
        ({"wheels": {}}, r"^wheels: got {} \(dict\), wanted a list"),
        ({"wheels": [3]}, r"^wheels\[0\]: got 3 \(int\), wanted a mapping"),
        ({"wheels": [{"size": 1}, {}]}, r"^wheels\[1\]\.size: missing, and has no default"),
        ({"wheels": [{"size": "big"}]}, r"^wheels\[0\]\.size: got 'big' \(str\), wanted a number"),
        ({"wheels": [{"size": 1, "kind": "square"}]}, r"^wheels\[0\]\.kind: got 'square' \(str\), wanted 'spoked' or"),
    ],
)
def test_a_mistake_is_named_by_its_key(change, message):
    with pytest.raises(UsageError, match=message):
        from_plain(Bicycle, {"wheels": []} | change)


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 0), ("batch_size", 0), ("learning_rate", -1), ("weight_decay", float("inf"))]
)
def test_numbers_out_of_range_are_named(key, value):
    values = {"model": {"name": "x"}, "data": {"source": "glyphs"}}
    training = {"epochs": 1, "learning_rate": 1, key: value}
    with pytest.raises(UsageError, match=rf"^training\.{key}: got {value}"):
        from_plain(BackboneRunConfig, values | {"training": training})


def test_overrides_go_on_top_and_may_add(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {epochs: 1, seed: 3}\n")
    values = read_config(
        path, ["training.epochs=10", "model.arguments.widths=[8, 16]", "data.classes=first 50 %", "x="]
    )
    assert values == {
        "training": {"epochs": 10, "seed": 3},
        "model": {"arguments": {"widths": [8, 16]}},
        "data": {"classes": "first 50 %"},
        "x": None,
    }


@pytest.mark.parametrize("override", ["training", "=3", "training..epochs=1", "training.epochs.x=1", "a=[", "a={b"])
def test_an_override_that_is_none_is_shown(override, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {epochs: 1}\n")
    with pytest.raises(UsageError) as caught:
        read_config(path, [override])
    assert str(caught.value).startswith(f"--set {override}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"a: [", "is not YAML"),
        (b"- a", "holds a list, wanted a mapping"),
        (b"\xff\xfe", "cannot be read"),
        (b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_empty_file_means_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert read_config(path) == {}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_papers_settings_are_configurations(path):
    kind = (KINDS | OTHER_KINDS)[path.stem]
    settings = from_plain(kind, read_config(path))
    assert from_plain(kind, to_plain(settings)) == settings
    training: TrainingConfig = settings.training
    assert training.epochs >= 10


def test_every_data_set_has_a_configuration_for_every_command():
    assert {(path.parent.name, path.stem) for path in CONFIGS} >= {
        (data, kind) for data in ("cifar100", "imagenet", "places365", "vggface2", "glyphs") for kind in KINDS
    }


def test_recipes_that_come_along_are_found_by_name():
    assert {path.relative_to(path.parents[1]).with_suffix("").as_posix() for path in CONFIGS} == set(shipped_recipes())
    assert read_config("glyphs/old") == read_config(CONFIGS[0].parents[1] / "glyphs" / "old.yaml")


def test_a_recipe_that_does_not_exist_is_refused_with_a_guess():
    with pytest.raises(UsageError, match="glyphs/odl: no such file or recipe; did you mean 'glyphs/old'"):
        read_config("glyphs/odl")
