"""Shards at once: how they are shared out, and that no thread outlives the call."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from pathlib import Path

import pytest
from support.galleries import write_gallery
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.gallery import Shard
from fct_infer.storage import FileSystem, use_filesystem
from fct_infer.upgrade import executor
from fct_infer.upgrade.executor import equal_shares
from fct_infer.upgrade.settings import Settings

SETTINGS = Settings(index="none", block_rows=40, shards_at_once=3)


def shards_of(*rows: int) -> list[Shard]:
    shards, first = [], 0
    for number, count in enumerate(rows):
        shards.append(Shard(str(number), count, first, Path("gallery"), has_side=False, has_ids=False))
        first += count
    return shards


@pytest.mark.parametrize(
    ("rows", "count", "largest"),
    [
        ((6, 1, 6, 1, 6, 1), 2, 12),
        ((5, 5, 5), 8, 5),
        ((9, 1, 1, 1, 1), 2, 9),
        ((3,) * 100, 7, 45),
        ((4,), 3, 4),
    ],
)
def test_parts_are_about_equal(rows, count, largest):
    shards = shards_of(*rows)
    parts = equal_shares(shards, count)
    assert len(parts) == min(count, len(rows))
    assert all(part == sorted(part, key=shards.index) and part for part in parts)
    assert sorted((shard for part in parts for shard in part), key=shards.index) == shards
    assert max(sum(shard.rows for shard in part) for part in parts) == largest


class Slow(FileSystem):
    def fsync(self, fd):
        time.sleep(0.2)
        super().fsync(fd)


@pytest.mark.parametrize("interrupts", [1, 4])
@pytest.mark.parametrize("during", ["wait", "submit"])
def test_interrupted_again_and_again_no_thread_is_left(tmp_path, monkeypatch, interrupts, during):
    h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1))
    write_gallery(tmp_path / "g", rows_per_shard=(50,) * 12, old_dim=12, side_dim=6, seed=1)
    upgrade_gallery(tmp_path / "g", h, tmp_path / "calm", settings=SETTINGS)
    left = interrupts

    def interrupt():
        nonlocal left
        left -= 1
        if left >= 0:
            raise KeyboardInterrupt

    class Pool(concurrent.futures.ThreadPoolExecutor):
        submitted = 0

        def submit(self, *arguments):
            Pool.submitted += 1
            if during == "submit" and Pool.submitted == 2:
                interrupt()
            return super().submit(*arguments)

    def wait(*arguments, **options):
        interrupt()
        return concurrent.futures.wait(*arguments, **options)

    monkeypatch.setattr(executor, "wait", wait)
    monkeypatch.setattr(executor, "ThreadPoolExecutor", Pool)
    threads = threading.active_count()
    with use_filesystem(Slow()), pytest.raises(KeyboardInterrupt):
        upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)
    assert threading.active_count() == threads
    assert not (tmp_path / "new.partial" / "lock").exists()
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)
    assert report.resumed_rows < 600  # the others ended early
    for path in (tmp_path / "calm" / "embeddings").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / "embeddings" / path.name).read_bytes()
