"""Workers of a cluster of two nodes, killed and removed: the same bytes as one machine's, and nothing blocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.galleries import write_gallery
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.errors import GalleryError, ResourceError, UsageError
from fct_infer.upgrade.crew import Policy
from fct_infer.upgrade.settings import Settings

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from fct_infer.distributed.ray_executor import RayExecutor  # noqa: E402

H = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), "fp32", threads=1)
SETTINGS = Settings(index="IVF4,PQ2", block_rows=40)
EXECUTOR = RayExecutor(workers=2, policy=Policy(first_wait=0.1, patience=60))


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster.add_node(**node)
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def gallery(tmp_path):
    write_gallery(tmp_path / "g", (130, 41, 90, 60, 70, 80), old_dim=12, side_dim=6, ids="int", seed=1)
    return tmp_path / "g"


def published(dest):
    """All that an upgrade promises to be repeatable; the infos hold times."""
    told = ("upgrade_infos.json", "index_infos.json", "manifest.json")
    files = (path for path in sorted(dest.rglob("*")) if path.is_file() and path.name not in told)
    return {str(path.relative_to(dest)): path.read_bytes() for path in files}


def test_the_same_bytes_as_one_machine(tmp_path, gallery, cluster):
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=SETTINGS)
    seen = []
    report = upgrade_gallery(
        gallery, H, tmp_path / "ray", settings=SETTINGS, executor=EXECUTOR, progress=lambda *what: seen.append(what)
    )
    assert published(tmp_path / "ray") == published(tmp_path / "threads")
    assert ("transform", 471, 471) in seen
    assert report.timings["transform"] > 0
    assert report.index_placement["add"] == "cpu, in parts"  # of the workers: the driver makes no part of it here


def test_workers_killed_at_work_are_replaced(tmp_path, gallery, cluster):
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=SETTINGS)
    killed = []

    def kill(stage, done, _rows):
        """Kill a worker after its first part, and another later."""
        if stage == "transform" and len(killed) < 2:
            for pid in worker_pids() - set(killed):
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)
                break

    upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS, executor=EXECUTOR, progress=kill)
    assert len(killed) == 2
    assert published(tmp_path / "ray") == published(tmp_path / "threads")


def worker_pids() -> set[int]:
    """Processes of our actors: Ray gives them their class's name."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may be gone
            is_worker = (process / "cmdline").read_text().startswith("ray::_RemoteWorker")
            if is_worker and os.getpid() in ancestors(int(process.name)):
                found.add(int(process.name))
    return found


def ancestors(pid: int) -> set[int]:
    """Of a process: those of our own cluster have this one among them."""
    found = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        found.add(pid)
    return found


DYING_DRIVER = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from support.programs import paper_h
    from fct_infer import Transformation, upgrade_gallery
    from fct_infer.distributed.ray_executor import RayExecutor
    from fct_infer.upgrade.settings import Settings

    h = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), "fp32", threads=1)
    def die(stage, done, rows):
        if stage == "transform" and done > 200:
            os.kill(os.getpid(), signal.SIGKILL)
    upgrade_gallery(sys.argv[2], h, sys.argv[3], settings=Settings(index="IVF4,PQ2", block_rows=40),
                    executor=RayExecutor(sys.argv[4], workers=2), progress=die)
""")


def test_a_driver_that_is_killed_resumes(tmp_path, gallery, cluster):
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=SETTINGS)
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", DYING_DRIVER, tests, gallery, tmp_path / "ray", cluster.address]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    parts = tmp_path / "ray.partial" / "index_parts"
    records = [line.split(" ", 1)[1] for line in (parts.parent / "journal.jsonl").read_text().splitlines()]
    finished = [each["name"] for each in map(json.loads, records) if each["kind"] == "index part"]
    assert len(finished) >= 3
    before, after = {name: (parts / f"{name}.faiss").stat().st_ino for name in finished}, {}

    def look(stage, _done, _rows):
        if stage == "verify":
            after.update({name: (parts / f"{name}.faiss").stat().st_ino for name in finished})

    report = upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS, executor=EXECUTOR, progress=look)
    assert after == before  # nobody has built them again
    assert report.resumed_rows > 200
    assert published(tmp_path / "ray") == published(tmp_path / "threads")


def test_a_bad_row_ends_it_at_once_by_file_and_row(tmp_path, gallery, cluster):
    rows = np.load(gallery / "embeddings" / "000003.npy")
    rows[7, 3] = np.nan
    np.save(gallery / "embeddings" / "000003.npy", rows)
    with pytest.raises(GalleryError, match=r"000003\.npy: row 7 holds NaN"):
        upgrade_gallery(gallery, H, tmp_path / "ray", settings=Settings(index="none"), executor=EXECUTOR)
    assert not (tmp_path / "ray").exists()


def test_a_part_of_the_index_that_cannot_be_written_ends_it_by_name_and_the_rest_is_kept(tmp_path, gallery, cluster):
    def block(stage, _done, _rows):
        if stage == "train index":
            (tmp_path / "ray.partial" / "index_parts").write_bytes(b"where a folder should be")

    impatient = replace(EXECUTOR, policy=Policy(attempts=2, first_wait=0.1, patience=60))
    with pytest.raises(ResourceError, match=r"part 00000\d failed 2 times.*index_parts"):
        upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS, executor=impatient, progress=block)
    (tmp_path / "ray.partial" / "index_parts").unlink()
    upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS, executor=EXECUTOR)
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=SETTINGS)
    assert published(tmp_path / "ray") == published(tmp_path / "threads")


def test_a_node_that_is_removed_while_an_index_is_made_in_shards(tmp_path, gallery, cluster):
    settings = replace(SETTINGS, sharded_index=True)
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings)
    extra = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    removed = []

    def remove(stage, done, _rows):
        if stage == "transform" and not removed:
            removed.append(threading.Thread(target=cluster.remove_node, args=(extra, False)))
            removed[0].start()

    three = RayExecutor(workers=3, policy=Policy(first_wait=0.1, patience=60))
    start = time.monotonic()
    upgrade_gallery(gallery, H, tmp_path / "ray", settings=settings, executor=three, progress=remove)
    removed[0].join()
    assert published(tmp_path / "ray") == published(tmp_path / "threads")
    assert time.monotonic() - start < 60


class StartedRay:
    """Ray as far as connecting to it goes: a cluster of one machine with two CPUs."""

    def __init__(self):
        self.options, self.runs = {}, False

    def is_initialized(self):
        return self.runs

    def init(self, **options):
        self.options, self.runs = options, True

    def cluster_resources(self):
        return {"CPU": 2.0}

    def shutdown(self):
        self.runs = False


@pytest.mark.parametrize("wanted", [{"cpus": 3}, {"gpus": 1}])
def test_workers_that_this_machine_never_has_room_for(monkeypatch, wanted):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = StartedRay()
    with pytest.raises(UsageError, match="this machine has"):
        RayExecutor(**wanted)._connect(started)
    assert not started.runs
    assert RayExecutor(cpus=2)._connect(started)


def test_a_cluster_that_the_environment_names_may_grow_and_has_its_own_memory(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    started = StartedRay()
    assert RayExecutor(cpus=64)._connect(started)
    assert "object_store_memory" not in started.options


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": 0}, {"gpus": -1}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(UsageError, match="wanted at least"):
        RayExecutor(**wrong)
