"""``--append``: a gallery that grew or changed is upgraded to the same bytes as a whole, transforming what is new."""

from __future__ import annotations

import json
import os

import faiss
import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.faults import FailNth
from support.galleries import write_gallery
from support.programs import linear_map
from support.vector_files import lists

from fct_infer import Transformation, list_versions, load_index, upgrade_gallery
from fct_infer.cli.upgrade_gallery import command
from fct_infer.connectors import parted
from fct_infer.errors import GateError, ResourceError, UsageError
from fct_infer.index import IndexBuilder
from fct_infer.index.verify import verify_gallery
from fct_infer.storage import use_filesystem
from fct_infer.upgrade.executor import ThreadsExecutor
from fct_infer.upgrade.settings import Settings

H = Transformation(linear_map(6, 4), precision="fp32")
CASES = [
    *(("none", change) for change in ("grew", "changed", "shrank")),
    *(("IVF4,Flat", change) for change in ("grew", "changed", "both", "shrank")),
    ("HNSW8,Flat", "both"),  # a graph depends on the order of its rows
]


def result_of(dest):
    names = ("embeddings/*", "ids/*", "index.faiss")
    return {str(path.relative_to(dest)): path.read_bytes() for name in names for path in sorted(dest.glob(name))}


def add_shard(gallery, number, rows, seed):
    """Write one more shard, or another in its place, with rows and ids of its own."""
    rng = np.random.default_rng(seed)
    np.save(gallery / "embeddings" / f"{number:06d}.npy", rng.standard_normal((rows, 6), np.float32))
    np.save(gallery / "ids" / f"{number:06d}.npy", np.array([f"new-{seed}-{row}" for row in range(rows)]))


@pytest.fixture
def gallery(tmp_path):
    write_gallery(tmp_path / "g", (40, 30, 50), old_dim=6, side_dim=None, ids="str")
    return tmp_path / "g"


@pytest.fixture
def transformed(monkeypatch):
    """Rows that went through the transformation, by call of the streams."""
    calls = []
    original = ThreadsExecutor.run

    def counting(self, task):
        calls.append([part.name for part in task.parts])
        return original(self, task)

    monkeypatch.setattr(ThreadsExecutor, "run", counting)
    return calls


def upgrade(gallery, dest, index="Flat", **more):
    return upgrade_gallery(gallery, H, dest, settings=Settings(index=index, block_rows=16), **more)


@pytest.mark.parametrize(("index", "change"), CASES)
def test_the_same_bytes_as_a_whole_upgrade(tmp_path, gallery, transformed, index, change):
    upgrade(gallery, tmp_path / "d", index)
    before = result_of(tmp_path / "d")
    transformed.clear()
    if change in ("grew", "both"):
        add_shard(gallery, 3, 20, seed=8)
    if change in ("changed", "both"):
        add_shard(gallery, 1, 30, seed=9)
    if change == "shrank":
        for folder in ("embeddings", "ids"):
            (gallery / folder / "000000.npy").unlink()
    report = upgrade(gallery, tmp_path / "d", index, append=True)
    new = {"grew": ["000003"], "changed": ["000001"], "both": ["000001", "000003"], "shrank": []}[change]
    assert [name for parts in transformed for name in parts] == new
    assert report.resumed_rows == {"grew": 120, "changed": 90, "both": 90, "shrank": 80}[change]
    upgrade(gallery, tmp_path / "whole", index)
    if (index, change) == ("IVF4,Flat", "grew"):  # the index is extended, see below
        for dest in ("d", "whole"):
            (tmp_path / dest / "index.faiss").unlink()
    assert result_of(tmp_path / "d") == result_of(tmp_path / "whole") != before
    assert result_of(list_versions(tmp_path / "d")[1].path) == before


def test_nothing_new_is_nothing_to_do(tmp_path, gallery, transformed):
    upgrade(gallery, tmp_path / "d", append=True)  # there is nothing to append to: a whole upgrade
    manifest = (tmp_path / "d" / "manifest.json").read_bytes()
    transformed.clear()
    assert upgrade(gallery, tmp_path / "d", append=True).rows == 120
    assert transformed == [] and (tmp_path / "d" / "manifest.json").read_bytes() == manifest
    report = upgrade(gallery, tmp_path / "d", "IVF4,Flat", append=True)  # another index of the same rows
    assert report.index["index_key"] == "IVF4,Flat" and transformed == []


def test_a_shard_damaged_in_dest_is_made_again(tmp_path, gallery, transformed):
    upgrade(gallery, tmp_path / "d")
    path = tmp_path / "d" / "embeddings" / "000000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    add_shard(gallery, 3, 20, seed=8)
    transformed.clear()
    upgrade(gallery, tmp_path / "d", append=True)
    assert transformed == [["000000"], ["000003"]]
    upgrade(gallery, tmp_path / "whole")
    assert result_of(tmp_path / "d") == result_of(tmp_path / "whole")


def test_a_touched_file_is_transformed_again(tmp_path, gallery, transformed):
    upgrade(gallery, tmp_path / "d")
    transformed.clear()
    os.utime(gallery / "ids" / "000001.npy", ns=(1, 1))
    upgrade(gallery, tmp_path / "d", append=True)
    assert transformed == [["000001"]]


@pytest.mark.parametrize("index", ["none", "Flat"])
def test_stopped_it_goes_on(tmp_path, gallery, index):
    upgrade(gallery, tmp_path / "d", index)
    add_shard(gallery, 1, 30, seed=9)
    add_shard(gallery, 3, 20, seed=8)
    failures = 0
    for number in range(0, 60, 5):
        try:
            with use_filesystem(FailNth("write", number)):
                upgrade(gallery, tmp_path / "d", index, append=True)
            break
        except ResourceError:
            failures += 1
    upgrade(gallery, tmp_path / "d", index, append=True)
    upgrade(gallery, tmp_path / "whole", index)
    assert result_of(tmp_path / "d") == result_of(tmp_path / "whole") and failures > 2
    assert not (tmp_path / "d.partial").exists()
    ids = np.load(gallery / "ids" / "000003.npy")
    if index == "Flat":
        rows = np.load(tmp_path / "d" / "embeddings" / "000003.npy")
        assert load_index(tmp_path / "d").search(rows, 1)[1][:, 0].tolist() == ids.tolist()


def test_rows_that_were_made_otherwise_are_not_kept(tmp_path, gallery):
    upgrade(gallery, tmp_path / "d")
    with pytest.raises(UsageError, match=r"rows were made otherwise: transformation \(was .*--force alone"):
        other = Transformation(linear_map(6, 4, seed=5), precision="fp32")
        upgrade_gallery(gallery, other, tmp_path / "d", append=True)
    with pytest.raises(UsageError, match=r"dtype \(was float32, is float16\)"):
        settings = Settings(index="none", dtype="float16")
        upgrade_gallery(gallery, H, tmp_path / "d", settings=settings, append=True)
    rows = np.random.default_rng(0).standard_normal((20, 6), np.float32)
    pyarrow.parquet.write_table(pyarrow.table({"vector": lists(rows)}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet: --append .* none of those files"):
        upgrade_gallery(tmp_path / "a.parquet", H, tmp_path / "d", append=True)


def test_from_the_command_line(tmp_path, gallery):
    core_bundle(linear_map(6, 4), tmp_path / "h")
    arguments = [str(gallery), "--transformation", str(tmp_path / "h"), "-o", str(tmp_path / "d"), "--index", "Flat"]
    for more in ([], ["--append"]):
        done = CliRunner().invoke(command, [*arguments, *more], catch_exceptions=False)
        assert done.exit_code == 0
    add_shard(gallery, 3, 20, seed=8)
    told = CliRunner().invoke(command, [*arguments, "--append", "--dry-run"], catch_exceptions=False).stdout
    assert "3 shards, 120 rows, taken over unchanged" in told
    done = CliRunner().invoke(command, [*arguments, "--append", "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert (report["rows"], report["resumed_rows"]) == (140, 120)


def test_a_graph_grows_by_shards_larger_than_all_before(tmp_path, gallery):
    settings = Settings(index="HNSW8,Flat")  # blocks are as large as the largest shard, and a graph depends on them
    upgrade_gallery(gallery, H, tmp_path / "d", settings=settings)
    add_shard(gallery, 3, 60, seed=8)
    report = upgrade_gallery(gallery, H, tmp_path / "d", settings=settings, append=True)
    assert (report.rows, report.resumed_rows, load_index(tmp_path / "d").rows) == (180, 120, 180)


def lists_of(dest):
    """The ids in each inverted list, and the centroids."""
    index = load_index(dest).index
    ids = [
        faiss.rev_swig_ptr(index.invlists.get_ids(n), index.invlists.list_size(n)).copy() for n in range(index.nlist)
    ]
    return ids, faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist)


@pytest.mark.parametrize("index", ["IVF4,Flat", "IVF4,SQ8", "PCA2,IVF4,Flat", "HNSW8,Flat"])
def test_the_index_is_extended_where_rows_were_only_added(tmp_path, gallery, monkeypatch, index):
    upgrade(gallery, tmp_path / "d", index)
    before = load_index(tmp_path / "d")
    add_shard(gallery, 3, 20, seed=8)
    monkeypatch.setattr(IndexBuilder, "train", None)  # would fail
    report = upgrade(gallery, tmp_path / "d", index, append=True)
    assert "index of 120 rows was extended" in report.index_placement["lists"]
    after, rows = (
        load_index(tmp_path / "d"),
        np.concatenate([np.load(each) for each in (tmp_path / "d").glob("embeddings/*3.npy")]),
    )
    assert (before.rows, after.rows) == (120, 140)
    found = after.search(rows, 1)[1][:, 0]
    assert (found == np.load(gallery / "ids" / "000003.npy")).mean() > 0.7
    assert verify_gallery(tmp_path / "d").damaged == {}


def test_an_extended_index_keeps_its_lists(tmp_path, gallery):
    upgrade(gallery, tmp_path / "d", "IVF4,Flat")
    ids, centroids = lists_of(tmp_path / "d")
    for shard in (3, 4):
        add_shard(gallery, shard, 20, seed=shard)
        upgrade(gallery, tmp_path / "d", "IVF4,Flat", append=True)
    more, kept = lists_of(tmp_path / "d")
    assert np.array_equal(centroids, kept)
    assert all(np.array_equal(new[: len(old)], old) for old, new in zip(ids, more, strict=True))
    assert np.array_equal(np.sort(np.concatenate(more)), np.arange(160))


def test_zero_rows_left_out_stay_counted(tmp_path, gallery):
    np.save(gallery / "embeddings" / "000000.npy", np.zeros((40, 6), np.float32))
    settings = Settings(index="IVF4,Flat", metric="cosine", block_rows=16, min_cosine=0)
    h = Transformation(linear_map(6, 4), precision="fp32")
    try:
        upgrade_gallery(gallery, h, tmp_path / "d", settings=settings)
    except GateError:
        pytest.skip("this transformation makes no zero rows of zero rows")
    add_shard(gallery, 3, 20, seed=8)
    report = upgrade_gallery(gallery, h, tmp_path / "d", settings=settings, append=True)
    held = load_index(tmp_path / "d").rows
    assert held + report.index["rows left out"] == 140


@pytest.mark.parametrize("change", ["in front", "index", "damaged"])
def test_else_the_index_is_built_anew(tmp_path, gallery, change):
    upgrade(gallery, tmp_path / "d", "IVF4,Flat")
    index = "IVF4,Flat"
    add_shard(gallery, 3, 20, seed=8)
    if change == "in front":
        add_shard(gallery, 1, 30, seed=9)
    elif change == "index":
        index = "IVF5,Flat"
    elif change == "damaged":
        with (tmp_path / "d" / "index.faiss").open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"xxx")
    settings = Settings(index=index, block_rows=16)
    report = upgrade_gallery(gallery, H, tmp_path / "d", settings=settings, append=True)
    assert "lists" not in report.index_placement
    upgrade(gallery, tmp_path / "whole", index)
    assert result_of(tmp_path / "d") == result_of(tmp_path / "whole")


def test_stopped_while_the_index_is_extended(tmp_path, gallery):
    upgrade(gallery, tmp_path / "calm", "IVF4,Flat")
    upgrade(gallery, tmp_path / "d", "IVF4,Flat")
    add_shard(gallery, 3, 50, seed=8)
    upgrade(gallery, tmp_path / "calm", "IVF4,Flat", append=True)
    failures = 0
    for number in range(0, 80, 3):
        try:
            with use_filesystem(FailNth("write", number)):
                upgrade(gallery, tmp_path / "d", "IVF4,Flat", append=True)
            break
        except ResourceError:
            failures += 1
    assert result_of(tmp_path / "d") == result_of(tmp_path / "calm") and failures > 4


def write_parquet(folder, name, rows, first):
    folder.mkdir(exist_ok=True)
    vectors = np.random.default_rng(first).standard_normal((rows, 6), np.float32)
    table = pyarrow.table({"vector": lists(vectors), "id": [f"item-{first + row}" for row in range(rows)]})
    pyarrow.parquet.write_table(table, folder / name, row_group_size=30)


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_a_parquet_folder_that_grew(tmp_path, monkeypatch, transformed, form):
    """Parts are cut across files: the last one of before is cut anew, and its rows are in the index already."""
    monkeypatch.setattr(parted, "PART_BYTES", 70 * 6 * 4)
    source = tmp_path / "p"
    write_parquet(source, "a.parquet", 130, 0)
    write_parquet(source, "b.parquet", 40, 130)
    settings = Settings(index="IVF4,Flat", block_rows=16, format=form)
    upgrade_gallery(source, H, tmp_path / "d", settings=settings)
    write_parquet(source, "c.parquet", 90, 170)
    transformed.clear()
    report = upgrade_gallery(source, H, tmp_path / "d", settings=settings, append=True)
    assert "index of 170 rows was extended" in report.index_placement["lists"]
    assert report.resumed_rows == 130 and next(name for parts in transformed for name in parts) == "000002"
    upgrade_gallery(source, H, tmp_path / "whole", settings=settings)
    ids, _ = lists_of(tmp_path / "d")
    assert np.array_equal(np.sort(np.concatenate(ids)), np.arange(260))
    results = [result_of(tmp_path / name) for name in ("d", "whole")]
    for result in results:
        del result["index.faiss"]
    assert results[0] == results[1]


@pytest.mark.parametrize("change", ["first", "last", "removed", "between"])
def test_a_parquet_folder_that_changed(tmp_path, monkeypatch, transformed, change):
    monkeypatch.setattr(parted, "PART_BYTES", 40 * 6 * 4)
    source = tmp_path / "p"
    for number in range(4):
        write_parquet(source, f"{number}.parquet", 40, 40 * number)
    settings = Settings(index="Flat", block_rows=16)
    upgrade_gallery(source, H, tmp_path / "d", settings=settings)
    transformed.clear()
    if change == "removed":
        (source / "1.parquet").unlink()
    else:
        write_parquet(source, {"first": "0", "last": "3", "between": "1b"}[change] + ".parquet", 40, 1000)
    report = upgrade_gallery(source, H, tmp_path / "d", settings=settings, append=True)
    kept = {"first": 0, "last": 80, "removed": 0, "between": 40}[change]
    assert report.resumed_rows >= kept and report.rows == 160 + 40 * {"removed": -1, "between": 1}.get(change, 0)
    upgrade_gallery(source, H, tmp_path / "whole", settings=settings)
    assert result_of(tmp_path / "d") == result_of(tmp_path / "whole")
