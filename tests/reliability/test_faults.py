"""Full disks and failing devices: a typed error, no DEST, and a retry that ends with the right bytes."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from support.faults import FailNth, FullDisk, ShortTransfers
from support.galleries import write_gallery
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.errors import ResourceError
from fct_infer.storage import use_filesystem
from fct_infer.upgrade.settings import Settings

SETTINGS = Settings(index="Flat", block_rows=40)
AT_ONCE = Settings(index="none", block_rows=40, shards_at_once=3)


@pytest.fixture
def h():
    return Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1))


@pytest.fixture
def gallery(tmp_path):
    write_gallery(tmp_path / "g", rows_per_shard=(100, 41, 90), old_dim=12, side_dim=6, ids="int", seed=1)
    return tmp_path / "g"


def running_threads():
    return len(list(Path("/proc/self/task").iterdir()))


def bytes_of(dest):
    return {path.name: path.read_bytes() for path in [*dest.glob("embeddings/*"), *dest.glob("index.faiss")]}


FAULTS = [
    *(partial(FullDisk, size) for size in (0, 700, 5_000)),
    *(partial(FailNth, "fsync", n) for n in (0, 3, 7)),
    *(partial(FailNth, "rename", n) for n in (0, 2, 5)),
    partial(FailNth, "write", 6),
]
WHILE_THE_INDEX_IS_SAVED = [partial(FullDisk, size) for size in (12_000, 25_000)]
CASES = [
    *((fault, SETTINGS) for fault in FAULTS + WHILE_THE_INDEX_IS_SAVED),
    *((fault, AT_ONCE) for fault in FAULTS),
]


@pytest.mark.parametrize(("fault", "settings"), CASES, ids=lambda each: getattr(each, "index", None) or str(each))
def test_a_fault_is_a_typed_error_and_a_retry_succeeds(tmp_path, gallery, h, fault, settings):
    upgrade_gallery(gallery, h, tmp_path / "calm", settings=settings)
    threads = running_threads()
    with use_filesystem(fault()), pytest.raises(ResourceError):
        upgrade_gallery(gallery, h, tmp_path / "new", settings=settings)
    assert not (tmp_path / "new").exists()
    deadline = time.monotonic() + 60
    while running_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.01)  # the kernel lists a joined thread for a moment
    assert running_threads() <= threads
    upgrade_gallery(gallery, h, tmp_path / "new", settings=settings)
    assert bytes_of(tmp_path / "new") == bytes_of(tmp_path / "calm")
    assert not (tmp_path / "new.partial").exists()


def test_short_reads_and_writes_change_nothing(tmp_path, gallery, h):
    upgrade_gallery(gallery, h, tmp_path / "calm", settings=SETTINGS)
    with use_filesystem(ShortTransfers(501)):
        upgrade_gallery(gallery, h, tmp_path / "new", settings=SETTINGS)
    assert bytes_of(tmp_path / "new") == bytes_of(tmp_path / "calm")


def test_an_input_that_cannot_be_read_is_named(tmp_path, gallery, h):
    """An I/O error of the machine is no fault of the gallery: what is finished is kept."""
    for call in (5, 40, 60, 90):
        dest = tmp_path / f"new{call}"
        with use_filesystem(FailNth("pread_into", call)), pytest.raises(ResourceError, match=r"\w+/\d+\.npy"):
            upgrade_gallery(gallery, h, dest, settings=SETTINGS)
        assert not dest.exists()
        kept = (tmp_path / f"new{call}.partial" / "journal.jsonl").exists()
        report = upgrade_gallery(gallery, h, dest, settings=SETTINGS)
        assert kept or report.resumed_rows == 0
    # The readers run ahead of the journal, so what an early fault leaves behind depends on the threads.
    # By the 90th read the rows are all there and being verified.
    assert report.resumed_rows == 231
