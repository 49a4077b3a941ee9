import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fct_infer.errors import GalleryError
from fct_infer.evaluation import read_embeddings, read_labels

ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, **options)
    return path


def save_gallery(path, *shards):
    for number, shard in enumerate(shards):
        save(path / "embeddings" / f"{number:06d}.npy", shard)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embeddings_come_back_from_a_file_and_from_a_gallery(tmp_path, dtype):
    rows = ROWS.astype(dtype)
    for source in (save(tmp_path / "a.npy", rows), save_gallery(tmp_path / "g", rows[:3], rows[3:4], rows[4:])):
        read = read_embeddings(source)
        assert read.dtype == dtype
        assert_array_equal(read, rows)


@pytest.mark.parametrize(
    "labels", [np.arange(8), np.arange(8, dtype=np.uint8), np.array(list("abcdefgh")), np.array([b"xx", b"y"] * 4)]
)
def test_labels_come_back_from_a_file_and_from_shards(tmp_path, labels):
    file = save(tmp_path / "labels.npy", labels)
    save(tmp_path / "shards" / "000001.npy", labels[5:])
    save(tmp_path / "shards" / "000000.npy", labels[:5])
    for source in (file, tmp_path / "shards"):
        assert_array_equal(read_labels(source), labels)


def test_string_shards_of_different_widths_join(tmp_path):
    save(tmp_path / "0.npy", np.array(["cat"]))
    save(tmp_path / "1.npy", np.array(["elephant"]))
    assert_array_equal(read_labels(tmp_path), ["cat", "elephant"])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ROWS.astype(np.float64), r"e\.npy: is float64 \(8, 3\), wanted \(rows, dim\) float32 or float16"),
        (ROWS[0], r"e\.npy: is float32 \(3,\)"),
        (ROWS[:0], r"e\.npy: is float32 \(0, 3\)"),
        (np.where(ROWS == 13, np.inf, ROWS).astype(np.float32), r"e\.npy: row 4 holds a NaN or an infinity"),
        (np.asfortranarray(ROWS), "Fortran"),
    ],
)
def test_bad_embeddings_name_the_file(tmp_path, array, message):
    with pytest.raises(GalleryError, match=message):
        read_embeddings(save(tmp_path / "e.npy", array))


def test_a_bad_row_in_a_gallery_names_its_shard(tmp_path):
    bad = ROWS[4:].copy()
    bad[2, 0] = np.nan
    with pytest.raises(GalleryError, match=r"000001\.npy: row 2 holds a NaN"):
        read_embeddings(save_gallery(tmp_path, ROWS[:4], bad))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(3.0), r"l\.npy: is float64 \(3,\), wanted \(rows,\) integers, bytes or str"),
        (np.zeros((2, 2), int), r"l\.npy: is int64 \(2, 2\)"),
        (np.array(5), r"l\.npy: is int64 \(\)"),
        (np.array(["a", 1], object), r"l\.npy"),
    ],
)
def test_bad_labels_name_the_file(tmp_path, array, message):
    with pytest.raises(GalleryError, match=message):
        read_labels(save(tmp_path / "l.npy", array))


def test_label_shards_of_different_kinds_are_refused(tmp_path):
    save(tmp_path / "0.npy", np.arange(2))
    save(tmp_path / "1.npy", np.array(["a"]))
    with pytest.raises(GalleryError, match=r"1\.npy: is <U1, but 0\.npy is int64"):
        read_labels(tmp_path)


def test_an_empty_folder_of_labels_is_refused(tmp_path):
    with pytest.raises(GalleryError, match=r"holds no \.npy"):
        read_labels(tmp_path)


@pytest.mark.parametrize("read", [read_embeddings, read_labels])
def test_missing_truncated_and_foreign_files_are_named(tmp_path, read):
    with pytest.raises(GalleryError, match=r"none\.npy"):
        read(tmp_path / "none.npy")
    cut = save(tmp_path / "cut.npy", ROWS)
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(GalleryError, match=r"cut\.npy.*truncated"):
        read(cut)
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(GalleryError, match=r"text\.npy"):
        read(tmp_path / "text.npy")
