"""Recall is measured with neighbours that were found while rows passed, and that lie on the disk as they passed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, upgrade_gallery
from fct_infer.errors import GalleryError, GateError, OutputError
from fct_infer.gallery import sample_rows
from fct_infer.index import recall
from fct_infer.upgrade import neighbours
from fct_infer.upgrade.checks import Checks
from fct_infer.upgrade.executor import ThreadsExecutor
from fct_infer.upgrade.plan import SEED
from fct_infer.upgrade.settings import Settings

H = Transformation(linear_map(12, 8), "fp32", threads=1)
SIZES = (300, 37, 300, 211)
ROWS = sum(SIZES)
SETTINGS = Settings(index="IVF8,Flat", block_rows=64)


@pytest.fixture
def gallery(tmp_path):
    write_gallery(tmp_path / "g", SIZES, old_dim=12, side_dim=None, ids="int", seed=1)
    return tmp_path / "g"


@pytest.fixture
def read_back(monkeypatch):
    """Numbers of the rows that were read back to find neighbours among them."""
    rows, original = [], neighbours.read_block

    def counted(plan, reader, part, start, stop):
        rows.extend(range(part.first_row + start, part.first_row + stop))
        return original(plan, reader, part, start, stop)

    monkeypatch.setattr(neighbours, "read_block", counted)
    return rows


class Apart(ThreadsExecutor):
    """Leaves the index to the driver."""

    name, feeds_index = "apart", False


def upgrade(gallery, dest, settings=SETTINGS, **options):
    return upgrade_gallery(gallery, H, dest, settings=settings, **options)


def stop_after(count):
    def progress(stage, rows, _total):
        if stage == "transform" and rows > count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_found_on_the_way_is_what_is_found_by_reading(gallery, tmp_path, monkeypatch, read_back, metric, dtype):
    settings = replace(SETTINGS, metric=metric, dtype=dtype)
    on_the_way = upgrade(gallery, tmp_path / "a", settings).verification
    assert not read_back and on_the_way.queries == 100 and on_the_way.recall_at_10 > 0.5
    monkeypatch.setattr(Checks, "watch", None)
    assert upgrade(gallery, tmp_path / "b", settings).verification == on_the_way
    assert read_back == list(range(ROWS))


@pytest.mark.parametrize("options", [{"executor": Apart()}, {"settings": replace(SETTINGS, sharded_index=True)}])
def test_rows_that_are_read_for_the_index_are_not_read_again(gallery, tmp_path, read_back, options):
    wanted = upgrade(gallery, tmp_path / "a").verification
    assert upgrade(gallery, tmp_path / "b", **options).verification == wanted
    assert not read_back


def test_a_resumed_run_looks_at_finished_parts_as_it_feeds_them(gallery, tmp_path, read_back):
    wanted = upgrade(gallery, tmp_path / "a").verification
    for rows in (300, 400):  # in the second part, and in the third
        with pytest.raises(KeyboardInterrupt):
            upgrade(gallery, tmp_path / "b", progress=stop_after(rows))
    report = upgrade(gallery, tmp_path / "b")
    assert report.resumed_rows > 300 and report.verification == wanted and not read_back


def test_of_an_index_that_is_extended_its_own_rows_are_read_back(gallery, tmp_path, read_back):
    upgrade(gallery, tmp_path / "b")
    np.save(gallery / "embeddings" / "000004.npy", np.load(gallery / "embeddings" / "000001.npy")[::-1])
    np.save(gallery / "ids" / "000004.npy", np.arange(SIZES[1]) + 10**6)
    report = upgrade(gallery, tmp_path / "b", append=True)
    assert report.resumed_rows == ROWS and read_back == list(range(ROWS))
    assert report.verification.recall_at_10 > 0.5


def test_equal_rows_beyond_number_are_no_reason_to_fail(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(recall, "MAX_TIES", 20)
    for name in ("000000.npy", "000001.npy", "000002.npy", "000003.npy"):
        np.save(gallery / "embeddings" / name, np.ones_like(np.load(gallery / "embeddings" / name)))
    verification = upgrade(gallery, tmp_path / "a", replace(SETTINGS, index="Flat")).verification
    assert verification.recall_at_10 == 1


# -- damage between writing and publishing -----------------------------------------------------------------------------


def damaged(gallery, dest, damage, **settings):
    """Upgrade, and damage what was written just before it is verified."""

    def progress(stage, rows, _total):
        if stage == "verify" and rows == 0:
            damage(dest.with_name(f"{dest.name}.partial") / "gallery")

    upgrade(gallery, dest, replace(SETTINGS, verify_rows=1, **settings), progress=progress)


def neighbour_of_the_first_query(gallery, dest):
    """Return the number of a row that is near to the first sampled one, and not itself sampled in any way."""
    upgrade(gallery, dest)
    rows = np.concatenate([np.load(file) for file in sorted((dest / "embeddings").iterdir())])
    sampled = sample_rows(ROWS, neighbours.RECALL_QUERIES, SEED + 2)
    near = np.argsort(np.square(rows - rows[sampled[0]]).sum(axis=1))[: neighbours.RECALL_K]
    return next(row for row in near.tolist() if row not in sampled and row not in sample_rows(ROWS, 1, SEED + 1))


def test_a_single_changed_row_that_counts_for_recall_is_named(gallery, tmp_path):
    row = neighbour_of_the_first_query(gallery, tmp_path / "a")
    ends = np.cumsum(SIZES)
    shard = int(np.searchsorted(ends, row, side="right"))

    def turn(written):
        path = written / "embeddings" / f"{shard:06d}.npy"
        rows = np.load(path)
        rows[row - (ends[shard] - SIZES[shard])] *= -1
        np.save(path, rows)

    with pytest.raises(GateError, match=rf"^row {row}: cosine -1\.0+ to its recomputation"):
        damaged(gallery, tmp_path / "b", turn)
    assert not (tmp_path / "b").exists()


def swap(folder):
    def swapped(written):
        first, other = (written / folder / name for name in ("000000.npy", "000002.npy"))
        first.rename(written / "aside")
        other.rename(first)
        (written / "aside").rename(other)

    return swapped


def test_swapped_shards_fail_the_gate(gallery, tmp_path):
    with pytest.raises(GateError, match=r"^row \d+: cosine"):
        damaged(gallery, tmp_path / "b", swap("embeddings"))


def test_ids_that_are_not_those_of_the_index_fail_the_gate(gallery, tmp_path):
    asked = {"index": "Flat", "min_recall": 0.9}
    damaged(gallery, tmp_path / "a", lambda written: None, **asked)
    with pytest.raises(GateError, match=r"recall@10 of the index is 0\.[0-7]"):
        damaged(gallery, tmp_path / "b", swap("ids"), **asked)


def test_rows_that_are_gone_fail_the_gate(gallery, tmp_path):
    def lose(written):
        path = written / "embeddings" / "000002.npy"
        with path.open("r+b") as file:  # the second half, as a disk that lost what it had not written yet
            file.truncate(path.stat().st_size // 2)
            file.truncate(128 + SIZES[2] * 8 * 4)

    with pytest.raises(GateError, match=r"^row \d+: cosine 0\.0+ to"):
        damaged(gallery, tmp_path / "b", lose)


def test_a_shard_that_is_shorter_than_it_was_is_damage_of_our_own(gallery, tmp_path):
    def cut(written):
        path = written / "embeddings" / "000003.npy"
        path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(OutputError, match=r"unfinished work is damaged.*000003\.npy"):
        damaged(gallery, tmp_path / "b", cut)
    assert upgrade(gallery, tmp_path / "b").rows == ROWS


def test_a_sampled_row_that_is_not_finite_is_named_before_any_is_written(gallery, tmp_path):
    path = gallery / "embeddings" / "000001.npy"
    rows = np.load(path)
    rows[:, 3] = np.nan
    np.save(path, rows)
    with pytest.raises(GalleryError, match=r"000001\.npy.* row \d+.* holds NaN or infinity"):
        upgrade(gallery, tmp_path / "a", replace(SETTINGS, index="Flat"))
    assert not (tmp_path / "a.partial").exists()
