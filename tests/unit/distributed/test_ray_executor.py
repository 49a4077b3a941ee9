"""Workers of a cluster of two nodes, killed and removed: the same bytes as one machine's, and nothing blocks."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support import embeddings, faults
from support.elsewhere import Elsewhere
from support.galleries import write_gallery
from support.programs import paper_h
from support.servers import s3_bucket

from fct_infer import Transformation, evaluate, upgrade_gallery
from fct_infer.cli.evaluate import command as evaluate_command
from fct_infer.cli.gallery import command as gallery_command
from fct_infer.errors import GalleryError, ResourceError, UnsupportedError
from fct_infer.gallery import Gallery, Part
from fct_infer.gallery.url_place import UrlPlace
from fct_infer.index.verify import verify_gallery
from fct_infer.storage import location, use_filesystem
from fct_infer.storage.objects import read_object
from fct_infer.upgrade.crew import Policy
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.schedule import run_parts
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.worker import WorkOrder

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from fct_infer.distributed import ray_executor  # noqa: E402
from fct_infer.distributed.actors import _RemoteWorker  # noqa: E402
from fct_infer.distributed.ray_executor import RayExecutor  # noqa: E402

H = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), "fp32", threads=1)
SETTINGS = Settings(index="IVF4,PQ2", block_rows=40)
EXECUTOR = RayExecutor(workers=2, policy=Policy(first_wait=0.1, patience=60))


@pytest.fixture(scope="module")
def bucket():
    """An S3 server; what is started meanwhile knows its address."""
    with s3_bucket() as s3:
        yield s3


@pytest.fixture(scope="module")
def two_nodes(bucket):
    cluster = Cluster()
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster.add_node(**node)
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def cluster(two_nodes):
    """Two nodes with nothing at work: Ray ends actors in its own time, and a test may look for those of its own."""
    assert is_soon(lambda: not worker_pids())
    return two_nodes


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
    seen, at_work = [], []

    def look(*what):
        if what[0] == "verify" and not at_work:
            at_work.append(is_soon(lambda: not worker_pids()))
        seen.append(what)

    report = upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS, executor=EXECUTOR, progress=look)
    assert at_work == [True]  # when all parts are done, the cluster is free
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
    """Processes of our actors: Ray gives them their class's name, and at work that of the stage."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may be gone
            is_worker = re.match(r"ray::(_RemoteWorker|\w+ parts)", (process / "cmdline").read_text())
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


def is_soon(condition):
    """Whether it is so within half a minute."""
    end = time.monotonic() + 30
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
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
    assert len(finished) >= 2  # over 200 rows, of which no part has more than 130
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


class Fails(faults.FaultyFileSystem):
    """The first so many calls of some kinds fail, in each process anew."""

    def __init__(self, times, **numbers):
        super().__init__()
        self.numbers, self.left = numbers, dict.fromkeys(numbers, times)

    def before(self, call, path):
        if self.left.get(call, 0) > 0:
            self.left[call] -= 1
            raise OSError(self.numbers[call], os.strerror(self.numbers[call]))


class FailingFiles:
    """A job on workers whose file system fails."""

    def __init__(self, job, filesystem):
        self.job, self.filesystem = job, filesystem

    @contextmanager
    def open(self):
        with use_filesystem(self.filesystem), self.job.open() as do:
            yield do


class FailingStore:
    """A job on workers whose store refuses the first so many objects, in each process anew."""

    def __init__(self, job, times):
        self.job, self.left = job, times

    def open(self):
        from s3fs import S3FileSystem

        ask = S3FileSystem._call_s3

        async def refuse(filesystem, method, *arguments, **options):
            if method == "put_object" and self.left > 0:
                self.left -= 1
                raise PermissionError(errno.EACCES, "Access Denied")  # what fails otherwise s3fs and we repeat
            return await ask(filesystem, method, *arguments, **options)

        S3FileSystem._call_s3 = refuse
        return self.job.open()


@dataclass
class SaysWho:
    """A job whose parts come to the process that does them; a part that is called by what is wrong does that."""

    known: Any = None

    def open(self):
        return nullcontext(self.do)

    def do(self, part):
        if part.name == "fails":
            raise GalleryError("fails")
        if part.name == "hangs":
            time.sleep(1000)
        return os.getpid()


@dataclass
class Holds:
    """A job that has a file in a folder as long as a worker holds it open."""

    folder: Path

    @contextmanager
    def open(self):
        self.file.touch(exist_ok=False)
        yield self.do
        self.file.unlink()

    def do(self, part):
        if part.name == "fails":
            raise GalleryError("fails")
        return self.file.name

    @property
    def file(self):
        return self.folder / str(os.getpid())


class DiesOnce:
    """A job whose first part takes its worker along."""

    def __init__(self, job, mark):
        self.job, self.mark = job, mark

    @contextmanager
    def open(self):
        with self.job.open() as do:

            def die_or_do(part):
                with suppress(FileExistsError):
                    os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
                return do(part)

            yield die_or_do


@dataclass(frozen=True)
class Unlucky(RayExecutor):
    """Workers whose jobs are wrapped in another one."""

    job: Any = None
    how: tuple[Any, ...] = ()

    def _do(self, job, parts, record):
        return super()._do(self.job(job, *self.how), parts, record)


def who(executor, *names):
    """Return which process did each part."""
    found = {}
    executor.each(SaysWho(), [Part(name, 1, 0) for name in names], lambda part, pid: found.update({part.name: pid}))
    return found


def test_jobs_of_a_session_are_done_by_the_same_workers(cluster):
    one = replace(EXECUTOR, workers=1)
    with one.session():
        with one.session():
            first = who(one, "a", "b")
        assert set(who(one, "c").values()) == set(first.values()) == worker_pids()
        os.kill(first["a"], signal.SIGKILL)  # between two jobs
        other = who(one, "d")["d"]
        assert other != first["a"] and is_soon(lambda: worker_pids() == {other})
    assert is_soon(lambda: not worker_pids())
    assert who(one, "e")["e"] not in (other, first["a"])
    assert is_soon(lambda: not worker_pids())


def test_what_is_at_work_when_a_job_ends_is_not_there_for_the_next(cluster):
    with EXECUTOR.session():
        with pytest.raises(GalleryError, match="fails"):
            who(EXECUTOR, "hangs", "fails")
        assert is_soon(lambda: len(worker_pids()) == 1)
        assert set(who(EXECUTOR, "a", "b").values()) <= worker_pids()  # and nobody waits for the one that hangs
    assert is_soon(lambda: not worker_pids())


def test_a_job_that_workers_cannot_read_is_said_in_a_line(cluster):
    assert not Elsewhere.__module__.startswith("test")  # it is not sent along, and workers cannot import it
    with pytest.raises(UnsupportedError, match=r"worker \d+ cannot begin: .*No module named 'support'$"):
        EXECUTOR.each(SaysWho(Elsewhere()), [Part("a", 1, 0)], lambda *_: pytest.fail("was done"))


def test_a_worker_forgets_one_job_before_it_opens_the_next():
    held, worker = set(), _RemoteWorker()

    class IsLarge:
        def open(self):
            assert not held  # two galleries may be too much
            held.add(1)
            weakref.finalize(do := lambda part: None, held.clear)
            return nullcontext(do)

    for _ in range(2):
        assert isinstance(worker.open(IsLarge()), str)


def test_a_job_is_closed_where_it_ends_and_its_workers_stay(tmp_path, cluster):
    with EXECUTOR.session():
        for _ in range(2):
            held, parts = [], [Part(name, 1, 0) for name in "abcd"]
            EXECUTOR.each(Holds(tmp_path), parts, lambda _, name, held=held: held.append((tmp_path / name).exists()))
            assert held == [True] * 4 and not list(tmp_path.iterdir())
        with pytest.raises(GalleryError, match="fails"):
            EXECUTOR.each(Holds(tmp_path), [Part("fails", 1, 0)], lambda *_: None)
        assert not list(tmp_path.iterdir())
        assert is_soon(lambda: len(worker_pids()) == 2)  # one may have done all before the other was there


def test_a_worker_closes_its_job_once_and_an_upgrade_lets_go_of_its_gallery(tmp_path, gallery, monkeypatch):
    worker, closed, held = _RemoteWorker(), [], Holds(tmp_path)
    monkeypatch.setattr(Gallery, "close", lambda opened: closed.append(opened.path))
    with make_plan(gallery, H, tmp_path / "dest", SETTINGS) as plan:
        order = replace(WorkOrder.of(plan, 1), index=None)
    closed.clear()
    assert isinstance(worker.open(order), str) and not closed
    worker.close()
    worker.close()
    assert closed == [gallery]
    assert isinstance(worker.open(held), str) and held.file.exists()
    assert isinstance(worker.open(SaysWho()), str) and not held.file.exists()


@pytest.fixture(scope="module", autouse=True)
def by_value():
    """Workers cannot import tests."""
    from ray import cloudpickle

    modules = (sys.modules[__name__], faults)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def schedules(monkeypatch):
    """What came of each job, in the end."""
    ended = []
    monkeypatch.setattr(ray_executor, "run_parts", lambda *given: ended.append(run_parts(*given)))
    return ended


def unlucky(job, *how, attempts=8):
    policy = Policy(attempts=attempts, first_wait=0.1, patience=60)
    return Unlucky(workers=2, policy=policy, job=job, how=how)


def test_what_a_worker_could_not_write_is_done_again(tmp_path, gallery, cluster, schedules):
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=SETTINGS)
    executor = unlucky(FailingFiles, Fails(1, write=errno.ENOSPC, fsync=errno.EIO, rename=errno.ESTALE))
    upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS, executor=executor)
    assert schedules[0].counts.failures >= 3
    assert published(tmp_path / "ray") == published(tmp_path / "threads")


def test_a_disk_that_stays_full_ends_it_and_what_is_done_is_kept(tmp_path, gallery, cluster):
    full = unlucky(FailingFiles, Fails(10**9, write=errno.ENOSPC), attempts=2)
    with pytest.raises(ResourceError, match=r"part 00000\d failed 2 times.*worker \d.*the disk is full.*is kept"):
        upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS, executor=full)
    assert not (tmp_path / "ray").exists()
    upgrade_gallery(gallery, H, tmp_path / "ray", settings=SETTINGS)  # by threads
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=SETTINGS)
    assert published(tmp_path / "ray") == published(tmp_path / "threads")


def test_objects_that_a_store_refused_for_a_while(tmp_path, gallery, cluster, schedules):
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=SETTINGS)
    url = "s3://bucket/new"
    upgrade_gallery(gallery, H, url, settings=SETTINGS, executor=unlucky(FailingStore, 2))
    assert schedules[0].counts.failures >= 2
    folder = UrlPlace(location(url)).current()[1]
    found = {name: read_object(folder / name) for name in published(tmp_path / "threads")}
    assert found == published(tmp_path / "threads")
    assert not verify_gallery(url, workers=EXECUTOR).damaged


def test_workers_verify_as_this_process_does(tmp_path, gallery, cluster):
    dest = tmp_path / "new"
    upgrade_gallery(gallery, H, dest, settings=SETTINGS)
    assert verify_gallery(dest, workers=EXECUTOR) == verify_gallery(dest)
    (dest / "ids" / "000004.npy").unlink()
    for name in ("embeddings/000001.npy", "index.faiss"):
        data = bytearray((dest / name).read_bytes())
        data[-1] ^= 1
        (dest / name).write_bytes(data)
    found = verify_gallery(dest, workers=EXECUTOR)
    assert found == verify_gallery(dest)
    assert list(found.damaged) == ["ids/000004.npy", "embeddings/000001.npy", "index.faiss"]
    line = ["verify", str(dest), "--executor", "ray", "--workers", "2"]
    said = CliRunner().invoke(gallery_command, line, standalone_mode=False)
    assert said.return_value == 4
    assert "embeddings/000001.npy: is damaged" in said.stderr


def test_workers_evaluate_as_this_process_does(tmp_path, cluster, schedules):
    queries, old, new, query_labels, labels = embeddings.upgrade(1, queries=900, rows=700)
    arrays = {"queries": queries, "query_labels": query_labels, "gallery": old, "gallery_labels": labels}
    arrays |= {"old_queries": queries[:, :3].copy(), "old_gallery": new[:, :3].copy(), "new_gallery": new}
    paths = {name: str(tmp_path / f"{name}.npy") for name in arrays}
    for name, array in arrays.items():
        np.save(paths[name], array)
    line = [word for name, path in paths.items() for word in (f"--{name.replace('_', '-')}", path)]
    found = CliRunner().invoke(evaluate_command, [*line, "--json", "--executor", "ray"], standalone_mode=False)
    assert found.exception is None
    assert found.stdout == CliRunner().invoke(evaluate_command, [*line, "--json"], standalone_mode=False).stdout
    assert len(schedules) == 6  # old/old, new/old, new/new, class means, oracle, backfilling

    del paths["old_queries"], paths["old_gallery"], paths["new_gallery"]
    lost_once = unlucky(DiesOnce, str(tmp_path / "died"))
    assert evaluate(**paths, executor=lost_once).as_dict() == evaluate(**paths).as_dict()
    assert schedules[-1].counts.losses == 1
