"""What a probe knows is found in the gallery, or refused with the reason."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.probes import write_items
from support.programs import linear_map

from fct_infer import Transformation, open_source
from fct_infer.connectors import SourceOptions
from fct_infer.errors import GalleryError, UsageError
from fct_infer.upgrade.probe import PROBED_ROWS, Probe, read_probe


def read(folder, probe, **options):
    return read_probe(
        probe, open_source(folder / "g"), Transformation(linear_map(12, 16), "fp32", threads=1), 0, **options
    )


def write_pairs(folder, new, names, rows):
    """In another order than the gallery, by pyarrow."""
    rows = np.random.default_rng(0).permutation(rows)
    write_table(folder / "pairs.parquet", names[rows], new[rows])


def write_table(path, ids, vectors, **columns):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({"id": ids.tolist(), "vector": vectors} | columns), path)


@pytest.mark.parametrize("ids", ["int", "str", None])
def test_pairs_are_matched_by_id(tmp_path, ids):
    _, new, names = write_items(tmp_path / "g", ids=ids)
    write_pairs(tmp_path, new, names, np.arange(100, 350))
    (known,) = read(tmp_path, Probe(tmp_path / "pairs.parquet"))
    assert known.rows.tolist() == list(range(100, 350))
    assert known.right[:, 0].tolist() == names[100:350].tolist()
    assert np.array_equal(known.vectors, new[known.rows])
    assert (known.given, known.left_out) == (250, 0)


def test_ids_beside_and_rows_that_the_gallery_has_not(tmp_path):
    _, new, names = write_items(tmp_path / "g")
    np.save(tmp_path / "pairs.npy", np.concatenate([new[:50], new[:9]]).astype(np.float64))
    np.savetxt(tmp_path / "ids.txt", np.concatenate([names[:50], -np.arange(2, 11)]), fmt="%d")
    (known,) = read(tmp_path, Probe(tmp_path / "pairs.npy", tmp_path / "ids.txt"))
    assert (len(known.vectors), known.given, known.left_out) == (50, 59, 9)


def test_without_ids_row_i_is_row_i(tmp_path):
    _, new, names = write_items(tmp_path / "g", rows=1500)
    np.save(tmp_path / "pairs.npy", new)
    (known,) = read(tmp_path, Probe(tmp_path / "pairs.npy"))
    assert len(known.rows) == len(np.unique(known.rows)) == PROBED_ROWS
    assert np.array_equal(known.vectors, new[known.rows])
    assert known.right[:, 0].tolist() == names[known.rows].tolist()


def test_queries_know_all_their_right_rows(tmp_path):
    _, new, names = write_items(tmp_path / "g", ids="str")
    truth = np.stack([names[:40], names[1:41], np.full(40, "gone")], axis=1)
    truth[5] = "gone"
    np.save(tmp_path / "q.npy", new[:40])
    np.save(tmp_path / "truth.npy", truth)
    (known,) = read(tmp_path, Probe(queries=tmp_path / "q.npy", truth=tmp_path / "truth.npy"))
    assert (known.name, known.given, known.left_out) == ("queries", 40, 1)
    assert known.rows.tolist() == [row for row in range(40) if row != 5]
    assert set(known.right[3].tolist()) == {"item-3", "item-4"}


def test_vectors_are_given_length_1_with_the_rows(tmp_path):
    _, new, _ = write_items(tmp_path / "g")
    np.save(tmp_path / "pairs.npy", new)
    (known,) = read(tmp_path, Probe(tmp_path / "pairs.npy"), unit_length=True)
    assert np.allclose(np.linalg.norm(known.vectors, axis=1), 1)


@pytest.mark.parametrize(
    ("pairs", "ids", "error", "words"),
    [
        (np.zeros((600, 12), np.float32), None, GalleryError, "12 wide, the transformation's results 16"),
        (np.zeros((80, 16), np.float32), None, UsageError, "80 rows without ids, the gallery 600"),
        (np.zeros((80, 16), np.float32), np.arange(80) * 7, GalleryError, "have 0 pairs in common"),
        (np.zeros((80, 16), np.float32), np.arange(590, 670) * 7 + 3, GalleryError, "have 10 pairs in common"),
        (np.zeros((80, 16), np.float32), np.repeat(np.arange(40), 2) * 7 + 3, GalleryError, "id 3 occurs twice"),
        (np.full((80, 16), np.nan, np.float32), np.arange(80) * 7 + 3, GalleryError, "row 0: embedding holds NaN"),
        (np.zeros((80, 16), np.float32), np.arange(80).astype(str), UsageError, "of .* text"),
    ],
)
def test_what_cannot_be_a_probe_is_refused(tmp_path, pairs, ids, error, words):
    write_items(tmp_path / "g")
    np.save(tmp_path / "pairs.npy", pairs)
    if ids is not None:
        np.save(tmp_path / "ids.npy", ids)
    with pytest.raises(error, match=words):
        read(tmp_path, Probe(tmp_path / "pairs.npy", tmp_path / "ids.npy" if ids is not None else None))


def test_a_column_that_must_be_named_is_named_by_the_probes_own_option(tmp_path):
    _, new, _ = write_items(tmp_path / "g")
    np.savez(tmp_path / "pairs.npz", a=new, b=new)
    with pytest.raises(UsageError, match="'a', 'b' hold vectors; name one with --probe-column"):
        read(tmp_path, Probe(tmp_path / "pairs.npz"))
    (known,) = read(tmp_path, Probe(tmp_path / "pairs.npz", column="b"))
    assert len(known.rows) == 600


def test_the_gallerys_name_for_ids_comes_before_usual_ones(tmp_path):
    """Both tables are numbered, in columns called "id", as is usual for tables; what counts is the other column."""
    old, new, _ = write_items(tmp_path / "g")
    write_table(tmp_path / "old.parquet", np.arange(600), old, sku=[f"sku-{row}" for row in range(600)])
    write_table(tmp_path / "new.parquet", np.arange(80), new[100:180], sku=[f"sku-{row}" for row in range(100, 180)])
    np.save(tmp_path / "other.npy", new[:80])
    gallery = open_source(tmp_path / "old.parquet", SourceOptions(id_column="sku"))
    h = Transformation(linear_map(12, 16), "fp32", threads=1)
    (known,) = read_probe(Probe(tmp_path / "new.parquet"), gallery, h, 0)
    assert known.rows.tolist() == list(range(100, 180))
    with pytest.raises(UsageError, match=r"80 rows without ids.*--probe-ids or their column with --probe-id-column"):
        read_probe(Probe(tmp_path / "other.npy"), gallery, h, 0)
    (known,) = read_probe(Probe(tmp_path / "other.npy", tmp_path / "new.parquet", id_column="sku"), gallery, h, 0)
    assert known.rows.tolist() == list(range(100, 180))
    with pytest.raises(UsageError, match=r"of .* integers"):  # the user's word comes before all
        read_probe(Probe(tmp_path / "new.parquet", id_column="id"), gallery, h, 0)
    with pytest.raises(UsageError, match="no column 'article'"):
        read_probe(Probe(tmp_path / "new.parquet", id_column="article"), gallery, h, 0)


@pytest.mark.parametrize(
    ("truth", "error", "words"),
    [
        (np.arange(39), GalleryError, "is of 39 queries, .* holds 40"),
        (np.arange(40) * 7, GalleryError, "have 0 queries in common"),
        (np.arange(40).astype(str), UsageError, "names text as ids, those of the gallery are integers"),
        (np.full(40, 3), GalleryError, "names 1 different rows"),
    ],
)
def test_truth_that_does_not_fit_is_refused(tmp_path, truth, error, words):
    _, new, _ = write_items(tmp_path / "g")
    np.save(tmp_path / "q.npy", new[:40])
    np.save(tmp_path / "truth.npy", truth)
    with pytest.raises(error, match=words):
        read(tmp_path, Probe(queries=tmp_path / "q.npy", truth=tmp_path / "truth.npy"))


ASKED = {"queries": "q", "truth": "t"}


@pytest.mark.parametrize(
    "given", [{}, {"queries": "q"}, {"truth": "t"}, ASKED | {"ids": "i"}, ASKED | {"id_column": "i"}]
)
def test_half_a_probe_is_refused(given):
    with pytest.raises(UsageError):
        Probe(**given)
