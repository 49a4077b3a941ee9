"""Killed at every step of replacing a gallery and of going back: old or new, whole, nothing lost, repeatable."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.faults import FailNth, FaultyFileSystem, KillAt
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, upgrade_gallery
from fct_infer.errors import OutputError, ResourceError
from fct_infer.gallery import Gallery, read_manifest
from fct_infer.gallery.versions import list_versions, rollback
from fct_infer.index.verify import verify_gallery
from fct_infer.storage import use_filesystem
from fct_infer.upgrade.settings import Settings

SETTINGS = Settings(index="none", keep=1)
H = Transformation(linear_map(6, 4), precision="fp32")


class WithoutExchange(FaultyFileSystem):
    """As NFS: two folders do not change places; a probe of that is no moment to die at."""

    def exchange(self, first, second):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(second))


class KillWithoutExchange(KillAt, WithoutExchange):
    pass


def upgrade(folder: Path, seed: int, settings: Settings = SETTINGS) -> None:
    upgrade_gallery(folder / f"g{seed}", H, folder / "dest", settings=settings, force=True)


def first_row(dest: Path) -> list[float]:
    return Gallery.open(dest).read_rows(np.array([0]))[0][0].tolist()


def died(call, kind: type[FaultyFileSystem], moment: int) -> bool:
    """Run ``call`` in a child that dies around a call that changes the disk; False if it came to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with use_filesystem(kind(moment)):
                call()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture
def galleries(tmp_path):
    for seed in (1, 2, 3):
        write_gallery(tmp_path / f"g{seed}", rows_per_shard=(5,), old_dim=6, side_dim=None, seed=seed)
    return tmp_path


@pytest.fixture
def rows(galleries):
    """The first rows of three upgrades, the second of which is published with the first kept."""
    found = []
    for seed in (3, 1, 2):
        upgrade(galleries, seed)
        found.append(first_row(galleries / "dest"))
    return {3: found[0], 1: found[1], 2: found[2]}


def is_whole(folder: Path) -> bool:
    return not verify_gallery(folder).damaged


KINDS = pytest.mark.parametrize("kind", [KillAt, KillWithoutExchange], ids=["exchange", "no exchange"])


@KINDS
def test_killed_at_every_step_of_going_back(galleries, rows, kind):
    dest, seen = galleries / "dest", set()
    for moment in range(1000):
        version = list_versions(dest)[1].version if not list_versions(dest)[1].is_current else None
        assert version is not None
        was_killed = died(lambda version=version: rollback(dest, version), kind, moment)
        if dest.exists():  # a file system without exchange has none for an instant
            assert first_row(dest) in (rows[1], rows[2]) and is_whole(dest)
            seen.add(str(first_row(dest)))
        else:
            assert kind is KillWithoutExchange
        names = {first_row(each.path)[0] for each in list_versions(dest)} if dest.exists() else set()
        assert not names or names <= {rows[1][0], rows[2][0]}
        current = next((each.version for each in list_versions(dest) if each.is_current), None)
        if current != version:
            assert rollback(dest, version).version.version == version
        assert first_row(dest) == rows[1]
        newer = next(each.version for each in list_versions(dest) if not each.is_current)
        rollback(dest, newer)
        assert first_row(dest) == rows[2] and is_whole(dest) and is_whole(dest.parent / "dest.versions" / version)
        assert sorted(path.name for path in galleries.iterdir()) == ["dest", "dest.versions", "g1", "g2", "g3"]
        if not was_killed:
            break
    assert moment > 8 and seen == {str(rows[1]), str(rows[2])}


def test_killed_while_it_grows(galleries, rows):
    """What is taken over is work as any other: the same command goes on, to the bytes of a whole upgrade."""
    dest, shard = galleries / "dest", galleries / "g2" / "embeddings" / "000001.npy"
    new = np.load(galleries / "g1" / "embeddings" / "000000.npy")

    def grow():
        return upgrade_gallery(galleries / "g2", H, dest, settings=SETTINGS, append=True)

    np.save(shard, new)
    upgrade_gallery(galleries / "g2", H, galleries / "whole", settings=SETTINGS)
    wanted = [path.read_bytes() for path in sorted(galleries.glob("whole/embeddings/*"))]
    deaths = 0
    for moment in range(0, 100, 6):
        shard.unlink()
        upgrade(galleries, 2)
        np.save(shard, new)
        was_killed = died(grow, KillAt, moment)
        deaths += was_killed
        assert first_row(dest) == rows[2] and is_whole(dest)
        assert grow().rows == 10
        assert [path.read_bytes() for path in sorted(dest.glob("embeddings/*"))] == wanted and is_whole(dest)
        assert not (galleries / "dest.partial").exists()
        if not was_killed:
            break
    assert deaths > 5


@pytest.mark.slow
@KINDS
def test_killed_at_every_step_of_replacing_what_is_kept(galleries, rows, kind):
    """From the journal's last line on; what comes before is no different without versions."""
    dest, partial, seen = galleries / "dest", galleries / "dest.partial", set()
    for moment in range(1000):
        upgrade(galleries, 2)
        before = list_versions(dest)[0]
        was_killed = died(
            lambda: upgrade(galleries, 3), FromPublishing if kind is KillAt else FromPublishingNoExchange, moment
        )
        if dest.exists():
            assert first_row(dest) in (rows[2], rows[3]) and is_whole(dest)
            seen.add(str(first_row(dest)))
            if first_row(dest) == rows[3] and kind is KillAt:  # what was replaced is there at every moment
                assert before.version in {each.version for each in list_versions(dest)}
        else:
            assert kind is KillWithoutExchange
        is_done = dest.exists() and first_row(dest) == rows[3] and not (partial / "journal.jsonl").exists()
        if moment % 2:  # somebody who goes back puts things right as well as the same command does
            assert rollback(dest, before.version).version.version == before.version
            assert first_row(dest) == rows[2]
        upgrade(galleries, 3)  # the same command; had it been done, once more
        if not is_done:
            assert before.version in {each.version for each in list_versions(dest)[1:]}
        assert first_row(dest) == rows[3] and is_whole(dest)
        assert all(is_whole(each.path) for each in list_versions(dest))
        assert sorted(path.name for path in galleries.iterdir()) == ["dest", "dest.versions", "g1", "g2", "g3"]
        if not was_killed:
            break
    assert moment > 8 and seen == {str(rows[2]), str(rows[3])}


class FromPublishing(KillAt):
    """Counts moments only from when the manifest of the new gallery is written."""

    is_counting = False

    def rename(self, source, target):
        if target.name == "manifest.json":
            self.is_counting = True
        super().rename(source, target)

    def _moment(self, call):
        if self.is_counting:
            super()._moment(call)


class FromPublishingNoExchange(FromPublishing, WithoutExchange):
    pass


def _from_publishing(kind):
    return FromPublishing if kind is KillAt else FromPublishingNoExchange


@pytest.mark.parametrize("call", ["rename", "exchange", "fsync", "mkdir"])
def test_a_disk_that_fails_while_going_back_loses_nothing(galleries, rows, call):
    dest = galleries / "dest"
    failures = 0
    for number in range(6):
        old = next(each.version for each in list_versions(dest) if not each.is_current)
        try:
            with use_filesystem(FailNth(call, number)):
                rollback(dest, old)
        except ResourceError:
            failures += 1
        assert first_row(dest) in (rows[1], rows[2])
        assert {str(first_row(each.path)) for each in list_versions(dest)} == {str(rows[1]), str(rows[2])}
        if next(each.version for each in list_versions(dest) if each.is_current) != old:
            rollback(dest, old)
    assert failures


@pytest.mark.parametrize(
    ("call", "numbers"), [("rename", range(3, 8)), ("exchange", range(2)), ("fsync", range(12, 22, 2))]
)
def test_a_disk_that_fails_while_replacing_loses_nothing(galleries, rows, call, numbers):
    dest, failures = galleries / "dest", 0
    for number in numbers:
        upgrade(galleries, 2)
        before = next(each.version for each in list_versions(dest) if each.is_current)
        try:
            with use_filesystem(FailNth(call, number)):
                upgrade(galleries, 3)
        except ResourceError:
            failures += 1
            assert first_row(dest) in (rows[2], rows[3]) and is_whole(dest)
            assert before in {each.version for each in list_versions(dest)}
            upgrade(galleries, 3)
            assert before in {each.version for each in list_versions(dest)}
        assert first_row(dest) == rows[3] and not (galleries / "dest.partial").exists()
    assert failures


def test_readers_see_one_version_whole_while_it_changes(galleries, rows):
    dest, stop, seen, errors = galleries / "dest", threading.Event(), set(), []

    def read():
        while not stop.is_set():
            try:
                seen.add((read_manifest(dest).rows, str(first_row(dest))))
            except Exception as error:  # whatever it is, it is not for a reader to see
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            rollback(dest, next(each.version for each in list_versions(dest) if not each.is_current))
    finally:
        stop.set()
        reader.join()
    assert not errors and seen <= {(5, str(rows[1])), (5, str(rows[2]))}


def test_of_two_who_go_back_one_wins_at_a_time(galleries, rows):
    code = """
import sys
from fct_infer.errors import OutputError
from fct_infer.gallery.versions import list_versions, rollback
done = lost = 0
for _ in range(40):
    try:
        rollback(sys.argv[1], next(each.version for each in list_versions(sys.argv[1]) if not each.is_current))
        done += 1
    except OutputError as error:
        assert "in use by another process" in str(error), error
        lost += 1
    except (StopIteration, Exception) as error:
        assert type(error).__name__ in ("StopIteration", "UsageError"), repr(error)  # the other was faster
print(done)
"""
    command = [sys.executable, "-c", code, str(galleries / "dest")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sum(int(racer.communicate(timeout=120)[0]) for racer in racers) >= 1
    assert {str(first_row(each.path)) for each in list_versions(galleries / "dest")} == {str(rows[1]), str(rows[2])}
    assert sorted(path.name for path in galleries.iterdir()) == ["dest", "dest.versions", "g1", "g2", "g3"]


def test_an_upgrade_and_going_back_exclude_each_other(galleries, rows):
    tried = []

    def meanwhile(stage, _done, _rows):
        if stage == "verify" and not tried:
            with pytest.raises(OutputError, match="in use by another process"):
                rollback(galleries / "dest")
            tried.append(stage)

    upgrade_gallery(galleries / "g3", H, galleries / "dest", settings=SETTINGS, force=True, progress=meanwhile)
    assert tried and first_row(galleries / "dest") == rows[3]
