"""How a command ends where nobody reads what it says, and what a gallery that changes meanwhile leads to."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.bundles import core_bundle
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, open_source, upgrade_gallery
from fct_infer.errors import GalleryError, OutputError
from fct_infer.upgrade import checks, work
from fct_infer.upgrade.settings import Settings


@pytest.fixture
def command(tmp_path):
    write_gallery(tmp_path / "g", rows_per_shard=(30, 5), old_dim=12)
    bundle = core_bundle(linear_map(12, 8), tmp_path / "h")
    arguments = [tmp_path / "g", "--transformation", bundle, "-o", tmp_path / "new", "--index", "Flat"]
    return [sys.executable, "-m", "fct_infer.cli.upgrade_gallery", *map(str, arguments)]


def shell(command: list[str], redirection: str) -> subprocess.CompletedProcess:
    line = 'exec "$@" ' + redirection
    return subprocess.run(["bash", "-c", line, "bash", *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "</dev/null 2>&-"])
def test_a_stderr_that_nobody_reads_stops_nothing(command, tmp_path, redirection):
    done = shell(command, redirection)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "new" / "manifest.json").exists() and "published" in done.stdout


def test_a_stderr_that_goes_away_stops_nothing(command, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    os.close(write)
    assert done.returncode == 0 and (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize(("redirection", "exit_code"), [(">&-", 0), (">/dev/full", 5), ("| head -c 0", 0)])
def test_a_stdout_that_nobody_reads_is_no_bug(command, tmp_path, redirection, exit_code):
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" ' + redirection, "bash", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == exit_code
    assert (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize("shard", ["000000.npy", "000001.npy"])
def test_a_gallery_that_is_edited_meanwhile_is_named(tmp_path, shard):
    """Also a shard that was finished before: the report would vouch for rows that are not there any more."""
    write_gallery(tmp_path / "g", rows_per_shard=(30, 5), old_dim=12)
    path = tmp_path / "g" / "embeddings" / shard

    def edit(stage, rows, total):
        if stage == "verify":
            array = np.load(path)
            array[0] += 1
            np.save(path, array)

    settings = Settings(index="none", verify_rows=1)
    with pytest.raises(GalleryError, match=rf"{shard}: was changed while the gallery was upgraded"):
        upgrade_gallery(
            tmp_path / "g", Transformation(linear_map(12, 8)), tmp_path / "new", settings=settings, progress=edit
        )
    assert not (tmp_path / "new").exists()
    upgrade_gallery(tmp_path / "g", Transformation(linear_map(12, 8)), tmp_path / "new", settings=settings)


def test_a_shard_that_comes_meanwhile_is_named(tmp_path):
    """Else it would be missing from what is published, without a word."""
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=12)
    settings = Settings(index="none")

    def add(stage, rows, total):
        np.save(tmp_path / "g" / "embeddings" / "000001.npy", np.ones((3, 12), np.float32))

    arguments = tmp_path / "g", Transformation(linear_map(12, 8)), tmp_path / "new"
    with pytest.raises(GalleryError, match=r"000001\.npy: was added while the gallery was upgraded"):
        upgrade_gallery(*arguments, settings=settings, progress=add)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", ["another schema", "one more file"])
def test_parquet_files_that_change_meanwhile_are_named(tmp_path, change):
    folder = tmp_path / "g"
    folder.mkdir()

    def write(name, column="vector"):
        rows = np.random.default_rng(0).random((40, 12), np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 12)
        pq.write_table(pa.table({column: vectors, "n": np.arange(40)}), folder / name)

    for name in ("0.parquet", "1.parquet"):
        write(name)

    def edit(stage, rows, total):
        if change == "one more file":
            write("2.parquet")
        else:
            write("1.parquet", "other")

    arguments = open_source(folder), Transformation(linear_map(12, 8)), tmp_path / "new"
    with pytest.raises(GalleryError, match=r"1\.parquet.* (meanwhile|while)|2\.parquet: was added"):
        upgrade_gallery(*arguments, settings=Settings(index="Flat"), progress=edit)
    assert not (tmp_path / "new").exists()


def test_own_damage_found_while_verifying_keeps_the_work(tmp_path):
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=12)

    def damage(stage, rows, total):
        if stage == "verify":
            file = tmp_path / "new.partial" / "gallery" / "embeddings" / "000000.npy"
            file.write_bytes(file.read_bytes()[:-40])

    arguments = tmp_path / "g", Transformation(linear_map(12, 8)), tmp_path / "new"
    with pytest.raises(OutputError, match="unfinished work is damaged"):
        upgrade_gallery(*arguments, settings=Settings(index="none"), progress=damage)
    assert (tmp_path / "new.partial").exists()
    upgrade_gallery(*arguments, settings=Settings(index="none"))


def test_an_edit_that_fails_the_gate_is_named_as_an_edit(tmp_path):
    """Else the gate would blame the arithmetic, and the same command would fail for ever."""
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=12)
    path = tmp_path / "g" / "embeddings" / "000000.npy"

    def edit(stage, rows, total):
        if stage == "verify":
            np.save(path, -np.load(path))

    arguments = tmp_path / "g", Transformation(linear_map(12, 8)), tmp_path / "new"
    with pytest.raises(GalleryError, match="was changed while the gallery was upgraded"):
        upgrade_gallery(*arguments, settings=Settings(index="none"), progress=edit)
    upgrade_gallery(*arguments, settings=Settings(index="none"))


def killed_at(moment, monkeypatch, arguments, settings):
    """Upgrade, and stop before the verification or before the last rename."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((work.Staging, "publish") if moment == "rename" else (checks, "verify_cosine")), killed)
        with pytest.raises(KeyboardInterrupt):
            upgrade_gallery(*arguments, settings=settings)


@pytest.mark.parametrize("name", ["index.faiss", "index_infos.json", "upgrade_infos.json", "embeddings/000000.npy"])
def test_what_was_damaged_before_the_last_rename_is_not_published(tmp_path, monkeypatch, name):
    write_gallery(tmp_path / "g", rows_per_shard=(30, 5), old_dim=12)
    arguments = tmp_path / "g", Transformation(linear_map(12, 8)), tmp_path / "new"

    killed_at("rename", monkeypatch, arguments, Settings(index="Flat"))
    path = tmp_path / "new.partial" / "gallery" / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(OutputError, match=rf"{name}: is damaged; begin again with --restart"):
        upgrade_gallery(*arguments, settings=Settings(index="Flat"))
    assert not (tmp_path / "new").exists()
    upgrade_gallery(*arguments, settings=Settings(index="Flat"), restart=True)


@pytest.mark.parametrize("moment", ["index", "rename"])
def test_what_a_resumed_upgrade_compares_with_its_digests_is_progress(tmp_path, monkeypatch, moment):
    """Of a large gallery it takes minutes, in which nothing else is heard."""
    write_gallery(tmp_path / "g", rows_per_shard=(30, 5), old_dim=12)
    arguments = tmp_path / "g", Transformation(linear_map(12, 8)), tmp_path / "new"

    killed_at(moment, monkeypatch, arguments, Settings(index="none"))
    told = []
    upgrade_gallery(*arguments, settings=Settings(index="none"), progress=lambda *report: told.append(report))
    checked = [(rows, whole) for stage, rows, whole in told if stage == "check finished work"]
    assert checked[:2] == [(0, 35), (30, 35)] if moment == "index" else checked[0] == (0, 35)
    assert checked == sorted(checked) and all(rows <= whole for rows, whole in checked)
