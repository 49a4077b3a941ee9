"""Of two that want the same work, exactly one gets it, and a dead one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import textwrap

import pytest
from support.faults import FailNth

from fct_infer.errors import OutputError, ResourceError
from fct_infer.storage import FileLock, use_filesystem

HOLDER = textwrap.dedent("""
    import sys, time
    from fct_infer.storage import FileLock
    lock = FileLock(sys.argv[1], "the work")
    print("locked", flush=True)
    time.sleep(60)
""")

RACER = textwrap.dedent("""
    import sys, time
    from fct_infer.errors import OutputError
    from fct_infer.storage import FileLock
    journal = open(sys.argv[2], "ab", buffering=0)
    deadline = time.monotonic() + 0.7
    while time.monotonic() < deadline:
        try:
            with FileLock(sys.argv[1], "the work"):
                journal.write(b"+")
                time.sleep(0.0005)
                journal.write(b"-")
        except OutputError:
            continue
""")


def start_holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_another_process_is_refused_until_the_holder_dies(tmp_path):
    holder = start_holder(tmp_path / "lock")
    try:
        with pytest.raises(OutputError, match="the work is in use"):
            FileLock(tmp_path / "lock", "the work")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert (tmp_path / "lock").exists()  # left by the dead, and no obstacle
    with FileLock(tmp_path / "lock", "the work"):
        pass
    assert not (tmp_path / "lock").exists()


def test_the_same_process_is_refused_too(tmp_path):
    with FileLock(tmp_path / "lock", "the work"):
        with pytest.raises(OutputError):
            FileLock(tmp_path / "lock", "the work")
        assert (tmp_path / "lock").exists()
    with FileLock(tmp_path / "lock", "the work") as lock:
        lock.release()
        lock.release()


def test_a_lock_file_replaced_behind_our_back_is_not_ours_to_remove(tmp_path):
    lock = FileLock(tmp_path / "lock", "the work")
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").write_text("another's")
    lock.release()
    assert (tmp_path / "lock").read_text() == "another's"


def test_never_two_holders_at_once(tmp_path):
    """Processes take and release one lock as fast as they can; what they note while holding it must alternate."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path / "lock"), str(tmp_path / "journal")])
        for _ in range(4)
    ]
    assert [racer.wait(60) for racer in racers] == [0] * 4
    steps = (tmp_path / "journal").read_text()
    assert len(steps) > 20
    assert steps == "+-" * (len(steps) // 2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_lock_that_cannot_be_created_is_an_error_of_the_machine(tmp_path, number):
    with use_filesystem(FailNth("open", 0, number)), pytest.raises(ResourceError, match="lock"):
        FileLock(tmp_path / "lock", "the work")


def test_a_file_system_without_locks_is_not_reported_as_in_use(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FileLock(tmp_path / "lock", "the work"):
        assert len(list(tmp_path.iterdir())) == 2  # a claim beside the file that could not be locked
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_lock_that_fails_otherwise_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match="cannot be locked: Input/output error"):
        FileLock(tmp_path / "lock", "the work")
