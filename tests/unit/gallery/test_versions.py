"""What a published gallery was is kept, listed, gone back to and dropped; damage and strangers are refused."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from support.faults import FailNth
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, upgrade_gallery
from fct_infer.errors import ArtifactError, OutputError, ResourceError, UsageError
from fct_infer.gallery import Gallery
from fct_infer.gallery.versions import keep_versions, list_versions, rollback, versions_bytes
from fct_infer.storage import FileLock, FileSystem, use_filesystem
from fct_infer.upgrade.estimate import estimate
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.settings import Settings

H = Transformation(linear_map(6, 4), precision="fp32")


class NoExchange(FileSystem):
    def exchange(self, first, second):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(second))


def publish(folder, seed, keep=1, rows=(7,)):
    """Upgrade a gallery made from a seed to ``dest``; return its first row."""
    source = folder / f"g{seed}"
    if not source.exists():
        write_gallery(source, rows_per_shard=rows, old_dim=6, side_dim=None, seed=seed)
    upgrade_gallery(source, H, folder / "dest", settings=Settings(index="none", keep=keep), force=True)
    return first_row(folder / "dest")


def first_row(dest):
    return Gallery.open(dest).read_rows(np.array([0]))[0][0].tolist()


@pytest.fixture(params=["exchange", "no exchange"])
def file_system(request):
    with use_filesystem(FileSystem() if request.param == "exchange" else NoExchange()):
        yield


def test_back_and_forth(tmp_path, file_system):
    rows = [publish(tmp_path, seed, keep=2) for seed in (1, 2, 3)]
    third, second, first = list_versions(tmp_path / "dest")
    assert [each.is_current for each in (third, second, first)] == [True, False, False]
    assert {path.name for path in (tmp_path / "dest.versions").iterdir()} == {first.version, second.version}
    assert [first_row(each.path) for each in (first, second, third)] == rows
    report = rollback(tmp_path / "dest")
    assert (report.version.version, report.replaced.version) == (second.version, third.version)
    assert first_row(tmp_path / "dest") == rows[1] and first_row(report.replaced.path) == rows[2]
    assert rollback(tmp_path / "dest").version.version == first.version
    with pytest.raises(UsageError, match=f"none older than {first.version} is kept.*{third.version}.*--to"):
        rollback(tmp_path / "dest")
    assert rollback(tmp_path / "dest", third.version[:6]).replaced.version == first.version
    assert first_row(tmp_path / "dest") == rows[2]
    assert {path.name for path in (tmp_path / "dest.versions").iterdir()} == {first.version, second.version}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "dest.versions", "g1", "g2", "g3"]


def test_only_as_many_as_asked_for_are_kept(tmp_path):
    for seed in (1, 2, 3):
        publish(tmp_path, seed)
    assert len(list_versions(tmp_path / "dest")) == 2
    publish(tmp_path, 4, keep=3)
    assert len(list_versions(tmp_path / "dest")) == 3
    assert versions_bytes(tmp_path / "dest") == sum(each.bytes for each in list_versions(tmp_path / "dest")[1:]) > 0
    publish(tmp_path, 5, keep=0)
    assert [each.is_current for each in list_versions(tmp_path / "dest")] == [True]
    assert not (tmp_path / "dest.versions").exists()


def test_what_was_in_service_stays_rather_than_what_was_taken_out_of_it(tmp_path):
    for seed in (1, 2):
        publish(tmp_path, seed)
    served = rollback(tmp_path / "dest").version
    publish(tmp_path, 3, keep=1)
    assert [each.version for each in list_versions(tmp_path / "dest")][1:] == [served.version]


def test_dropping(tmp_path):
    for seed in (1, 2, 3):
        publish(tmp_path, seed, keep=5)
    _, second, first = list_versions(tmp_path / "dest")
    assert [each.version for each in keep_versions(tmp_path / "dest", 1)] == [first.version]
    (second.path / "notes.txt").write_text("mine")
    assert keep_versions(tmp_path / "dest", 0) == []
    assert (second.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("manifest.json", lambda data: data.replace(b'"rows": 7', b'"rows": 8'), "altered after it was written"),
        ("embeddings/000000.npy", lambda data: data[:-1], "000000.npy has 239 bytes, manifest.json says 240"),
    ],
)
def test_a_damaged_version_is_refused(tmp_path, name, damage, reason):
    publish(tmp_path, 1)
    row = publish(tmp_path, 2)
    path = list_versions(tmp_path / "dest")[1].path / name
    written = path.stat().st_mtime_ns
    path.write_bytes(damage(path.read_bytes()))
    os.utime(path, ns=(written, written))
    with pytest.raises(ArtifactError, match=reason):
        rollback(tmp_path / "dest")
    assert first_row(tmp_path / "dest") == row


def test_a_damaged_or_missing_gallery_is_replaced_by_what_it_was(tmp_path):
    row = publish(tmp_path, 1)
    publish(tmp_path, 2)
    (tmp_path / "dest" / "manifest.json").write_text("{}")
    assert [bool(each.damage) for each in list_versions(tmp_path / "dest") if each.is_current] == [True]
    rollback(tmp_path / "dest")
    assert first_row(tmp_path / "dest") == row
    (tmp_path / "dest").rename(tmp_path / "gone")
    publish(tmp_path, 2, keep=5)
    (tmp_path / "dest").rename(tmp_path / "gone too")
    with pytest.raises(ArtifactError, match="damaged"):
        rollback(tmp_path / "dest")  # the one whose manifest is {} was kept as well


def test_strangers_are_left_alone(tmp_path):
    with pytest.raises(ArtifactError, match="is not a published gallery, and no version of it is kept"):
        rollback(tmp_path / "dest")
    publish(tmp_path, 1)
    with pytest.raises(UsageError, match="no version to go back to: none is kept"):
        rollback(tmp_path / "dest")
    publish(tmp_path, 2)
    with pytest.raises(UsageError, match="no version begins with 'abc'"):
        rollback(tmp_path / "dest", "abc")
    (tmp_path / "dest").rename(tmp_path / "moved")
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="not a gallery that fct-upgrade-gallery published"):
        rollback(tmp_path / "dest")
    (tmp_path / "dest" / "thesis.tex").rename(tmp_path / "thesis.tex")
    (tmp_path / "dest").rmdir()
    (tmp_path / "dest").symlink_to(tmp_path / "moved")
    with pytest.raises(OutputError, match="is a link"):
        rollback(tmp_path / "dest")


def test_a_place_that_is_taken_is_said_before_anything_changes(tmp_path):
    row = publish(tmp_path, 1)
    (tmp_path / "dest.versions").write_text("mine")
    with pytest.raises(OutputError, match=r"dest\.versions: is no folder"):
        publish(tmp_path, 2)
    assert first_row(tmp_path / "dest") == row


def test_what_cannot_be_read_now_is_not_taken_for_something_else(tmp_path):
    for seed in (1, 2):
        publish(tmp_path, seed)
    names = [each.version for each in list_versions(tmp_path / "dest")]
    for number in range(3):
        with use_filesystem(FailNth("pread_into", number)), pytest.raises(ResourceError):
            list_versions(tmp_path / "dest")
            rollback(tmp_path / "dest")
        assert [each.version for each in list_versions(tmp_path / "dest")] == names


def test_one_at_a_time(tmp_path):
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    with FileLock(tmp_path / "dest.partial" / "lock", "it"):
        for call in (lambda: rollback(tmp_path / "dest"), lambda: keep_versions(tmp_path / "dest", 0)):
            with pytest.raises(OutputError, match="in use by another process"):
                call()
        assert len(list_versions(tmp_path / "dest")) == 2
    rollback(tmp_path / "dest")


def test_unfinished_work_is_not_touched(tmp_path):
    def stop(stage, _done, _rows):
        if stage == "verify":
            raise KeyboardInterrupt

    for seed in (1, 2):
        row = publish(tmp_path, seed)
    arguments = (tmp_path / "g1", H, tmp_path / "dest")
    settings = Settings(index="none")
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(*arguments, settings=settings, force=True, progress=stop)
    rollback(tmp_path / "dest")
    assert upgrade_gallery(*arguments, settings=settings, force=True).resumed_rows == 7
    assert first_row(list_versions(tmp_path / "dest")[1].path) != row


def test_an_open_reader_keeps_what_it_opened(tmp_path):
    before = publish(tmp_path, 1)
    gallery = Gallery.open(tmp_path / "dest")
    row = np.empty((1, 4), np.float32)
    with gallery.open_part(gallery.parts()[0]) as reader:
        reader.read_into(1, 2, row, None)  # a file is opened when it is first read
        publish(tmp_path, 2)
        rollback(tmp_path / "dest")
        publish(tmp_path, 3, keep=0)
        reader.read_into(0, 1, row, None)
        assert row[0].tolist() == before


def test_a_kept_version_is_no_input_of_what_replaces_it(tmp_path):
    for seed in (1, 2):
        publish(tmp_path, seed)
    kept = list_versions(tmp_path / "dest")[1].path
    with pytest.raises(UsageError, match=r"dest\.versions: holds the gallery"):
        make_plan(kept, Transformation(linear_map(4, 4), precision="fp32"), tmp_path / "dest", Settings(index="none"))


def test_a_dry_run_says_what_stays(tmp_path, monkeypatch):
    for seed in (1, 2):
        publish(tmp_path, seed)
    plan = make_plan(tmp_path / "g1", H, tmp_path / "dest", Settings(index="none"))
    kept = json.loads(json.dumps(estimate(plan)))["promises"]["kept"]
    assert "stays beside it for rollback until --keep 0; older versions take" in kept
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 10}))
    with pytest.raises(ResourceError, match=r"needed; fct-gallery versions --keep 0 drops kept versions of"):
        plan.check_resources()
