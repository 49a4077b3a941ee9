"""Reading: every byte asked for, or an error that names the file."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.faults import FailNth, ShortTransfers, ShrinkingFile

from fct_infer.errors import GalleryError, ResourceError
from fct_infer.storage import ReadFile, read_error, use_filesystem

DATA = bytes(np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


def test_any_offset_from_many_threads(path):
    with ReadFile(path) as file, ThreadPoolExecutor(4) as pool:
        offsets = [(offset * 37) % 9_000 for offset in range(500)]
        pieces = list(pool.map(lambda offset: file.read(1000, offset), offsets))
    assert pieces == [DATA[offset : offset + 1000] for offset in offsets]


def test_short_reads_are_continued(path):
    buffer = np.empty((50, 20), np.float32)
    with use_filesystem(ShortTransfers(13)), ReadFile(path) as file:
        file.read_into(buffer, 100)
        file.read_into(np.empty((0, 20), np.float32), 100)
    assert buffer.tobytes() == DATA[100:4100]


def test_a_file_that_ends_too_early(path):
    with ReadFile(path) as file, pytest.raises(GalleryError, match=r"file: ends at byte 10000, 5 bytes short"):
        file.read(10, 9_995)
    with use_filesystem(ShrinkingFile(0)), ReadFile(path) as file, pytest.raises(GalleryError, match="truncated"):
        file.read(10)


def test_an_io_error_names_file_and_byte(path):
    with use_filesystem(FailNth("pread_into")), ReadFile(path) as file:
        with pytest.raises(ResourceError, match=r"file: read failed at byte 5: "):
            file.read(10, 5)
        assert file.read(10, 5) == DATA[5:15]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, GalleryError),
        (errno.ENOENT, GalleryError),
        (errno.EMFILE, ResourceError),
        (errno.ESTALE, ResourceError),
        (errno.ENOMEM, ResourceError),
        (errno.ETIMEDOUT, ResourceError),
    ],
)
def test_a_file_that_cannot_be_opened(path, number, kind):
    with use_filesystem(FailNth("open", 0, number)), pytest.raises(kind, match=r"file: cannot be read"):
        ReadFile(path)
    with pytest.raises(GalleryError, match="missing: cannot be read"):
        ReadFile(path.with_name("missing"))


def test_only_regular_files_are_read_and_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(GalleryError, match="is not a regular file"):
            ReadFile(path)


def test_no_descriptor_is_left_open(path, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with ReadFile(path) as file:
            file.close()
        with pytest.raises(GalleryError):
            ReadFile(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_below_a_folder_no_link_is_followed(tmp_path, path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(DATA[:5])
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "to_folder").symlink_to(tmp_path / "inner")
    with ReadFile("inner/file", below=tmp_path) as file:
        assert file.read(5) == DATA[:5] and file.path == tmp_path / "inner" / "file"
    for name in ("link", "to_folder/file"):
        with pytest.raises(GalleryError, match=f"{name}: lies behind a link"):
            ReadFile(name, below=tmp_path)
    with pytest.raises(GalleryError, match="missing: cannot be read: No such file"):
        ReadFile("missing", below=tmp_path)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EIO, "pyarrow's"), ResourceError),
        (OSError("Can't synchronously read data (errno = 5, error message = 'Input/output error')"), ResourceError),
        (RuntimeError("could not open a.faiss for reading: Too many open files"), ResourceError),
        (OSError("Unexpected end of stream"), GalleryError),
        (FileNotFoundError(errno.ENOENT, "gone"), GalleryError),
    ],
)
def test_what_libraries_pass_on_tells_whose_fault_it_was(error, kind):
    found = read_error("a message", error)
    assert type(found) is kind and str(found) == "a message"
