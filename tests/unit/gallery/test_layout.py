"""Gallery.open: what is right is described exactly, what is wrong is named before any work."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from support.faults import FailNth
from support.galleries import write_gallery

from fct_infer.errors import GalleryError, ResourceError
from fct_infer.gallery import Gallery
from fct_infer.storage import use_filesystem

ROWS = (10, 3, 7)


@pytest.fixture
def path(tmp_path):
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=6, side_dim=4, ids="int", seed=1)
    return tmp_path / "g"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gallery_is_described_exactly(tmp_path, dtype):
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=6, side_dim=4, dtype=dtype, ids="int", seed=1)
    gallery = Gallery.open(tmp_path / "g")
    assert (gallery.rows, gallery.old_dim, gallery.side_dim) == (20, 6, 4)
    assert (gallery.embedding_dtype, gallery.side_dtype, gallery.id_dtype) == (dtype, dtype, np.int64)
    assert [(shard.name, shard.rows, shard.first_row) for shard in gallery.shards] == [
        ("000000", 10, 0),
        ("000001", 3, 10),
        ("000002", 7, 13),
    ]
    for shard in gallery.shards:
        folders = ("embeddings", "side_information", "ids")
        assert shard.files == tuple(tmp_path / "g" / folder / f"{shard.name}.npy" for folder in folders)


def test_side_information_and_ids_may_be_absent(tmp_path):
    write_gallery(tmp_path / "g", rows_per_shard=(5,), old_dim=6, side_dim=None, ids=None)
    gallery = Gallery.open(str(tmp_path / "g"))
    assert (gallery.side_dim, gallery.side_dtype, gallery.id_dtype) == (None, None, None)
    assert gallery.shards[0].files == (tmp_path / "g" / "embeddings" / "000000.npy",)


def test_text_ids_may_differ_in_width(path):
    for number, (rows, width) in enumerate(zip(ROWS, (3, 12, 1), strict=True)):
        np.save(path / "ids" / f"{number:06d}.npy", np.full(rows, "x", f"<U{width}"))
    assert Gallery.open(path).id_dtype == np.dtype("<U12")
    np.save(path / "ids" / "000001.npy", np.full(3, b"x", "S12"))
    with pytest.raises(GalleryError, match=r"ids/000001.npy: holds \|S12, .*000000.npy holds <U3"):
        Gallery.open(path)


def test_shards_come_in_the_order_of_their_names_and_hidden_files_are_ignored(tmp_path):
    (tmp_path / "embeddings").mkdir()
    for name, rows in (("b", 2), ("a-10", 3), ("a-9", 4)):
        np.save(tmp_path / "embeddings" / f"{name}.npy", np.zeros((rows, 2), np.float32))
    (tmp_path / "embeddings" / ".DS_Store").write_text("x")
    (tmp_path / "README").write_text("files beside the folders are nobody's business")
    gallery = Gallery.open(tmp_path)
    assert [(shard.name, shard.first_row) for shard in gallery.shards] == [("a-10", 0), ("a-9", 3), ("b", 7)]


def test_format_version_2_is_read(path):
    with (path / "embeddings" / "000001.npy").open("wb") as file:
        np.lib.format.write_array(file, np.zeros((3, 6), np.float32), version=(2, 0))
    assert Gallery.open(path).rows == 20


def save(folder, array, shard=1):
    return lambda path: np.save(path / folder / f"{shard:06d}.npy", array, allow_pickle=True)


def float32(*shape):
    return np.zeros(shape, np.float32)


FAULTS = {
    "no folder": (lambda path: shutil.rmtree(path), "is not a folder"),
    "no embeddings": (lambda path: shutil.rmtree(path / "embeddings"), "has no embeddings/ folder"),
    "embeddings a file": (
        lambda path: (shutil.rmtree(path / "embeddings"), (path / "embeddings").touch()),
        "embeddings: is not a folder",
    ),
    "no shards": (
        lambda path: [file.unlink() for file in (path / "embeddings").iterdir()],
        "embeddings: holds no .npy",
    ),
    "side-information empty": (
        lambda path: [file.unlink() for file in (path / "side_information").iterdir()],
        "side_information: holds no .npy",
    ),
    "foreign file": (lambda path: (path / "embeddings" / "notes.txt").touch(), r"notes.txt: is not a .npy file"),
    "folder as shard": (lambda path: (path / "ids" / "x.npy").mkdir(), "x.npy: has no counterpart"),
    "shard missing in ids": (lambda path: (path / "ids" / "000001.npy").unlink(), r"ids/000001.npy: is missing"),
    "shard missing in embeddings": (
        lambda path: (path / "embeddings" / "000002.npy").unlink(),
        r"side_information/000002.npy: has no counterpart",
    ),
    "float64": (save("embeddings", np.zeros((3, 6))), r"embeddings/000001.npy: holds float64, wanted float32 or"),
    "int8 side": (save("side_information", np.zeros((3, 4), "i1")), "side_information/000001.npy: holds int8"),
    "one shard of another dtype": (
        save("embeddings", np.zeros((3, 6), "f2")),
        r"000001.npy: holds float16, .*000000.npy holds float32",
    ),
    "one shard of another dim": (save("embeddings", float32(3, 5)), r"000001.npy: rows are 5 wide, .*000000.npy has 6"),
    "one axis": (save("embeddings", float32(3)), r"000001.npy: has shape \(3,\), wanted \(rows, dim\)"),
    "no axis": (save("embeddings", np.float32(3)), r"000001.npy: has shape \(\)"),
    "three axes": (save("embeddings", float32(3, 6, 1)), r"000001.npy: has shape \(3, 6, 1\)"),
    "empty shard": (save("embeddings", float32(0, 6)), "000001.npy"),
    "zero dim": (save("side_information", float32(3, 0)), r"side_information/000001.npy: is empty, shape \(3, 0\)"),
    "fewer side rows": (
        save("side_information", float32(2, 4)),
        r"side_information/000001.npy: holds 2 rows, .*embeddings/000001.npy holds 3",
    ),
    "more ids": (save("ids", np.arange(4)), r"ids/000001.npy: holds 4 rows, .* holds 3"),
    "uint64 among int64 ids": (save("ids", np.arange(3, dtype=np.uint64)), r"ids: holds uint64 and int64; save all as"),
    "bool ids": (save("ids", np.zeros(3, bool)), r"ids/000001.npy: holds bool, wanted integers"),
    "float ids": (save("ids", float32(3)), r"ids/000001.npy: holds float32"),
    "ids of two axes": (
        save("ids", np.zeros((3, 1), np.int64)),
        r"ids/000001.npy: has shape \(3, 1\), wanted \(rows,\)",
    ),
    "object ids": (save("ids", np.array(["a", None, "c"])), r"ids/000001.npy: holds Python objects"),
    "text among int ids": (save("ids", np.array(["a", "b", "c"])), r"ids/000001.npy: holds <U1, .* holds int64"),
    "Fortran order": (
        save("embeddings", np.asfortranarray(float32(3, 6))),
        r"embeddings/000001.npy: is in Fortran order",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(path, name):
    harm, words = FAULTS[name]
    harm(path)
    with pytest.raises(GalleryError, match=words) as caught:
        Gallery.open(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("folder", ["embeddings", "side_information", "ids"])
@pytest.mark.parametrize("cut", [1, 100])
def test_a_truncated_file_is_named(path, folder, cut):
    file = path / folder / "000002.npy"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(GalleryError, match=f"{file}: is truncated"):
        Gallery.open(path)


def test_a_shard_that_is_empty_everywhere_is_named(path):
    np.save(path / "embeddings" / "000001.npy", float32(0, 6))
    np.save(path / "side_information" / "000001.npy", float32(0, 4))
    np.save(path / "ids" / "000001.npy", np.zeros(0, np.int64))
    with pytest.raises(GalleryError, match=r"embeddings/000001.npy: is empty, shape \(0, 6\)"):
        Gallery.open(path)


def test_an_unreadable_file_is_named(path):
    with use_filesystem(FailNth("open", 4)), pytest.raises(ResourceError, match=r"side_information/000001\.npy"):
        Gallery.open(path)


def test_a_gallery_of_many_shards_opens_quickly(tmp_path):
    (tmp_path / "embeddings").mkdir()
    header_and_row = None
    for number in range(2000):
        target = tmp_path / "embeddings" / f"{number:06d}.npy"
        if header_and_row is None:
            np.save(target, float32(1, 4))
            header_and_row = target.read_bytes()
        target.write_bytes(header_and_row)
    start = time.perf_counter()
    assert Gallery.open(tmp_path).rows == 2000
    assert time.perf_counter() - start < 60  # 0.3 s on an idle core


def test_the_fingerprint_is_json_and_notices_an_edit(path):
    before = Gallery.open(path).fingerprint()
    assert json.loads(json.dumps(dict(before))) == before
    assert set(before) == {
        f"{folder}/{number:06d}.npy" for folder in ("embeddings", "side_information", "ids") for number in range(3)
    }
    assert Gallery.open(path).fingerprint() == before
    array = np.load(path / "ids" / "000001.npy")
    array[2] += 1
    np.save(path / "ids" / "000001.npy", array)
    after = Gallery.open(path).fingerprint()
    assert [name for name in before if before[name]["sha256"] != after[name]["sha256"]] == ["ids/000001.npy"]


def test_a_row_is_located_in_its_shard(path):
    gallery = Gallery.open(path)
    shards = map(gallery.part_of, range(gallery.rows))
    found = [(gallery.shards.index(shard), row - shard.first_row) for row, shard in enumerate(shards)]
    assert found == [(number, row) for number, rows in enumerate(ROWS) for row in range(rows)]
    assert gallery.where(gallery.rows - 1) == f"{gallery.shards[-1].embeddings}: row {ROWS[-1] - 1}"
