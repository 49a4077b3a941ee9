"""How many CPUs a process may keep busy: affinity, and quotas of control groups of both versions."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from fct_infer import machine
from fct_infer.transformation import thread_count


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A tree of control groups, on a machine of 64 CPUs: write(own groups, files)."""

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return write


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("", {}, 64),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "350000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max"}, 64),
        ("0::/\n", {"cpu.max": "garbage 0"}, 64),
        ("0::/not/shown/here\n", {"cpu.max": "300000 100000"}, 3),
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "600000", "cpu/x/cpu.cfs_period_us": "100000"},
            6,
        ),
        ("3:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_the_smallest_limit_counts(groups, own, files, cpus):
    groups(own, files)
    assert machine.usable_cpus() == cpus == thread_count(None)
    assert thread_count(7) == 7  # as asked for


def test_affinity_counts_too(groups, monkeypatch):
    groups("0::/\n", {"cpu.max": "500000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert machine.usable_cpus() == 2


GIBIBYTE = 1 << 30


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("", {}, 8 * GIBIBYTE),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "5"}, 8 * GIBIBYTE),
        ("0::/a\n", {"a/memory.max": str(4 * GIBIBYTE), "a/memory.current": str(GIBIBYTE)}, 3 * GIBIBYTE),
        (
            "0::/a/b\n",
            {
                "a/memory.high": str(2 * GIBIBYTE),
                "a/memory.current": str(GIBIBYTE),
                "a/memory.stat": f"anon 5\ninactive_file {GIBIBYTE // 2}",
            },
            3 * GIBIBYTE // 2,
        ),
        (
            "5:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": str(GIBIBYTE), "memory/x/memory.usage_in_bytes": str(2 * GIBIBYTE)},
            0,
        ),
    ],
)
def test_memory_of_the_machine_and_of_control_groups(groups, tmp_path, monkeypatch, own, files, left):
    groups(own, files)
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * GIBIBYTE // 1024} kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert machine.usable_memory() == left


def test_a_limit_on_addresses_counts_with_room_for_libraries(groups, monkeypatch):
    groups("", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 * GIBIBYTE, 64 * GIBIBYTE))
    most = machine.usable_memory()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (GIBIBYTE // 4, GIBIBYTE // 4))
    assert machine.usable_memory() == 0 < most < 64 * GIBIBYTE


@pytest.mark.parametrize(("megabytes", "loads"), [(200, False), (8000, True)])
def test_faiss_is_not_loaded_where_it_would_crash(megabytes, loads):
    code = f"""
import resource
from fct_infer.errors import ResourceError
from fct_infer.index.faiss_module import faiss
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ({megabytes} << 20),) * 2)
try:
    faiss()
    print("loaded")
except ResourceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("loaded\n" if loads else "ulimit -v leaves too little memory to load FAISS\n")
