from __future__ import annotations

import numpy as np
import pytest
from support.pairs import clustered

from fct_infer.errors import GalleryError, UsageError
from fct_infer.fitting import inputs
from fct_infer.fitting.inputs import read_inputs, read_stored


@pytest.fixture
def given(tmp_path):
    """400 old rows with side-information, of which every second has a new embedding."""
    old, new, _ = clustered(400)
    arrays = {
        "old": old,
        "new": new[::2],
        "side": old[:, :3] + 1,
        "old_ids": np.arange(400),
        "new_ids": np.arange(0, 400, 2),
    }
    paths = {name: tmp_path / f"{name}.npy" for name in arrays}
    for name, array in arrays.items():
        np.save(paths[name], array)
    return paths


def test_rows_without_a_new_embedding_are_learnt_from(given):
    pairs, _ = read_inputs(given)
    stored = read_stored(given, pairs)
    np.testing.assert_array_equal(stored.old, np.load(given["old"])[1::2])
    np.testing.assert_array_equal(stored.side, np.load(given["side"])[1::2])
    sampled, _ = read_inputs(given, max_pairs=60)
    assert len(read_stored(given, sampled)) == 340


def test_a_gallery_is_sampled(given, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_STORED", 50)
    given = {name: path for name, path in given.items() if name != "side"}
    pairs, _ = read_inputs(given)
    stored = read_stored(given | {"gallery": given["old"]}, pairs)
    assert stored.old.shape == (50, 12) and stored.side is None
    everything = {row.tobytes() for row in np.load(given["old"])}
    assert {row.tobytes() for row in stored.old} <= everything


def test_where_every_row_has_a_partner_there_is_nothing_else(given):
    given = {"old": given["new"], "new": given["new"]}
    pairs, _ = read_inputs(given)
    assert len(read_stored(given, pairs)) == 0


def test_a_gallery_unlike_the_pairs_is_refused(given, tmp_path):
    pairs, _ = read_inputs(given)
    with pytest.raises(UsageError, match="its side-information rows are none wide, those of OLD 3"):
        read_stored(given | {"gallery": given["old"]}, pairs)
    with pytest.raises(UsageError, match="--gallery: its rows are 16 wide, those of OLD 12"):
        read_stored(given | {"gallery": given["new"]}, pairs)
    broken = np.load(given["old"])
    broken[7] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    without = {name: path for name, path in given.items() if name != "side"}
    pairs, _ = read_inputs(without)
    with pytest.raises(GalleryError, match=r"broken.*row 7.* NaN"):
        read_stored(without | {"gallery": tmp_path / "broken.npy"}, pairs)
