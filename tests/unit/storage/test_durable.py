"""A file is whole or not there, an error is typed and names the file, and nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.faults import CHANGES, FailNth, FaultyFileSystem, FullDisk, ShortTransfers

from fct_infer.errors import OutputError, ResourceError
from fct_infer.storage import (
    DurableWriter,
    append_line,
    copy_file,
    publish_directory,
    remove_tree,
    sha256_of_file,
    truncate_file,
    use_filesystem,
    write_bytes,
    write_json,
)

TESTS = Path(__file__).parents[2]
OLD, NEW = b"old" * 1000, bytes(range(256)) * 40


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_in_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    prelude = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("data", [b"", b"x", NEW, np.zeros((0, 4), np.float32), np.arange(12.0).reshape(3, 4)])
def test_what_was_written_is_there_and_its_digest_is_right(tmp_path, data):
    written = write_bytes(tmp_path / "a" / "b" / "file", data)
    stored = (tmp_path / "a" / "b" / "file").read_bytes()
    assert stored == bytes(memoryview(data).tobytes())
    assert (written.size, written.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert sha256_of_file(tmp_path / "a" / "b" / "file") == written.sha256
    assert names(tmp_path / "a" / "b") == ["file"]


@settings(max_examples=40, deadline=None)
@given(limit=st.integers(1, 5000), pieces=st.lists(st.binary(max_size=3000), max_size=5))
def test_short_reads_and_writes_change_nothing(tmp_path_factory, limit, pieces):
    folder = tmp_path_factory.mktemp("short")
    with use_filesystem(ShortTransfers(limit)):
        with DurableWriter(folder / "file") as writer:
            for piece in pieces:
                assert writer.write(piece) == len(piece)
        digest = sha256_of_file(folder / "file")
        copied = copy_file(folder / "file", folder / "copy")
    whole = b"".join(pieces)
    assert (folder / "file").read_bytes() == (folder / "copy").read_bytes() == whole
    assert digest == copied.sha256 == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("room", [0, 1, 4096, len(NEW) - 1])
def test_full_disk_leaves_the_old_file_and_no_litter(tmp_path, room):
    write_bytes(tmp_path / "file", OLD)
    with use_filesystem(FullDisk(room)), pytest.raises(ResourceError, match=r"file: .*the disk is full"):
        write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == OLD
    assert names(tmp_path) == ["file"]
    write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


@pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "rename"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT])
def test_any_failing_call_leaves_the_old_file_and_no_litter(tmp_path, call, number):
    write_bytes(tmp_path / "file", OLD)
    with use_filesystem(FailNth(call, 0, number)), pytest.raises(ResourceError, match=r"file: cannot be written"):
        write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_a_failing_fsync_of_the_folder_is_an_error(tmp_path):
    with use_filesystem(FailNth("fsync", 1)), pytest.raises(ResourceError, match="file"):
        write_bytes(tmp_path / "file", NEW)


def test_a_system_that_writes_nothing_is_an_error_not_an_endless_loop(tmp_path):
    class Stuck(FaultyFileSystem):
        def write(self, fd, data):
            return 0

    with use_filesystem(Stuck()), pytest.raises(ResourceError, match="wrote nothing"):
        write_bytes(tmp_path / "file", NEW)
    assert names(tmp_path) == []


def test_an_error_of_the_caller_passes_unchanged_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), DurableWriter(tmp_path / "file") as writer:
        writer.write(NEW)
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_an_error_while_cleaning_up_does_not_hide_the_first(tmp_path):
    with use_filesystem(FailNth("close")), pytest.raises(ZeroDivisionError), DurableWriter(tmp_path / "file"):
        raise ZeroDivisionError


def test_an_abort_after_the_end_removes_no_other_writers_work(tmp_path):
    first = DurableWriter(tmp_path / "file")
    first.abort()
    second = DurableWriter(tmp_path / "file")
    second.write(NEW)
    first.abort()
    second.commit()
    second.abort()
    assert (tmp_path / "file").read_bytes() == NEW


def test_durable_before_visible(tmp_path):
    """The data is synced before the rename, the folder after it; a new folder's own name is synced too."""
    order: list[str] = []

    class Recording(FaultyFileSystem):
        def after(self, call, path):
            if call in CHANGES:
                order.append(call)

    (tmp_path / "folder").mkdir()
    with use_filesystem(Recording()):
        write_bytes(tmp_path / "folder" / "file", b"data")
        assert [call for call in order if call != "mkdir"] == ["write", "fsync", "rename", "fsync"]
        order.clear()
        write_bytes(tmp_path / "new" / "deep" / "file", b"data")
        assert [call for call in order if call != "mkdir"] == ["fsync", "fsync", "write", "fsync", "rename", "fsync"]


@pytest.mark.parametrize("moment", range(2, 11))  # before and after write, fsync, rename and the folder's fsync; none
def test_killed_at_any_moment_the_file_is_the_old_or_the_new_one(tmp_path, moment):
    write_bytes(tmp_path / "file", OLD)
    code = """
        from support.faults import KillAt
        from fct_infer.storage import use_filesystem, write_bytes
        with use_filesystem(KillAt(int(sys.argv[2]))):
            write_bytes(sys.argv[1], bytes(range(256)) * 40)
    """
    done = run_in_child(code, tmp_path / "file", moment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    stored = (tmp_path / "file").read_bytes()
    assert (done.returncode == 0) == (moment == 10)
    assert stored == (OLD if moment < 7 else NEW)
    write_bytes(tmp_path / "file", b"retry")
    assert names(tmp_path) == ["file"]


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": ["ü", None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"b": 1, "a": ["ü", None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert names(tmp_path) == ["a.json"]


def test_lines_are_appended_whole(tmp_path):
    with use_filesystem(ShortTransfers(3)):
        for number in range(5):
            append_line(tmp_path / "journal", f"line {number}")
    assert (tmp_path / "journal").read_text() == "".join(f"line {number}\n" for number in range(5))


@pytest.mark.parametrize("fault", [FullDisk(4), FailNth("fsync"), FailNth("write", 0)])
def test_a_line_that_fails_leaves_no_part_of_itself(tmp_path, fault):
    append_line(tmp_path / "journal", "first")
    with use_filesystem(fault), pytest.raises(ResourceError, match="journal"):
        append_line(tmp_path / "journal", "second")
    append_line(tmp_path / "journal", "third")
    assert (tmp_path / "journal").read_text() == "first\nthird\n"


def test_truncate(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    truncate_file(tmp_path / "file", 4)
    assert (tmp_path / "file").read_bytes() == b"0123"
    with pytest.raises(ResourceError, match="missing"):
        truncate_file(tmp_path / "missing", 4)


def make_folder(path: Path, content: str) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").write_text(content)
    return path


def test_publish_by_one_rename(tmp_path):
    publish_directory(make_folder(tmp_path / "work", "new"), tmp_path / "dest")
    assert names(tmp_path) == ["dest"]
    assert (tmp_path / "dest" / "sub" / "file").read_text() == "new"


def test_publish_takes_an_empty_folder_and_refuses_any_other(tmp_path):
    (tmp_path / "empty").mkdir()
    publish_directory(make_folder(tmp_path / "work", "new"), tmp_path / "empty")
    make_folder(tmp_path / "work", "newer")
    with pytest.raises(OutputError, match="exists already"):
        publish_directory(tmp_path / "work", tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        publish_directory(tmp_path / "work", tmp_path / "file")
    assert (tmp_path / "empty" / "sub" / "file").read_text() == "new"
    assert (tmp_path / "file").read_text() == "mine"


def test_publish_with_replace_exchanges_the_folders(tmp_path):
    make_folder(tmp_path / "dest", "old")
    publish_directory(make_folder(tmp_path / "work", "new"), tmp_path / "dest", replace=True)
    assert names(tmp_path) == ["dest"]
    assert (tmp_path / "dest" / "sub" / "file").read_text() == "new"


@pytest.mark.parametrize("replace", [False, True])
def test_a_publishing_that_fails_changes_nothing(tmp_path, replace):
    if replace:
        make_folder(tmp_path / "dest", "old")
    make_folder(tmp_path / "work", "new")
    call = "exchange" if replace else "rename"
    with use_filesystem(FailNth(call)), pytest.raises(ResourceError, match="dest"):
        publish_directory(tmp_path / "work", tmp_path / "dest", replace=replace)
    assert (tmp_path / "work" / "sub" / "file").read_text() == "new"
    assert (tmp_path / "dest").exists() == replace
    if replace:
        assert (tmp_path / "dest" / "sub" / "file").read_text() == "old"


def test_remove_tree(tmp_path):
    make_folder(tmp_path / "target", "kept")
    folder = make_folder(tmp_path / "folder", "x")
    (folder / "link").symlink_to(tmp_path / "target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "link", "file", "missing"):
        remove_tree(tmp_path / name)
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target" / "sub" / "file").read_text() == "kept"
