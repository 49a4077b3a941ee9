"""Jobs run after those they need, in other processes; the first error ends the rest."""

from __future__ import annotations

import time
from pathlib import Path

import pytest


def stamp(folder: Path, name: str, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    (folder / name).write_text(repr(time.monotonic()))
    return name.upper()


def fail() -> None:
    raise ValueError("broken")


def test_jobs_wait_for_those_they_need(tmp_path):
    from reproduction.jobs import Job, run_jobs

    jobs = {
        "last": Job(stamp, (tmp_path, "last"), ("slow", "quick")),
        "slow": Job(stamp, (tmp_path, "slow", 0.3)),
        "quick": Job(stamp, (tmp_path, "quick")),
    }
    results = {}
    run_jobs(jobs, 2, 1, lambda name, result, seconds: results.update({name: (result, seconds)}))
    assert {name: result for name, (result, _) in results.items()} == {name: name.upper() for name in jobs}
    assert results["slow"][1] >= 0.3
    when = {name: float((tmp_path / name).read_text()) for name in jobs}
    assert when["last"] > max(when["slow"], when["quick"])


def test_the_first_error_is_raised_and_nothing_follows(tmp_path):
    from reproduction.jobs import Job, run_jobs

    jobs = {"broken": Job(fail, ()), "after": Job(stamp, (tmp_path, "after"), ("broken",))}
    with pytest.raises(ValueError, match="broken"):
        run_jobs(jobs, 1, 1, lambda *_: None)
    assert not (tmp_path / "after").exists()


def test_jobs_that_wait_for_each_other_are_refused():
    from reproduction.jobs import Job, run_jobs

    with pytest.raises(ValueError, match=r"one, two"):
        run_jobs({"one": Job(fail, (), ("two",)), "two": Job(fail, (), ("one",))}, 1, 1, lambda *_: None)
