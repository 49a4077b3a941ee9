"""An index built in parts has the bytes of one built in one go, however it is cut, and what is wrong is seen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import faiss
import numpy as np
import pytest
from support.faults import FailNth, FullDisk

from fct_infer.errors import ArtifactError, ResourceError, UsageError
from fct_infer.index import IndexBuilder, load_index_file
from fct_infer.index.contents import id_sum
from fct_infer.index.parts import (
    GatheredBuilder,
    IndexOrder,
    PartBuilder,
    can_be_parted,
    fewer_parts,
    open_on_disk,
)
from fct_infer.storage import use_filesystem, write_bytes

ROWS, DIM = 600, 16
DATA = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 5 + (1 << 40)
FACTORIES = [
    "Flat",
    "Flat,IDMap2",
    "SQ8",
    "PQ4x4np",
    "IVF16,Flat",
    "IVF300,Flat",  # of few rows most lists are empty, which FAISS writes otherwise
    "IVF16,PQ4x4np",
    "IVF16_HNSW8,SQ8",
    "IMI2x3,Flat",
    "PCA14,IVF16,SQ8",
    "OPQ4_8,IVF16,PQ4x4",
    "IDMap2,IVF16,Flat",  # an inverted file that numbers its rows, under a map
    "OPQ4_16,IDMap,IVF8,SQ8",
]


@cache
def trained(factory, metric):
    """The bytes of a trained index; training takes longer than all else."""
    builder = IndexBuilder(factory, DIM, metric, threads=1)
    if builder.needs_training:
        builder.train(DATA)
    return faiss.serialize_index(builder.index).tobytes()


def empty(factory, tmp_path, kind=IndexBuilder, metric="l2"):
    builder = kind(factory, DIM, metric, threads=1)
    written = write_bytes(tmp_path / "trained.faiss", trained(factory, metric))
    builder.load_trained(tmp_path / "trained.faiss", written.sha256)
    return builder


def add_blocks(builder, data, cuts):
    """A block never spans two parts; what FAISS's transforms make of a row may depend on its block in the last bit."""
    for start, stop in pairwise(cuts):
        middle = (start + stop) // 2
        builder.add(data[start:middle], IDS[start:middle])
        builder.add(data[middle:stop], IDS[middle:stop])


def build_parts(factory, tmp_path, cuts, metric="l2", data=DATA):
    """Build parts in the wrong order, by one builder, and return them in the right one."""
    builder, parts = empty(factory, tmp_path, PartBuilder, metric), {}
    spans = list(pairwise(cuts))
    for number in reversed(range(len(spans))):
        start, stop = spans[number]
        builder.begin()
        add_blocks(builder, data, (start, stop))
        path = tmp_path / f"{number}.faiss"
        parts[number] = (path, builder.end(path))
    return [parts[number] for number in range(len(spans))]


@pytest.mark.parametrize("cuts", [(0, 600), (0, 250, 251, 600), (0, 2, 3)])
@pytest.mark.parametrize("factory", FACTORIES)
def test_parts_add_up_to_the_bytes_of_one_index(tmp_path, factory, cuts):
    whole = empty(factory, tmp_path)
    add_blocks(whole, DATA, cuts)
    gathered = GatheredBuilder(empty(factory, tmp_path), build_parts(factory, tmp_path, cuts))
    assert gathered.rows == cuts[-1] and gathered.nlist == whole.nlist
    if whole.nprobe is not None:
        whole.nprobe = gathered.nprobe = 5
    for found, wanted in zip(gathered.search(DATA[:20], 3), whole.search(DATA[:20], 3), strict=True):
        np.testing.assert_array_equal(found, wanted)
    written = gathered.save(tmp_path / "gathered.faiss")
    assert written == whole.save(tmp_path / "whole.faiss")
    for index in (gathered.index, open_on_disk(tmp_path / "gathered.faiss", written.sha256)):  # and it is still whole
        assert index.ntotal == cuts[-1]
        np.testing.assert_array_equal(index.search(DATA[:20], 3)[1], whole.search(DATA[:20], 3)[1])


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8"])
def test_rows_that_are_zero_are_left_out_of_cosine(tmp_path, factory):
    unit = DATA / np.linalg.norm(DATA, axis=1, keepdims=True)
    unit[:100] = unit[300] = 0  # the first part is empty
    parts = build_parts(factory, tmp_path, (0, 100, 301, 600), "cosine", unit)
    assert [(part.rows, part.left_out) for _, part in parts] == [(0, 100), (200, 1), (299, 0)]
    whole = empty(factory, tmp_path, metric="cosine")
    whole.add(unit, IDS)
    gathered = GatheredBuilder(empty(factory, tmp_path, metric="cosine"), parts)
    assert (gathered.rows, gathered.left_out) == (600, 101)
    assert gathered.save(tmp_path / "gathered.faiss") == whole.save(tmp_path / "whole.faiss")


@pytest.mark.parametrize("factory", ["HNSW16", "IVF16,SQ4,Refine(SQ8)", "IVF16,PQ4x4fs", "IVF16,PQ4+4", "LSH"])
def test_what_cannot_be_built_in_parts_says_so(factory):
    assert not can_be_parted(IndexBuilder(factory, DIM, "l2", threads=1).index)
    with pytest.raises(UsageError, match=r"cannot be built in parts"):
        PartBuilder(factory, DIM, "l2", threads=1)


def test_sums_of_ids_add_up_and_see_what_is_missing_or_twice():
    assert (id_sum(IDS[:70]) + id_sum(IDS[70:])) % 2**64 == id_sum(np.sort(IDS))
    assert id_sum(IDS[1:]) != id_sum(IDS) != id_sum(np.append(IDS[1:], IDS[1]))
    assert id_sum(np.array([0, 1, 2])) != id_sum(np.array([0, 0, 3]))  # a plain sum would not
    assert id_sum(IDS[:0]) == 0


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8"])
def test_a_part_that_is_not_what_was_written(tmp_path, factory):
    parts = build_parts(factory, tmp_path, (0, 250, 600))
    path, part = parts[1]
    with pytest.raises(ArtifactError, match=r"1\.faiss: holds 350 rows, wanted 349"):
        GatheredBuilder(empty(factory, tmp_path), [parts[0], (path, replace(part, rows=349))])
    gathered = GatheredBuilder(empty(factory, tmp_path), [parts[0], (path, replace(part, ids=part.ids ^ 1))])
    with pytest.raises(ResourceError, match=r"x\.faiss: the gathered index does not hold the ids of its parts"):
        gathered.save(tmp_path / "x.faiss")
    assert not (tmp_path / "x.faiss").exists()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"1\.faiss: is damaged"):
        GatheredBuilder(empty(factory, tmp_path), parts)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"1\.faiss"):
        GatheredBuilder(empty(factory, tmp_path), parts)


@pytest.mark.parametrize(("factory", "other"), [("IVF16,SQ8", "IVF8,SQ8"), ("IVF16,SQ8", "Flat"), ("Flat", "SQ8")])
def test_a_part_of_another_index(tmp_path, factory, other):
    parts = build_parts(other, tmp_path, (0, 250))
    with pytest.raises(ArtifactError, match=r"0\.faiss: is no part of this index"):
        GatheredBuilder(empty(factory, tmp_path), parts)


@pytest.mark.parametrize("fault", [FullDisk(5000), FailNth("fsync"), FailNth("rename")])
def test_a_disk_that_fails_leaves_nothing(tmp_path, fault):
    gathered = GatheredBuilder(empty("IVF16,SQ8", tmp_path), build_parts("IVF16,SQ8", tmp_path, (0, 250, 600)))
    before = set(tmp_path.iterdir())
    with use_filesystem(fault), pytest.raises(ResourceError, match=r"x\.faiss: "):
        gathered.save(tmp_path / "x.faiss")
    assert set(tmp_path.iterdir()) == before
    assert gathered.save(tmp_path / "x.faiss").size == (tmp_path / "x.faiss").stat().st_size


def test_an_index_on_the_disk_answers_after_its_file_is_gone(tmp_path):
    builder = empty("IVF16,Flat", tmp_path)
    builder.add(DATA, IDS)
    written = builder.save(tmp_path / "a.faiss")
    index = open_on_disk(tmp_path / "a.faiss", written.sha256)
    (tmp_path / "a.faiss").unlink()
    np.testing.assert_array_equal(index.search(DATA[:9], 2)[1], builder.search(DATA[:9], 2)[1])
    builder.save(tmp_path / "a.faiss")
    (tmp_path / "a.faiss").write_bytes((tmp_path / "a.faiss").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is damaged"):
        open_on_disk(tmp_path / "a.faiss", written.sha256)
    with pytest.raises(ArtifactError, match="missing"):
        open_on_disk(tmp_path / "missing.faiss", written.sha256)


def test_an_inverted_file_is_gathered_without_being_loaded(tmp_path, monkeypatch):
    parts = build_parts("IVF16,Flat", tmp_path, (0, 250, 600))
    loaded = []
    builder = empty("IVF16,Flat", tmp_path)
    monkeypatch.setattr("fct_infer.index.parts.load_index_file", lambda *each: loaded.append(each))
    gathered = GatheredBuilder(builder, parts)
    gathered.save(tmp_path / "a.faiss")
    assert not loaded and load_index_file(tmp_path / "a.faiss").ntotal == ROWS


def test_parts_are_merged_level_by_level(tmp_path, monkeypatch):
    cuts = (0, 2, 100, 101, 250, 400, 500, 599, 600)
    whole = empty("IVF16,SQ8", tmp_path)
    add_blocks(whole, DATA, cuts)
    parts = build_parts("IVF16,SQ8", tmp_path, cuts)
    written = (tmp_path / "trained.faiss").read_bytes()
    sha256 = write_bytes(tmp_path / "trained.faiss", written).sha256
    order = IndexOrder("IVF16,SQ8", DIM, "l2", tmp_path / "trained.faiss", sha256, tmp_path / "merged")
    assert fewer_parts(order, parts) == parts
    monkeypatch.setattr("fct_infer.index.parts.MOST_LISTS", 48)
    fewer = fewer_parts(order, parts)
    assert [path.name for path, _ in fewer] == [f"merged-0-00000{number}.faiss" for number in range(3)]
    monkeypatch.setattr("fct_infer.index.parts.MOST_LISTS", 1)
    fewer = fewer_parts(order, parts)
    assert [part.rows for _, part in fewer] == [250, 350]
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path, _ in fewer}
    gathered = GatheredBuilder(empty("IVF16,SQ8", tmp_path), fewer)
    assert gathered.save(tmp_path / "gathered.faiss") == whole.save(tmp_path / "whole.faiss")


def test_a_part_does_not_say_where_all_lists_lie(tmp_path):
    builder = empty("IVF300,SQ8", tmp_path, PartBuilder)
    builder.add(DATA[:4], IDS[:4])
    size = builder.end(tmp_path / "0.faiss").file.size
    assert size < 300 * DIM * 4 < (tmp_path / "trained.faiss").stat().st_size
    np.testing.assert_array_equal(np.sort(builder.search(DATA[:4], 1)[1][:, 0]), np.sort(IDS[:4]))  # it knows it still
