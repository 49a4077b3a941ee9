from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.galleries import write_gallery
from support.vector_files import fixed_size

from fct_infer.errors import ArrayError, GalleryError
from fct_infer.export.calibration import read_calibration

INPUTS = {"old": (96,), "side": (32,)}
IMAGES = {"image": (3, 8, 8)}


@pytest.fixture
def gallery(tmp_path):
    return tmp_path / "g"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_old_and_side_belong_together(gallery, dtype):
    arrays = write_gallery(gallery, (300, 200), dtype=dtype)
    found = read_calibration(gallery, INPUTS, 100)
    places = {row.tobytes(): place for place, row in enumerate(arrays["old"].astype(np.float32))}
    chosen = [places[row.tobytes()] for row in found["old"]]
    assert len(set(chosen)) == 100 and max(chosen) >= 300 > min(chosen)
    np.testing.assert_array_equal(found["side"], arrays["side"].astype(np.float32)[chosen])
    for array in found.values():
        assert array.dtype == np.float32 and array.flags.c_contiguous
    again = read_calibration(gallery, INPUTS, 100)
    np.testing.assert_array_equal(again["old"], found["old"])


def test_all_rows_are_taken_if_there_are_no_more(gallery):
    arrays = write_gallery(gallery, (30, 20))
    np.testing.assert_array_equal(read_calibration(gallery, INPUTS)["old"], arrays["old"])


def test_without_side_information_the_old_embedding_takes_its_place(gallery):
    arrays = write_gallery(gallery, (50,), old_dim=32, side_dim=None)
    found = read_calibration(gallery, {"old": (32,), "side": (32,)})
    np.testing.assert_array_equal(found["side"], arrays["old"])


def test_what_a_model_does_not_take_is_left_out(gallery):
    write_gallery(gallery, (50,))
    assert set(read_calibration(gallery, {"old": (96,)})) == {"old"}


@pytest.mark.parametrize(
    ("written", "inputs", "message"),
    [
        ({}, {"old": (95,), "side": (32,)}, r"g/embeddings: rows are 96 wide, the model wants 95 for 'old'"),
        ({}, {"old": (96,), "side": (33,)}, r"g/side_information: rows are 32 wide, the model wants 33 for 'side'"),
        ({"side_dim": None}, INPUTS, r"g/embeddings: rows are 96 wide, the model wants 32 for 'side'"),
    ],
)
def test_the_folder_that_does_not_fit_is_named(gallery, written, inputs, message):
    write_gallery(gallery, (50,), **written)
    with pytest.raises(GalleryError, match=message):
        read_calibration(gallery, inputs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("folder", "name"), [("embeddings", "old"), ("side_information", "side")])
def test_a_row_that_is_not_finite_is_named(gallery, bad, folder, name):
    write_gallery(gallery, (50,))
    path = gallery / folder / "000000.npy"
    rows = np.load(path)
    rows[17, 3] = bad
    np.save(path, rows)
    with pytest.raises(GalleryError, match=rf"g: row 17 of the sample \({name}\) holds NaN or infinity"):
        read_calibration(gallery, INPUTS)


def test_a_missing_gallery_is_named(tmp_path):
    with pytest.raises(GalleryError, match="nowhere"):
        read_calibration(tmp_path / "nowhere", INPUTS)


def test_images_come_from_one_file(tmp_path):
    images = np.random.default_rng(0).standard_normal((40, 3, 8, 8), np.float32)
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_array_equal(read_calibration(tmp_path / "images.npy", IMAGES)["image"], images)
    assert len(read_calibration(tmp_path / "images.npy", IMAGES, 7)["image"]) == 7


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 3, 8, 9), np.float32),
        np.zeros((4, 8, 8, 3), np.float32),
        np.zeros((4, 3, 8, 8), np.uint8),
        np.zeros((0, 3, 8, 8), np.float32),
        np.zeros((3, 8, 8), np.float32),
    ],
)
def test_images_that_do_not_fit_are_named(tmp_path, array):
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(GalleryError, match=r"images\.npy: is .*wanted preprocessed images float32 \(n, 3, 8, 8\)"):
        read_calibration(tmp_path / "images.npy", IMAGES)


def test_an_image_that_is_not_finite_is_named(tmp_path):
    images = np.zeros((4, 3, 8, 8), np.float32)
    images[2, 1, 5, 5] = np.nan
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(GalleryError, match=r"images\.npy: row 2 of the sample \(image\)"):
        read_calibration(tmp_path / "images.npy", IMAGES)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_named(tmp_path, content):
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises((GalleryError, ArrayError), match=r"images\.npy"):
        read_calibration(tmp_path / "images.npy", IMAGES)


def test_rows_of_any_format_are_the_same_rows(gallery, tmp_path):
    arrays = write_gallery(gallery, (300,))
    expected = read_calibration(gallery, INPUTS, 100)
    columns = {"vector": fixed_size(arrays["old"]), "side_information": fixed_size(arrays["side"])}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=64)
    np.savez(tmp_path / "rows.npz", old=arrays["old"].astype(np.float64), side_information=arrays["side"])
    for name in ("rows.parquet", "rows.npz"):
        found = read_calibration(tmp_path / name, INPUTS, 100)
        for key in INPUTS:
            np.testing.assert_array_equal(found[key], expected[key])
    np.save(tmp_path / "old.npy", arrays["old"])
    np.testing.assert_array_equal(read_calibration(tmp_path / "old.npy", {"old": (96,)}, 100)["old"], expected["old"])
    with pytest.raises(GalleryError, match=r"rows\.parquet, column 'vector': rows are 96 wide, the model wants 95"):
        read_calibration(tmp_path / "rows.parquet", {"old": (95,)})
