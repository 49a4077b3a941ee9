"""A machine that dies at 63 %: kill -9 at many moments, run again, compare byte by byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.bundles import core_bundle
from support.children import run_code
from support.galleries import write_gallery
from support.programs import paper_h
from support.vector_files import lists

from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import parted
from fct_infer.errors import OutputError
from fct_infer.gallery.versions import rollback
from fct_infer.upgrade.settings import Settings

# Runs an upgrade that kills itself with SIGKILL at the n-th system call of one kind that changes a file.
DYING = textwrap.dedent("""
    import itertools, os, signal, sys
    from support.programs import paper_h
    from fct_infer import Transformation, upgrade_gallery
    from fct_infer.connectors import parted
    from fct_infer.storage import FileSystem, use_filesystem
    from fct_infer.upgrade.settings import Settings

    parted.PART_BYTES = 70 * 18 * 4
    class Dying(FileSystem):
        calls = itertools.count()  # by several threads
        def _count(self):
            if next(Dying.calls) == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
        def write(self, fd, data):
            self._count()
            return super().write(fd, data)
        def fsync(self, fd):
            self._count()
            super().fsync(fd)
        def rename(self, source, target):
            self._count()
            super().rename(source, target)
            self._count()
        def exchange(self, first, second):
            self._count()
            super().exchange(first, second)
            self._count()

    gallery, dest, _, index, *more = sys.argv[1:]
    FORMAT = "parquet" if dest.endswith(".parquet") else "npy"
    AT_ONCE = {"none": 2}.get(index, 1)
    program = paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1)
    with use_filesystem(Dying()):
        upgrade_gallery(gallery, Transformation(program), dest,
                        settings=Settings(index=index, block_rows=40, shards_at_once=AT_ONCE, format=FORMAT),
                        force=bool(more))
    print(next(Dying.calls))
""")
TESTS = Path(__file__).parent.parent


def result_of(dest: Path) -> dict[str, bytes]:
    """Everything an upgrade promises to be repeatable; the infos hold times."""
    names = ("embeddings/*", "ids/*.npy", "index.faiss")
    return {str(p.relative_to(dest)): p.read_bytes() for name in names for p in sorted(dest.glob(name))}


NEVER = 1_000_000


def die_at(call: int, gallery: Path, dest: Path, index: str, *more: str) -> int:
    """Upgrade in a process that dies at the given call; return the number of calls made if it finished instead."""
    done = run_code(DYING, gallery, dest, call, index, *more)
    # Of two shards at once both may make a folder: there are a few calls more or less, and the last may not come.
    is_finished = done.returncode == 0 and (call == NEVER or index == "none")
    assert is_finished or done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout) if call == NEVER else call


@pytest.mark.parametrize("index", ["Flat", "IVF4,PQ2", "none"])  # without one, two shards are in work at once
def test_killed_at_every_kind_of_moment(tmp_path, index):
    write_gallery(tmp_path / "g", rows_per_shard=(130, 41, 90), old_dim=12, side_dim=6, ids="int", seed=1)
    settings = Settings(index=index, block_rows=40, shards_at_once=2 if index == "none" else 1)
    h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1))
    calls = die_at(NEVER, tmp_path / "g", tmp_path / "calm", index)
    expected = result_of(tmp_path / "calm")
    for call in [*range(0, calls - 3, max(1, calls // 12)), calls - 2, calls - 1]:
        dest = tmp_path / f"killed{call}"
        die_at(call, tmp_path / "g", dest, index)
        if dest.exists() and not dest.with_name(dest.name + ".partial").exists():
            continue  # killed when all was done
        report = upgrade_gallery(tmp_path / "g", h, dest, settings=settings)  # also if only cleaning up was left to do
        assert report.dest == dest and report.rows == 261
        assert result_of(dest) == expected, f"killed at call {call} of {calls}"
        assert not dest.with_name(dest.name + ".partial").exists()


@pytest.mark.parametrize(("index", "suffix"), [("Flat", ""), ("none", ""), ("Flat", ".parquet"), ("none", ".parquet")])
def test_killed_while_reading_parquet(tmp_path, monkeypatch, index, suffix):
    """A part is some row groups, or a range of one; text ids lie in a column. DEST may be Parquet, too."""
    monkeypatch.setattr(parted, "PART_BYTES", 70 * 18 * 4)
    rows = np.random.default_rng(1).standard_normal((231, 18), np.float32)
    columns = {"old": lists(rows[:, :12]), "side": lists(rows[:, 12:]), "id": [f"item-{row}" for row in range(231)]}
    source = tmp_path / "a.parquet"
    with pa.parquet.ParquetWriter(source, pa.table(columns).schema) as writer:
        for start, stop in ((0, 30), (30, 60), (60, 200), (200, 231)):
            writer.write_table(pa.table(columns).slice(start, stop - start))
    settings = Settings(
        index=index,
        block_rows=40,
        shards_at_once=2 if index == "none" else 1,
        format="parquet" if suffix else "npy",
    )
    h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1))
    calm = tmp_path / f"calm{suffix}"
    calls = die_at(NEVER, source, calm, index)
    expected, resumed = result_of(calm), set()
    assert [name for name in expected if name.startswith("ids")] == [f"ids/00000{part}.npy" for part in range(4)]
    for call in range(3, calls - 3, max(1, calls // 9)):
        dest = tmp_path / f"killed{call}{suffix}"
        die_at(call, source, dest, index)
        resumed.add(upgrade_gallery(source, h, dest, settings=settings).resumed_rows)
        assert result_of(dest) == expected, f"killed at call {call} of {calls}"
    assert len(resumed) >= 3


def test_killed_while_replacing(tmp_path):
    """Readers see the old gallery or the new one, whole, at every moment of a --force; only the old one is kept."""
    h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1))
    settings = Settings(index="Flat", block_rows=40)
    for name, seed in (("g", 1), ("before", 2), ("after", 3)):
        write_gallery(tmp_path / name, rows_per_shard=(30,), old_dim=12, side_dim=6, seed=seed)
    upgrade_gallery(tmp_path / "before", h, tmp_path / "dest", settings=settings)
    old = result_of(tmp_path / "dest")
    calls = die_at(NEVER, tmp_path / "g", tmp_path / "dest", "Flat", "force")
    new = result_of(tmp_path / "dest")
    assert old != new
    seen = set()
    for call in range(calls - 18, calls, 2):  # the exchange, and keeping what was replaced
        for name in ("before", "after"):
            upgrade_gallery(tmp_path / name, h, tmp_path / "dest", settings=settings, force=True, restart=True)
        rollback(tmp_path / "dest")  # so that another version than the one replaced is the last that was published
        die_at(call, tmp_path / "g", tmp_path / "dest", "Flat", "force")
        found = result_of(tmp_path / "dest")
        assert found in (old, new)
        seen.add("old" if found == old else "new")
        if found == old or (tmp_path / "dest.partial").exists():
            upgrade_gallery(tmp_path / "g", h, tmp_path / "dest", settings=settings, force=True)
        assert result_of(tmp_path / "dest") == new
        assert [result_of(kept) for kept in (tmp_path / "dest.versions").iterdir()] == [old]
    assert seen == {"old", "new"}


# An upgrade that takes its time wherever something becomes durable, without computing anything meanwhile.
SLOWLY = textwrap.dedent("""
    import sys, time
    from fct_infer.storage import FileSystem, use_filesystem

    class Slow(FileSystem):
        def fsync(self, fd):
            time.sleep(0.1)
            super().fsync(fd)

    def run(work):
        with use_filesystem(Slow()):
            work()
""")


@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_asked_to_stop(tmp_path, sent, exit_code):
    program = paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1)
    core_bundle(program, tmp_path / "h")
    write_gallery(tmp_path / "g", rows_per_shard=(30,) * 30, old_dim=12, side_dim=6, seed=1)
    arguments = [str(tmp_path / "g"), "--transformation", str(tmp_path / "h"), "-o", str(tmp_path / "new")]
    heard = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)"  # nohup has it ignored, and so would we
    code = f"{heard}\n{SLOWLY}\nfrom fct_infer.cli.upgrade_gallery import main\nrun(main)"
    command = [sys.executable, "-c", code, *arguments, "--index", "Flat"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "new.partial" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.exists() and '"shard"' in journal.read_text()):
        time.sleep(0.005)
    os.kill(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "new").exists()
    report = upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=Settings(index="Flat"))
    assert report.resumed_rows >= 30


def test_of_two_upgraders_one_wins(tmp_path):
    write_gallery(tmp_path / "g", rows_per_shard=(30,) * 10, old_dim=12, side_dim=6, seed=1)
    code = SLOWLY + textwrap.dedent("""
        sys.path.insert(0, sys.argv[1])
        from support.programs import paper_h
        from fct_infer import Transformation, upgrade_gallery
        from fct_infer.errors import OutputError
        h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1))
        try:
            run(lambda: upgrade_gallery(sys.argv[2], h, sys.argv[3]))
            print("won")
        except OutputError as error:
            print("lost", error)
    """)
    command = [sys.executable, "-c", code, str(TESTS), str(tmp_path / "g"), str(tmp_path / "new")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(racer.communicate(timeout=120)[0].split()[0] for racer in racers)
    assert said == ["lost", "lost", "won"]
    assert (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize("change", ["gallery", "transformation", "settings"])
def test_unfinished_work_of_something_else_is_not_resumed(tmp_path, change):
    write_gallery(tmp_path / "g", rows_per_shard=(100, 41, 90), old_dim=12, side_dim=6, ids="int", seed=1)
    die_at(30, tmp_path / "g", tmp_path / "new", "Flat")
    program, settings = paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), Settings(index="Flat")
    if change == "gallery":
        write_gallery(tmp_path / "other", rows_per_shard=(100, 41, 90), old_dim=12, side_dim=6, ids="int", seed=2)
        for path in (tmp_path / "g" / "embeddings").iterdir():
            path.write_bytes((tmp_path / "other" / "embeddings" / path.name).read_bytes())
    elif change == "transformation":
        program = paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=2)
    else:
        settings = Settings(index="IVF4,Flat")
    with pytest.raises(OutputError, match=change):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=settings)
    upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=settings, restart=True)
    assert (tmp_path / "new" / "manifest.json").exists()
