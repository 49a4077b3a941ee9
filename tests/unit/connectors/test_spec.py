"""A source once more, in another process."""

from __future__ import annotations

import pickle
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
from support.galleries import write_gallery

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.connectors.spec import SourceSpec
from fct_infer.errors import GalleryError, UnsupportedError
from fct_infer.gallery import Gallery


def again(source):
    return pickle.loads(pickle.dumps(SourceSpec.of(source))).open()


def assert_same(source, other):
    assert other.schema == source.schema
    facts = [[(part.name, part.rows, part.first_row) for part in each.parts()] for each in (source, other)]
    assert facts[0] == facts[1]
    assert other.model == source.model
    rows = np.arange(source.schema.rows)
    np.testing.assert_array_equal(other.read_rows(rows)[0], source.read_rows(rows)[0])


@pytest.mark.parametrize("opener", [open_source, Gallery.open])
def test_a_folder(tmp_path, opener, monkeypatch):
    write_gallery(tmp_path / "g", (30, 20), old_dim=6, side_dim=None, ids="str")
    monkeypatch.chdir(tmp_path)
    assert_same(opener("g"), again(opener("g")))


def test_what_the_user_said_goes_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", first=np.ones((5, 3)), second=np.zeros((5, 4)))
    (tmp_path / "ids.txt").write_text("\n".join("abcde"))
    options = SourceOptions(embedding_column="second", ids=Path("ids.txt"), allow_cast=True, model="clip")
    source = open_source("x.npz", options)
    spec = SourceSpec.of(source)
    monkeypatch.chdir("/")
    other = spec.open()
    monkeypatch.chdir(tmp_path)
    assert_same(source, other)
    assert other.schema.old_dim == 4
    assert other.open_part(other.parts()[0]).read_ids(0, 5).tolist() == list("abcde")


def test_ids_are_not_examined_again(tmp_path, monkeypatch):
    write_gallery(tmp_path / "g", (30,), old_dim=6, side_dim=None, ids="int")
    spec = SourceSpec.of(open_source(tmp_path / "g"))
    monkeypatch.setattr("fct_infer.gallery.ids.examine_ids", None)
    assert spec.open().id_facts == spec.id_facts


def test_what_has_changed_is_refused(tmp_path):
    write_gallery(tmp_path / "g", (30,), old_dim=6, side_dim=None)
    spec = SourceSpec.of(open_source(tmp_path / "g"))
    np.save(tmp_path / "g" / "embeddings" / "000001.npy", np.ones((3, 6), np.float32))
    with pytest.raises(GalleryError, match="was changed"):
        spec.open()


def test_what_lives_in_this_process_only_is_refused(tmp_path):
    write_gallery(tmp_path / "g", (30,), old_dim=6, side_dim=None)
    source = Gallery.open(tmp_path / "g")
    vars(source)["lock"] = Lock()  # what cannot be pickled
    with pytest.raises(UnsupportedError, match="another process cannot read it"):
        SourceSpec.of(source)
