"""Data sets as the library ``datasets`` saves them, read without it."""

from __future__ import annotations

import json
import subprocess
import sys

import datasets
import fsspec
import numpy as np
import pytest
from support import vector_files as files

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.connectors.registry import kind_of
from fct_infer.errors import GalleryError, UsageError

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)
datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path):
    files.write_dataset(tmp_path / "saved", VECTORS)
    return tmp_path / "saved"


def test_rows_come_in_the_order_that_state_json_tells(saved):
    source = open_source(saved)
    assert kind_of(saved) == "dataset" and source.schema.columns == {"embedding": "embedding"}
    assert source.schema.other_columns == ("title",)
    assert (source.read_rows(np.arange(230))[0] == VECTORS).all()
    assert (source.read_rows(np.array([3, 90, 200]))[0] == VECTORS[[3, 90, 200]]).all()
    names = [f"data-0000{number}-of-00003.arrow" for number in range(3)]
    assert list(source.files) == [*names, "state.json"]
    assert source.where(200).endswith("saved/data-00002-of-00003.arrow, row 46")
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"].reverse()
    before = source.fingerprint()
    (saved / "state.json").write_text(json.dumps(state))
    swapped = open_source(saved)
    assert (swapped.read_rows(np.arange(76))[0] == VECTORS[154:]).all() and swapped.fingerprint() != before


def test_shuffled_and_chosen_rows_come_as_the_library_gives_them(tmp_path):
    rows = {"id": [f"d{row}" for row in range(230)], "embedding": VECTORS}
    made = datasets.Dataset.from_dict(rows).with_format("numpy").shuffle(seed=1).select(range(50))
    made.save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    expected = datasets.load_from_disk(str(tmp_path / "saved")).with_format("numpy")
    part = source.parts()[0]
    with source.open_part(part) as reader:
        assert reader.read_ids(0, 50).tolist() == list(expected["id"])
    assert (source.read_rows(np.arange(50))[0] == np.stack(list(expected["embedding"]))).all()


def test_float64_is_cast_only_if_asked(tmp_path):
    datasets.Dataset.from_dict({"embedding": VECTORS.tolist()}).save_to_disk(tmp_path / "saved")
    with pytest.raises(GalleryError, match="column 'embedding': holds float64"):
        open_source(tmp_path / "saved")
    source = open_source(tmp_path / "saved", SourceOptions(allow_cast=True))
    assert (source.read_rows(np.arange(230))[0] == VECTORS).all()


def test_of_splits_one_is_to_be_named(tmp_path):
    made = datasets.Dataset.from_dict({"embedding": VECTORS})
    datasets.DatasetDict({"train": made, "test": made.select(range(3))}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match=r"name one: .*saved/train, .*saved/test"):
        open_source(tmp_path / "saved")
    assert open_source(tmp_path / "saved/test").schema.rows == 3


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"_data_files": [{"filename": "../data.arrow"}]}, r"state\.json: names the file '\.\./data\.arrow'"),
        ({"_data_files": [{"filename": 7}]}, r"state\.json: names the file 7"),
        ({"_data_files": []}, r"state\.json: names no files"),
        ({"_data_files": [{"filename": "a"}, {"filename": "a"}]}, "or one of them twice"),
        ({"_data_files": [{"filename": "none.arrow"}]}, r"none\.arrow: cannot be read"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "its rows are chosen by an index; save it with"),
        ([], "holds no JSON object"),
    ],
)
def test_a_state_that_cannot_be_followed(saved, state, words):
    whole = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**whole, **state} if isinstance(state, dict) else state))
    with pytest.raises(GalleryError, match=words):
        open_source(saved)


def test_files_that_differ_in_their_columns(saved):
    files.write_arrow_stream(saved / "data-00001-of-00003.arrow", VECTORS)
    with pytest.raises(GalleryError, match=r"data-00001-of-00003\.arrow: column 'embedding' is missing or of another"):
        open_source(saved)


def test_a_truncated_file_is_named(saved):
    file = saved / "data-00001-of-00003.arrow"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(GalleryError, match=r"data-00001-of-00003\.arrow"):
        open_source(saved)


def test_behind_a_url_and_without_the_library(saved):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(saved), "/saved", recursive=True)
    assert (open_source("memory://saved").read_rows(np.arange(230))[0] == VECTORS).all()
    filesystem.rm("/saved", recursive=True)
    script = (
        "import sys; sys.modules['datasets'] = None; from fct_infer import open_source;"
        f"assert open_source({str(saved)!r}).schema.rows == 230"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
