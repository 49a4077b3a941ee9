"""kill -9 and full disks: a saved gallery is the earlier or the later one, whole; a backfill goes on."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from support.faults import FullDisk, KillAt
from support.galleries import write_gallery
from support.programs import random_rows

from fct_infer import open_source
from fct_infer.errors import ResourceError
from fct_infer.index import GalleryIndex, IndexBuilder
from fct_infer.serving import Backfiller, MixedGallery, NewSpace, Settings, read_backfilled
from fct_infer.storage import use_filesystem

DIM = 4


def gallery_of(rows):
    builder = IndexBuilder("Flat", DIM, "l2", 1)
    builder.add(rows, np.arange(len(rows)))
    return MixedGallery(NewSpace(GalleryIndex(builder.index, "l2")), np.arange(len(rows)))


def killed(n, work):
    """Do work in a child that dies at its n-th moment; return whether it did."""
    child = os.fork()
    if child == 0:
        try:
            with use_filesystem(KillAt(n)):
                work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(status := os.waitpid(child, 0)[1]) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_save_that_is_killed_leaves_the_earlier_or_the_later_gallery(tmp_path):
    gallery, query = gallery_of(random_rows(20, DIM)), random_rows(1, DIM, 6)
    before = gallery.search(query, 5)
    gallery.save(tmp_path / "saved")
    gallery.upsert([3], query)
    after = gallery.search(query, 5)
    deaths, n, seen = 0, 0, set()
    while killed(n, lambda: gallery.save(tmp_path / "saved", force=True)):
        found = MixedGallery.load(tmp_path / "saved").search(query, 5)
        states = {"before": before, "after": after}
        state = next(name for name, each in states.items() if np.array_equal(each.distances, found.distances))
        assert np.array_equal(found.ids, states[state].ids)
        seen.add(state)
        if state == "after":  # begin again from the earlier one
            original = gallery_of(random_rows(20, DIM))
            original.save(tmp_path / "saved", force=True)
        deaths, n = deaths + 1, n + 3
    assert deaths > 10 and seen == {"before", "after"}
    gallery.save(tmp_path / "saved", force=True)
    assert (MixedGallery.load(tmp_path / "saved").search(query, 5).ids == after.ids).all()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["saved"]


@pytest.mark.parametrize("room", [0, 100, 700])
def test_a_full_disk_leaves_the_earlier_gallery(tmp_path, room):
    gallery = gallery_of(random_rows(20, DIM))
    gallery.save(tmp_path / "saved")
    gallery.delete([1])
    with use_filesystem(FullDisk(room)), pytest.raises(ResourceError, match="disk is full"):
        gallery.save(tmp_path / "saved", force=True)
    assert MixedGallery.load(tmp_path / "saved").progress.rows == 20
    assert sorted(each.name for each in tmp_path.iterdir()) == ["saved"]


@pytest.mark.parametrize("n", range(0, 60, 4))
def test_a_backfill_killed_at_any_moment_goes_on_and_ends_with_the_same_bytes(tmp_path, n):
    rows, asked = random_rows(80, DIM), []

    def embed(ids):
        asked.extend(ids.tolist())
        return rows[ids]

    def run(folder):
        settings = Settings(probe_rows=0, part_rows=20, batch_rows=10)
        return Backfiller(open_source(tmp_path / "g"), folder, embed, np.arange(80), settings=settings).run()

    write_gallery(tmp_path / "g", (80,), DIM, side_dim=None)
    run(tmp_path / "whole")
    assert killed(n, lambda: run(tmp_path / "new"))
    asked.clear()
    report = run(tmp_path / "new")
    assert report.new == 80 and len(asked) == report.embedded
    wanted, found = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "whole", tmp_path / "new")
    )
    assert found == wanted
    assert sorted(np.concatenate([ids for ids, _ in read_backfilled(tmp_path / "new")])) == list(range(80))


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_full_disk_keeps_what_a_backfill_has_done(tmp_path, room):
    rows = random_rows(80, DIM)
    write_gallery(tmp_path / "g", (80,), DIM, side_dim=None)
    settings = Settings(probe_rows=0, part_rows=20, batch_rows=10)
    job = Backfiller(
        open_source(tmp_path / "g"), tmp_path / "new", lambda ids: rows[ids], np.arange(80), settings=settings
    )
    with use_filesystem(FullDisk(room)), pytest.raises(ResourceError, match="disk is full"):
        job.run()
    assert job.run().new == 80
