"""File systems that lack what publishing uses: locks, or two folders that change places in one step."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support.children import run_code
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, upgrade_gallery
from fct_infer.errors import OutputError
from fct_infer.gallery import Gallery
from fct_infer.storage import FileLock, FileSystem, can_exchange, use_filesystem
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.settings import Settings

SETTINGS = Settings(index="none")


class NoExchange(FileSystem):
    """As NFS: ``renameat2`` refuses the flag. Dies at the given rename, counted from the first while replacing."""

    def __init__(self, die_at: int | None = None) -> None:
        self.left, self.is_replacing = die_at, False

    def exchange(self, first: Path, second: Path) -> None:
        self.is_replacing = "probe" not in str(first)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(second))

    def rename(self, source: Path, target: Path) -> None:
        if self.is_replacing and self.left is not None:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
        super().rename(source, target)


def first_row(dest: Path) -> np.ndarray:
    return Gallery.open(dest).read_rows(np.array([0]))[0][0]


@pytest.fixture
def galleries(tmp_path):
    for name, seed in (("old", 1), ("new", 2)):
        write_gallery(tmp_path / name, rows_per_shard=(30, 5), old_dim=12, seed=seed)
    return tmp_path


@pytest.fixture
def h():
    return Transformation(linear_map(12, 8), "fp32")


def test_replacing_without_exchange(galleries, h):
    upgrade_gallery(galleries / "old", h, galleries / "dest", settings=SETTINGS)
    before = first_row(galleries / "dest")
    assert make_plan(galleries / "new", h, galleries / "dest", SETTINGS).destination.is_replaced_in_one_step
    with use_filesystem(NoExchange()):
        assert not can_exchange(galleries)
        assert not make_plan(galleries / "new", h, galleries / "dest", SETTINGS).destination.is_replaced_in_one_step
        upgrade_gallery(galleries / "new", h, galleries / "dest", settings=SETTINGS, force=True)
    assert not np.array_equal(first_row(galleries / "dest"), before)
    assert sorted(path.name for path in galleries.iterdir()) == ["dest", "dest.versions", "new", "old"]


@pytest.mark.parametrize("rename", [0, 1, 2, 3])
def test_killed_between_the_two_renames(galleries, h, rename):
    """The same command puts things right, whichever of the folders had its name at that moment."""
    upgrade_gallery(galleries / "old", h, galleries / "dest", settings=SETTINGS)
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_file_systems import NoExchange, SETTINGS, Transformation, linear_map, upgrade_gallery, use_filesystem
        h = Transformation(linear_map(12, 8), "fp32")
        with use_filesystem(NoExchange(int(sys.argv[4]))):
            upgrade_gallery(sys.argv[2], h, sys.argv[3], settings=SETTINGS, force=True)
    """
    folders = Path(__file__).parent, galleries / "new", galleries / "dest"
    done = run_code(textwrap.dedent(code), *folders, rename)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (galleries / "dest").exists() == (rename != 1)
    with use_filesystem(NoExchange()):
        report = upgrade_gallery(galleries / "new", h, galleries / "dest", settings=SETTINGS, force=True)
    assert report.rows == 35
    upgrade_gallery(galleries / "new", h, galleries / "expected", settings=SETTINGS)
    np.testing.assert_array_equal(first_row(galleries / "dest"), first_row(galleries / "expected"))
    assert sorted(path.name for path in galleries.iterdir()) == ["dest", "dest.versions", "expected", "new", "old"]


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_one_at_a_time_all_the_same(no_locks, tmp_path):
    with FileLock(tmp_path / "lock", "the work"):
        with pytest.raises(OutputError, match=r"the work is in use by another process; if there is none, remove "):
            FileLock(tmp_path / "lock", "the work")
        assert len(list(tmp_path.glob("lock.*"))) == 1
    FileLock(tmp_path / "lock", "the work").release()
    assert not list(tmp_path.glob("lock.*"))


def test_what_a_killed_process_claimed_is_free_again(no_locks, tmp_path):
    code = """
        import errno, fcntl, os, signal, sys
        def refuse(*_): raise OSError(errno.ENOSYS, "none")
        fcntl.flock = refuse
        from fct_infer.storage import FileLock
        FileLock(sys.argv[1], "the work")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_code(textwrap.dedent(code), tmp_path / "lock").returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("lock.*"))) == 1
    FileLock(tmp_path / "lock", "the work").release()
    assert not list(tmp_path.glob("lock.*"))


def test_another_machines_claim_is_believed(no_locks, tmp_path):
    (tmp_path / "lock.elsewhere.0a1b2c3d.17.12345.7f").touch()
    with pytest.raises(OutputError, match=r"remove .*lock\.elsewhere"):
        FileLock(tmp_path / "lock", "the work")


def test_an_upgrade_without_locks_resumes(no_locks, galleries, h):
    def stop(stage, rows, total):
        if stage == "transform":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(galleries / "old", h, galleries / "dest", settings=SETTINGS, progress=stop)
    assert upgrade_gallery(galleries / "old", h, galleries / "dest", settings=SETTINGS).resumed_rows == 30
    assert not (galleries / "dest.partial").exists()
