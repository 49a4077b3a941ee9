"""A transformation is trained on cached embeddings in any format, to the same weights as on ``.npy``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.features import make_columns, write_columns
from support.vector_files import fixed_size

from fct_infer import SourceOptions
from fct_infer.connectors.convert import convert
from fct_infer.errors import GalleryError, OutputError, UsageError
from fct_infer.export.checkpoints import open_named
from fct_infer.identity import ModelId
from fct_infer.training.features.cached import Features, concatenate
from fct_infer.training.runs.folder import RunFolder
from fct_infer.training.trainers.transformation_run import run_transformation

ROWS = 200


@pytest.fixture
def columns():
    return make_columns(ROWS, 6, 4, 8)


def write_parquet(path, rows, ids=None, side=None, model=None):
    table = {"vector": fixed_size(rows)} | ({} if ids is None else {"id": ids})
    table |= {} if side is None else {"side_information": fixed_size(side)}
    said = {} if model is None else {"fct_infer.model": f'{{"name": "{model}"}}'}
    pq.write_table(pa.table(table).replace_schema_metadata(said), path, row_group_size=64)


def trained(folder, data, **config):
    with RunFolder(folder) as run:
        run_transformation({"data": data, "model": {"name": "ridge"}, "validation": 0.2} | config, run)
    return (folder / "checkpoint.safetensors").read_bytes()


def test_parquet_gives_the_weights_of_npy(tmp_path, columns):
    ids = np.arange(ROWS) * 3
    folders = write_columns(tmp_path / "npy", columns, (120, 80))
    expected = trained(tmp_path / "a", {name: str(folders[name]) for name in ("old", "side", "new")})
    write_parquet(tmp_path / "old.parquet", columns["old"], ids, columns["side"])
    write_parquet(tmp_path / "new.parquet", columns["new"], ids)
    data = {
        "old": str(tmp_path / "old.parquet"),
        "new": str(tmp_path / "new.parquet"),
        "labels": str(folders["labels"]),
    }
    assert trained(tmp_path / "b", data) == expected
    converted = tmp_path / "b" / "features" / "converted-0"
    side, labels = converted / "old" / "side_information", converted / "labels.npy"
    features = Features.open(converted / "old" / "embeddings", converted / "new" / "embeddings", side, labels)
    read = concatenate(list(features.blocks()))
    for name, column in columns.items():
        np.testing.assert_array_equal(read[name], column)


def test_formats_can_be_mixed_and_galleries_named(tmp_path, columns):
    for name in ("old", "new", "side"):
        np.save(tmp_path / f"{name}.npy", columns[name])
    expected = trained(tmp_path / "a", {name: str(tmp_path / f"{name}.npy") for name in ("old", "new", "side")})
    np.savez(tmp_path / "new.npz", new=columns["new"].astype(np.float64), other=columns["new"][:, :2])
    data = {"old": str(tmp_path / "old.npy"), "side": str(tmp_path / "side.npy"), "new": str(tmp_path / "new.npz")}
    with pytest.raises(GalleryError, match="holds float64"):
        trained(tmp_path / "b", data | {"new_column": "new"})
    assert trained(tmp_path / "c", data | {"new_column": "new", "allow_cast": True}) == expected
    write_parquet(tmp_path / "old.parquet", columns["old"], side=columns["side"])
    for name, file in (("old", "old.parquet"), ("new", "new.npy")):
        convert(tmp_path / file, tmp_path / f"g_{name}", SourceOptions(model=f"{name}-model"), rows_per_shard=150)
    galleries = {"old": str(tmp_path / "g_old"), "new": str(tmp_path / "g_new")}
    assert trained(tmp_path / "d", galleries) == expected
    assert not (tmp_path / "d" / "features").exists()  # nothing to convert
    opened = open_named(tmp_path / "d", None, ())
    assert opened.models == {"old": ModelId("old-model"), "new": ModelId("new-model")}
    trained(tmp_path / "e", galleries, new_model="v9")
    assert open_named(tmp_path / "e", None, ()).models["new"] == ModelId("v9")


def test_models_are_known_from_parquet(tmp_path, columns):
    for name in ("old", "new"):
        write_parquet(tmp_path / f"{name}.parquet", columns[name], model=f"{name}-1")
    trained(tmp_path / "a", {name: str(tmp_path / f"{name}.parquet") for name in ("old", "new")})
    assert open_named(tmp_path / "a", None, ()).models == {"old": ModelId("old-1"), "new": ModelId("new-1")}


def test_rows_that_are_not_the_same_items_are_refused(tmp_path, columns):
    ids = np.arange(ROWS)
    write_parquet(tmp_path / "old.parquet", columns["old"], ids)
    write_parquet(tmp_path / "few.parquet", columns["new"][:150], ids[:150])
    write_parquet(tmp_path / "other.parquet", columns["new"], np.roll(ids, 1))
    data = {"old": str(tmp_path / "old.parquet")}
    with pytest.raises(GalleryError, match=r"few\.parquet: holds 150 rows, .* 200; .*fct-fit matches rows by ids"):
        trained(tmp_path / "a", data | {"new": str(tmp_path / "few.parquet")})
    with pytest.raises(GalleryError, match=r"other\.parquet.*row 0: is of id 199, the old row of 0"):
        trained(tmp_path / "b", data | {"new": str(tmp_path / "other.parquet")})


def test_what_is_no_set_is_refused(tmp_path, columns):
    folders = write_columns(tmp_path / "npy", columns, (120, 80))
    write_parquet(tmp_path / "new.parquet", columns["new"])
    with pytest.raises(UsageError, match=r"old: a folder of \.npy shards goes with other such folders"):
        trained(tmp_path / "a", {"old": str(folders["old"]), "new": str(tmp_path / "new.parquet")})
    with pytest.raises(GalleryError, match="nowhere"):
        trained(tmp_path / "b", {"old": str(tmp_path / "nowhere.parquet"), "new": str(tmp_path / "new.parquet")})


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_killed_run_goes_on_with_what_was_converted_unless_it_changed(tmp_path, columns, monkeypatch, is_changed):
    for name in ("old", "new"):
        write_parquet(tmp_path / f"{name}.parquet", columns[name])
    data = {name: str(tmp_path / f"{name}.parquet") for name in ("old", "new")}
    training = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 40}
    config = {"model": {"name": "linear"}, "training": training}
    expected = trained(tmp_path / "a", data, **config)
    save_state = RunFolder.save_state

    def killed_after_one(self, state):
        save_state(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save_state", killed_after_one)
        trained(tmp_path / "b", data, **config)
    converted = tmp_path / "b" / "features" / "converted-0" / "old" / "embeddings" / "000000.npy"
    before = converted.stat().st_ino
    if is_changed:
        write_parquet(tmp_path / "new.parquet", columns["new"][::-1])
        with pytest.raises(OutputError, match="made from files that have changed since"):
            trained(tmp_path / "b", data, **config)
    else:
        assert trained(tmp_path / "b", data, **config) == expected
    assert converted.stat().st_ino == before
