"""Facts about ids: how an index can hold them, which repeat, which mean nothing; and shards in the order of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_infer.errors import ArtifactError, GalleryError
from fct_infer.gallery import Gallery, GalleryManifest, write_npy
from fct_infer.gallery import ids as ids_module
from fct_infer.storage import DigestedFile


def gallery(path, *shards, names=None):
    for number, ids in enumerate(shards):
        name = names[number] if names else f"{number:06d}"
        write_npy(path / "embeddings" / f"{name}.npy", np.zeros((5 if ids is None else len(ids), 2), np.float32))
        if ids is not None:
            write_npy(path / "ids" / f"{name}.npy", ids)
    return Gallery.open(path)


@pytest.mark.parametrize(
    ("shards", "use", "dtype"),
    [
        ([None], "rows", None),
        ([np.arange(5)], "labels", "int64"),
        ([np.arange(5, dtype=np.int8), np.arange(5, dtype=np.uint32)], "labels", "int64"),
        ([np.arange(5, dtype=np.uint64)], "labels", "uint64"),
        ([np.arange(5) - 9], "mapped", "int64"),
        ([np.arange(5), np.array([-7], np.int16)], "mapped", "int64"),
        ([np.array([1, 1 << 63], np.uint64)], "mapped", "uint64"),
        ([np.array(["a", "bc"])], "text", "<U2"),
        ([np.array([b"a", "ü".encode("latin1")]), np.array([b"abc"])], "text", "S3"),
        ([np.array([b"k" * 15 + b"\0", b"a\0b" * 5 + b"c"], "S16")], "binary", "S16"),
        ([np.array([b"abcd", b"\x07bcd"], "S4")], "binary", "S4"),
    ],
)
def test_how_an_index_holds_them(tmp_path, shards, use, dtype):
    found = gallery(tmp_path, *shards)
    assert found.id_facts.use == use
    assert found.id_facts.nothing is None
    assert found.id_dtype == (None if dtype is None else np.dtype(dtype))
    found.check_upgradable(indexed=True)


def test_duplicates_are_counted_across_shards_and_widths(tmp_path):
    assert gallery(tmp_path / "a", np.array([3, 1, 3]), np.array([1, 3], np.int8)).id_facts.duplicates == 3
    assert gallery(tmp_path / "b", np.array(["x", "yy"]), np.array(["x", "y", "long"])).id_facts.duplicates == 1
    assert gallery(tmp_path / "c", np.array([b"ab", b"ba"]), np.array([b"ab", b"abc"])).id_facts.duplicates == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=5).map(lambda text: text.rstrip("\0")), min_size=1, max_size=30))
def test_the_same_text_has_the_same_hash_at_any_width_and_no_other_has(texts):
    narrow = np.array(texts, f"U{max(1, *map(len, texts)) if len(texts) > 1 else max(1, len(texts[0]))}")
    hashes = ids_module._hashes(narrow)
    assert hashes.tolist() == ids_module._hashes(narrow.astype("U40")).tolist()
    assert len(set(hashes.tolist())) == len(set(texts))


def test_of_many_ids_a_share_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(ids_module, "MAX_COMPARED", 1000)
    found = gallery(tmp_path, np.arange(10_000), np.arange(5000)).id_facts.duplicates
    assert 3500 < found < 6500  # 5,000, estimated from 333


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.array([4, -2, -1]), "ids/000001.npy: row 2 has id -1"),
        (np.array([4, -1], np.int8), "ids/000001.npy: row 1 has id -1"),
        (np.array([(1 << 64) - 1], np.uint64), "row 0 has id 18446744073709551615"),
        (np.array(["a", ""]), "ids/000001.npy: row 1 has an empty id"),
        (np.array([b"", b"a"]), "ids/000001.npy: row 0 has an empty id"),
    ],
)
def test_an_id_that_means_nothing_found_is_refused_where_there_is_an_index(tmp_path, ids, words):
    found = gallery(tmp_path, ids[:1] if words.count("row 0") == 0 else np.array([5, 6]).astype(ids.dtype), ids)
    with pytest.raises(GalleryError, match=words):
        found.check_upgradable(indexed=True)
    found.check_upgradable(indexed=False)


def test_ids_of_zeros_only_are_ids_among_binary_ones(tmp_path):
    gallery(tmp_path, np.array([bytes(4), b"\1\2\3\4"], "S4")).check_upgradable(indexed=True)


@pytest.mark.parametrize(
    "names", [["0", "1", "10", "2"], ["part-9", "part-10"], ["a1-2", "a1-10"], ["x9y", "x10y"]], ids=str
)
def test_without_ids_names_whose_numbers_are_out_of_order_are_refused(tmp_path, names):
    with pytest.raises(GalleryError, match=r"leading zeros"):
        gallery(tmp_path / "a", *[None] * len(names), names=names).check_upgradable(indexed=False)
    gallery(tmp_path / "b", *[np.arange(5)] * len(names), names=names).check_upgradable(indexed=False)


@pytest.mark.parametrize(
    "names",
    [["0", "1", "2"], ["00", "10", "9a"], ["3f09", "3f10", "b1e"], ["b", "a-10"], ["2021", "2022"]],
    ids=str,
)
def test_other_names_are_fine(tmp_path, names):
    gallery(tmp_path, *[None] * len(names), names=names).check_upgradable(indexed=False)


def test_rows_of_a_published_gallery_have_their_numbers_already(tmp_path):
    found = gallery(tmp_path, None, None, names=["9", "10"])
    files = {f"embeddings/{name}.npy": DigestedFile(168, "0" * 64) for name in ("9", "10")}
    manifest = GalleryManifest(10, 2, "float32", "l2", "", "rows", None, files)
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    found.check_upgradable(indexed=False)
    with (tmp_path / "embeddings" / "10.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"10.npy: is damaged: has 169 bytes"):
        found.check_upgradable(indexed=False)
