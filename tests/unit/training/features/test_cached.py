from __future__ import annotations

import numpy as np
import pytest
from support.features import make_columns, write_columns

from fct_infer.errors import GalleryError, UsageError
from fct_infer.training.features.cached import Features, RowRange, concatenate

SHARDS = (40, 7, 53)


@pytest.fixture
def written(tmp_path):
    columns = make_columns(sum(SHARDS), 6, 4, 8)
    return columns, write_columns(tmp_path, columns, SHARDS)


def test_folders_of_shards_are_opened_and_read_back(written):
    columns, folders = written
    features = Features.open(**folders)
    assert (features.rows, features.old_dim, features.side_dim, features.new_dim) == (100, 6, 4, 8)
    assert features.has_labels
    read = concatenate(list(features.blocks()))
    assert set(read) == set(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(read[name], column)


def test_single_files_are_a_set_too(tmp_path):
    columns = make_columns(10)
    for name, column in columns.items():
        np.save(tmp_path / f"my_{name}.npy", column.astype(np.float16) if name != "labels" else column)
    features = Features.open(tmp_path / "my_old.npy", tmp_path / "my_new.npy")
    assert (features.rows, features.side_dim, features.has_labels) == (10, 0, False)
    assert next(features.blocks())["old"].dtype == np.float16


def test_ranges_read_what_they_name_and_a_mask_chooses(written):
    columns, folders = written
    features = Features.open(**folders)
    parts = features.read([RowRange(0, 5, 9), RowRange(2, 0, 53)], lambda first, last: np.arange(first, last) % 2 == 1)
    rows = [5, 7, *range(47, 100, 2)]
    np.testing.assert_array_equal(concatenate(parts)["new"], columns["new"][rows])
    assert len(features.ranges(16)) == 3 + 1 + 4
    assert sum(each.stop - each.start for each in features.ranges(16)) == features.rows


def test_a_mixture_is_all_its_parts_one_after_the_other(tmp_path, written):
    columns, folders = written
    other = make_columns(20, 6, 4, 8, seed=1)
    del other["labels"]
    features = Features.joined([Features.open(**folders), Features.open(**write_columns(tmp_path / "b", other, (20,)))])
    read = concatenate(list(features.blocks()))
    assert (features.rows, features.has_labels) == (120, False)
    assert [shard.first_row for shard in features.shards] == [0, 40, 47, 100]
    np.testing.assert_array_equal(read["side"], np.concatenate([columns["side"], other["side"]]))
    narrow = Features.open(folders["old"], folders["new"])
    with pytest.raises(UsageError, match=r"widths.*\(6, 0, 8\), \(6, 4, 8\)"):
        Features.joined([features, narrow])


def test_several_sides_are_set_side_by_side(tmp_path, written):
    columns, folders = written
    more = {"more": np.random.default_rng(5).standard_normal((100, 3)).astype(np.float16)}
    second = write_columns(tmp_path / "b", more | {"old": columns["old"]}, SHARDS)["more"]
    features = Features.open(folders["old"], folders["new"], [folders["side"], second])
    both = np.concatenate([columns["side"], more["more"]], axis=1)
    assert features.side_dim == 7
    np.testing.assert_array_equal(concatenate(list(features.blocks()))["side"], both)
    np.testing.assert_array_equal(features.read([RowRange(2, 5, 9)])[0]["side"], both[52:56])
    np.save(second / "000002.npy", np.full((53, 3), np.inf, np.float16))
    with pytest.raises(GalleryError, match=r"more/000002\.npy: row 0 holds NaN"):
        list(features.blocks())
    np.save(second / "000001.npy", np.zeros((6, 3), np.float16))
    with pytest.raises(GalleryError, match=r"more/000001\.npy: holds 6 rows"):
        Features.open(folders["old"], folders["new"], [folders["side"], second])


def test_groups_are_read_or_told_by_the_number_of_views(tmp_path, written):
    columns, folders = written
    groups = np.random.default_rng(0).integers(0, 30, 100).astype(np.int32)
    folder = write_columns(tmp_path / "g", {"groups": groups, "old": columns["old"]}, SHARDS)["groups"]
    plain = Features.open(folders["old"], folders["new"])
    told = Features.open(folders["old"], folders["new"], groups=folder)
    np.testing.assert_array_equal(told.groups, groups)
    assert set(next(told.blocks())) == {"old", "new"}
    viewed = plain.viewed(4)
    np.testing.assert_array_equal(viewed.groups, np.arange(100) % 25)
    assert plain.groups is None and plain.viewed(1) is plain
    joined = Features.joined([told, plain]).groups
    np.testing.assert_array_equal(joined[:100], groups)
    assert len(np.unique(joined[100:])) == 100 and not set(joined[100:]) & set(groups)
    for features, views, message in (
        (plain, 3, "100 rows cannot be 3 views"),
        (plain, 0, "0 views"),
        (told, 2, "give one of them"),
    ):
        with pytest.raises(UsageError, match=message):
            features.viewed(views)


def _nan_row(folders):
    array = np.load(folders["new"] / "000002.npy")
    array[17, 3] = np.nan
    np.save(folders["new"] / "000002.npy", array)


def _save(column, name, change):
    def edit(folders):
        path = folders[column] / name
        np.save(path, change(np.load(path)))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folders: (folders["new"] / "000001.npy").unlink(), r"new/000001\.npy: is missing"),
        (_save("side", "000000.npy", lambda a: a[:-1]), r"side/000000\.npy: holds 39 rows, .*old/000000\.npy holds 40"),
        (_save("old", "000001.npy", lambda a: a[:, :3]), r"old/000001\.npy: rows are 3 wide"),
        (_save("new", "000001.npy", lambda a: a.astype(np.float64)), r"new/000001\.npy: holds float64"),
        (_save("labels", "000000.npy", lambda a: a.astype(np.float32)), r"labels/000000\.npy: is float32"),
        (lambda folders: (folders["new"] / "000000.npy").write_bytes(b"no"), r"new/000000\.npy: is not a \.npy file"),
        (_nan_row, r"new/000002\.npy: row 17 holds NaN or infinity"),
    ],
    ids=["missing", "rows", "width", "dtype", "labels", "malformed", "NaN"],
)
def test_what_does_not_fit_is_named(written, edit, message):
    _, folders = written
    edit(folders)
    with pytest.raises(GalleryError, match=message):
        list(Features.open(**folders).blocks())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(GalleryError, match=r"old\.npy: cannot be read"):
        Features.open(tmp_path / "old.npy", tmp_path / "new.npy")
