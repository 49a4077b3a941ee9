from __future__ import annotations

import numpy as np
import pytest

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.errors import GalleryError, UsageError
from fct_infer.fitting import read_pairs


def source(folder, name, rows, ids=None, dim=4, seed=0):
    """Vectors whose first column is the id, or the row number, so that every row tells what it is."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    numbers = np.arange(rows) if ids is None else np.asarray(ids)
    if numbers.dtype.kind in "iu":
        vectors[:, 0] = numbers
    np.save(folder / f"{name}.npy", vectors)
    if ids is None:
        return open_source(folder / f"{name}.npy")
    np.save(folder / f"{name}_ids.npy", numbers)
    return open_source(folder / f"{name}.npy", SourceOptions(ids=folder / f"{name}_ids.npy"))


def test_rows_without_ids_belong_to_each_other_in_their_order(tmp_path):
    pairs = read_pairs(source(tmp_path, "old", 70), source(tmp_path, "new", 70, dim=6))
    assert (pairs.old[:, 0] == np.arange(70)).all() and (pairs.new[:, 0] == np.arange(70)).all()
    assert (pairs.matched, pairs.only_old, pairs.only_new) == (70, 0, 0)
    with pytest.raises(GalleryError, match="OLD has 70 rows, NEW 60, and neither has ids"):
        read_pairs(source(tmp_path, "old", 70), source(tmp_path, "new", 60))


@pytest.mark.parametrize("rows", [(5000, 300), (300, 5000)])
def test_rows_are_joined_by_id_whatever_their_order(tmp_path, rows):
    rng = np.random.default_rng(1)
    ids = [rng.permutation(7000)[:count] for count in rows]
    pairs = read_pairs(source(tmp_path, "old", rows[0], ids[0]), source(tmp_path, "new", rows[1], ids[1], dim=6))
    common = np.intersect1d(*ids)
    assert (np.sort(pairs.ids) == common).all()
    assert (pairs.old[:, 0] == pairs.ids).all() and (pairs.new[:, 0] == pairs.ids).all()
    assert [row for row in ids[0].tolist() if row in set(common.tolist())] == pairs.ids.tolist()
    assert (pairs.only_old, pairs.only_new) == (rows[0] - len(common), rows[1] - len(common))


def test_text_ids_and_a_sample(tmp_path):
    names = np.array([f"item {number}" for number in range(500)])
    order = np.random.default_rng(0).permutation(500)
    old, new = source(tmp_path, "old", 500, names), source(tmp_path, "new", 500, names[order], seed=1)
    pairs = read_pairs(old, new, max_pairs=60, seed=3)
    assert len(pairs) == 60 and pairs.matched == 500 and len(set(pairs.ids)) == 60
    rows = np.load(tmp_path / "new.npy")
    np.testing.assert_array_equal(pairs.new, rows[[names[order].tolist().index(name) for name in pairs.ids]])


def test_side_information_and_labels_follow_the_old_rows(tmp_path):
    ids = np.random.default_rng(0).permutation(200)
    old, new = source(tmp_path, "old", 200, ids), source(tmp_path, "new", 80, ids[:80][::-1])
    pairs = read_pairs(old, new, source(tmp_path, "side", 200), labels=np.arange(200) * 10)
    rows = [ids.tolist().index(each) for each in pairs.ids]
    assert (pairs.side[:, 0] == rows).all() and (pairs.labels == np.array(rows) * 10).all()
    with pytest.raises(GalleryError, match="--side has 199 rows, OLD 200"):
        read_pairs(old, new, source(tmp_path, "side", 199))
    for count in (0, 3):
        with pytest.raises(GalleryError, match=f"--labels has {count} rows"):
            read_pairs(old, new, labels=np.arange(count))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (([1, 2, 2, 3], [1, 2, 3, 4, 5]), "OLD: id 2 occurs twice"),
        (([1, 2, 3], [1, 2, 9, 3, 2]), "NEW: id 2 occurs twice: .*row"),
        (([1, 2, 3], [1, 1, 2, 3, 4]), "NEW: id 1 occurs twice: .*row"),
        (([1, 2, 3], [7, 8, 9]), "have 0 ids in common, of 3 and 3"),
    ],
)
def test_ids_that_cannot_be_matched_are_refused(tmp_path, ids, message):
    with pytest.raises(GalleryError, match=message):
        read_pairs(source(tmp_path, "old", len(ids[0]), ids[0]), source(tmp_path, "new", len(ids[1]), ids[1]))


def test_integers_of_every_kind_are_compared_as_they_are(tmp_path):
    """Compared as floats, ids above 2**53 would be taken for their neighbours."""
    for name, dtype in (("old", np.uint64), ("new", np.int64)):
        (tmp_path / name / "embeddings").mkdir(parents=True)
        (tmp_path / name / "ids").mkdir()
        np.save(tmp_path / name / "embeddings" / "0.npy", np.random.default_rng(0).random((500, 4), np.float32))
        np.save(tmp_path / name / "ids" / "0.npy", ((1 << 60) + np.arange(500)).astype(dtype))
    pairs = read_pairs(*(open_source(tmp_path / name) for name in ("old", "new")))
    assert pairs.matched == 500
    np.testing.assert_array_equal(pairs.old, pairs.new)


def test_rows_that_are_wanted_are_in_every_sample(tmp_path):
    ids = np.random.default_rng(0).permutation(3000)
    old, new = source(tmp_path, "old", 3000, ids), source(tmp_path, "new", 3000, ids)
    pairs = read_pairs(old, new, wanted=np.arange(40, 70), max_pairs=100)
    assert set(range(40, 70)) <= set(pairs.ids.tolist()) and 100 <= len(pairs) <= 130
    assert (pairs.old[:, 0] == pairs.ids).all()
    assert [each for each in ids.tolist() if each in set(pairs.ids.tolist())] == pairs.ids.tolist()


def test_ids_of_one_side_only_or_of_another_kind_are_refused(tmp_path):
    numbered = source(tmp_path, "old", 3, [1, 2, 3])
    with pytest.raises(UsageError, match="NEW has no ids, the other has; name them with --new-ids"):
        read_pairs(numbered, source(tmp_path, "new", 3))
    with pytest.raises(UsageError, match="ids of OLD are integers, of NEW text"):
        read_pairs(numbered, source(tmp_path, "new", 3, ["a", "b", "c"]))


def test_where_old_has_no_ids_those_of_new_are_its_row_numbers(tmp_path):
    pairs = read_pairs(source(tmp_path, "old", 100), source(tmp_path, "new", 3, [70, 2, 31]))
    assert pairs.ids.tolist() == [2, 31, 70] and (pairs.matched, pairs.only_old, pairs.only_new) == (3, 97, 0)
    assert (pairs.old == np.load(tmp_path / "old.npy")[[2, 31, 70]]).all()
    assert (pairs.new == np.load(tmp_path / "new.npy")[[1, 2, 0]]).all()
    assert pairs.matched_by == "row numbers"


@pytest.mark.parametrize("wrong", [100, -1, "seven"])
def test_ids_that_are_no_row_numbers_of_an_old_without_ids_are_refused(tmp_path, wrong):
    ids = [str(each) for each in (5, 6, wrong)] if isinstance(wrong, str) else [5, 6, wrong]
    named = "'5'" if isinstance(wrong, str) else str(wrong)
    with pytest.raises(GalleryError, match=f"id {named} is no row of OLD, .* its 100 rows .* --old-ids"):
        read_pairs(source(tmp_path, "old", 100), source(tmp_path, "new", 3, ids))


def test_a_row_that_is_not_finite_is_named(tmp_path):
    old, new = source(tmp_path, "old", 100), source(tmp_path, "new", 100)
    rows = np.load(tmp_path / "new.npy")
    rows[63, 2] = np.nan
    np.save(tmp_path / "new.npy", rows)
    with pytest.raises(GalleryError, match=r"new.*row 63: embedding holds NaN or infinity"):
        read_pairs(old, open_source(tmp_path / "new.npy"))
    assert new.schema.rows == 100


def test_rows_far_apart_and_close_together_are_read_alike(tmp_path):
    kept = np.r_[0, 1, 2, 900, 5000:5200, 9999]
    pairs = read_pairs(source(tmp_path, "old", 10_000, np.arange(10_000)), source(tmp_path, "new", len(kept), kept))
    assert (pairs.old[:, 0] == kept).all()
