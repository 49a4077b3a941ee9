from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.bundles import NOT_MEASURED, core_bundle, core_manifest
from support.programs import linear_map, plain_mlp

from fct_infer.artifacts.bundle import open_bundle, write_bundle
from fct_infer.artifacts.loading import load_program
from fct_infer.artifacts.manifest import BundleFile
from fct_infer.errors import ArtifactError, OutputError, ResourceError
from fct_infer.storage import FileLock, FileSystem, use_filesystem, write_bytes

OLD, NEW = plain_mlp(7, 3, 5, hidden=(4,)), linear_map(6, 4)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_holds_what_was_written_and_nothing_else(tmp_path):
    bundle = open_bundle(core_bundle(OLD, tmp_path / "deep" / "h"))
    assert tree(tmp_path) == ["deep", "deep/h", "deep/h/manifest.json", "deep/h/transformation.safetensors"]
    assert bundle.path / bundle.file("core").name == tmp_path / "deep/h/transformation.safetensors"
    assert bundle.has("core") and not bundle.has("onnx")
    with pytest.raises(ArtifactError, match="has no file for 'tensorrt', only for core"):
        bundle.file("tensorrt")


def test_the_most_exact_file_is_taken_unless_another_is_asked_for(tmp_path):
    def fill(folder: Path):
        written = {name: write_bytes(folder / name, name.encode()) for name in ("fp16", "fp32", "int8")}
        files = [BundleFile(name, "onnx", name, made.size, made.sha256, NOT_MEASURED) for name, made in written.items()]
        return core_manifest(OLD, *files)

    write_bundle(tmp_path / "h", fill)
    bundle = open_bundle(tmp_path / "h")
    assert bundle.file("onnx").name == "fp32"
    assert bundle.file("onnx", "int8").name == "int8"
    with pytest.raises(ArtifactError, match="has 'onnx' in fp16, fp32, int8, not in bf16"):
        bundle.file("onnx", "bf16")


def test_an_existing_bundle_is_kept_unless_forced(tmp_path):
    core_bundle(OLD, tmp_path / "h")
    with pytest.raises(OutputError, match="exists already"):
        core_bundle(NEW, tmp_path / "h")
    assert load_program(tmp_path / "h").digest == OLD.digest
    core_bundle(NEW, tmp_path / "h", force=True)
    assert load_program(tmp_path / "h").digest == NEW.digest
    assert tree(tmp_path) == ["h", "h/manifest.json", "h/transformation.safetensors"]


def of_another_kind(path):
    path.mkdir()
    (path / "manifest.json").write_text('{"kind": "gallery", "files": {}}')


def with_a_file_of_the_user(path):
    core_bundle(OLD, path)
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("x"), "cannot be read as a folder"),
        (of_another_kind, "it is not a bundle, so it is not replaced"),
        (with_a_file_of_the_user, "it holds notes.txt beside a bundle"),
        (lambda path: path.symlink_to(path.parent), "is a link"),
    ],
)
def test_force_replaces_nothing_but_bundles(tmp_path, make, reason):
    make(tmp_path / "h")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=reason):
        core_bundle(NEW, tmp_path / "h", force=True)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_no_loss(tmp_path):
    (tmp_path / "h").mkdir()
    core_bundle(NEW, tmp_path / "h")
    assert load_program(tmp_path / "h").digest == NEW.digest


def test_force_does_not_follow_a_symlink(tmp_path):
    core_bundle(OLD, tmp_path / "h")
    (tmp_path / "link").symlink_to(tmp_path / "h")
    with pytest.raises(OutputError, match="is a link"):
        core_bundle(NEW, tmp_path / "link", force=True)


def test_what_fill_raises_is_passed_on_and_nothing_stays(tmp_path):
    def fill(folder: Path):
        write_bytes(folder / "half", b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "h", fill)
    assert tree(tmp_path) == []


def test_leftovers_of_a_killed_run_do_not_block(tmp_path):
    (tmp_path / "h.partial").mkdir()
    (tmp_path / "h.partial" / "half").write_text("x")
    core_bundle(NEW, tmp_path / "h")
    assert tree(tmp_path) == ["h", "h/manifest.json", "h/transformation.safetensors"]


def test_of_two_writers_one_is_told(tmp_path):
    with FileLock(tmp_path / "h.partial" / "lock", "h"), pytest.raises(OutputError, match="in use by another process"):
        core_bundle(NEW, tmp_path / "h")
    core_bundle(NEW, tmp_path / "h")


class FullDisk(FileSystem):
    """Fails at the n-th call that changes the disk."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def _count(self) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, fd, data):
        self._count()
        return super().write(fd, data)

    def fsync(self, fd):
        self._count()
        super().fsync(fd)

    def exchange(self, first, second):
        self._count()
        super().exchange(first, second)

    def rename(self, source, target):
        self._count()
        super().rename(source, target)


def test_a_full_disk_at_any_moment_leaves_the_old_bundle_or_the_new_one(tmp_path):
    core_bundle(OLD, tmp_path / "h")
    failures = 0
    while True:
        disk = FullDisk(failures + 1)
        try:
            with use_filesystem(disk):
                core_bundle(NEW, tmp_path / "h", force=True)
            break
        except ResourceError as error:
            assert "the disk is full" in str(error)
            failures += 1
        assert load_program(tmp_path / "h").digest in (OLD.digest, NEW.digest)
        assert not (tmp_path / "h.partial").exists()
    assert failures >= 10
    assert load_program(tmp_path / "h").digest == NEW.digest


@pytest.mark.parametrize("name", ["manifest.json", "transformation.safetensors"])
def test_a_flipped_bit_anywhere_is_found_and_the_file_named(tmp_path, name):
    path = core_bundle(OLD, tmp_path / "h") / name
    good = path.read_bytes()
    for position in range(0, len(good), 3):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << position % 8]) + good[position + 1 :])
        with pytest.raises(ArtifactError, match=name):
            load_program(tmp_path / "h")


@pytest.mark.parametrize("name", ["manifest.json", "transformation.safetensors"])
def test_a_truncated_or_missing_file_is_named(tmp_path, name):
    path = core_bundle(OLD, tmp_path / "h") / name
    for size in (path.stat().st_size - 2, 7, 0):  # the last byte of the manifest is a line feed
        os.truncate(path, size)
        with pytest.raises(ArtifactError, match=name):
            load_program(tmp_path / "h")
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name}: no such file"):
        load_program(tmp_path / "h")


def test_a_symlink_in_the_place_of_a_file_is_refused(tmp_path):
    path = core_bundle(OLD, tmp_path / "h") / "transformation.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="not a regular file"):
        load_program(tmp_path / "h")


def test_no_folder_is_no_bundle(tmp_path):
    with pytest.raises(ArtifactError, match="not a bundle"):
        open_bundle(tmp_path / "h")
