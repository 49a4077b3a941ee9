"""Train what is missing, judge it, write docs/reproduction.md: ``python -m reproduction.run [--seeds 3]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fct_infer.errors import FctError
from fct_infer.storage import write_json

from .experiment import CLASSES, LARGE, SMALL
from .figures import judge
from .jobs import Job, run_jobs
from .page import write_page
from .runs import Runs


def main() -> int:
    """Run all seeds; what is there already is not computed again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many [3]")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where to train [cpu]; cuda: a larger experiment"
    )
    parser.add_argument("--work", type=Path, help="folder of the runs [reproduction/work/DEVICE]")
    parser.add_argument("--page", type=Path, help="[docs/reproduction.md, on a device docs/reproduction-cuda.md]")
    options = parser.parse_args()
    on_device = options.device == "cuda"
    page = options.page or Path("docs/reproduction-cuda.md" if on_device else "docs/reproduction.md")
    work = options.work or Path("reproduction/work") / options.device
    cores, scale = len(os.sched_getaffinity(0)), LARGE if on_device else SMALL
    seeds = [Runs(work / str(seed), seed, scale, options.device) for seed in range(options.seeds)]
    workers, threads = (2, cores // 2 or 1) if on_device else (cores, 1)
    try:
        jobs = _jobs(seeds)
        run_jobs(jobs, workers, threads, _Report(len(jobs)))
    except FctError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    found = [json.loads(_figures(runs).read_text()) for runs in seeds]
    device = torch.cuda.get_device_name() if on_device else f"{cores} CPU cores"
    write_page(page, found, CLASSES * scale.test_images, f"{device}, PyTorch {torch.__version__}, {platform.machine()}")
    print(page.read_text())
    return 0


def _jobs(seeds: list[Runs]) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for runs in seeds:
        if not _figures(runs).exists():
            training = runs.jobs()
            jobs |= training
            jobs[f"seed {runs.seed}: figures"] = Job(judge_seed, (runs,), tuple(training))
    return jobs


def judge_seed(runs: Runs) -> None:
    """Write what a seed's models are worth."""
    write_json(_figures(runs), judge(runs))


def _figures(runs: Runs) -> Path:
    return runs.folder / "figures.json"


class _Report:
    """Says on standard error what was done, and how much is left."""

    def __init__(self, jobs: int) -> None:
        self._jobs, self._done, self._start = jobs, 0, time.monotonic()

    def __call__(self, name: str, result: Any, seconds: float) -> None:
        self._done += 1
        minutes = (time.monotonic() - self._start) / 60
        done = f"{self._done} of {self._jobs}"
        print(f"{minutes:5.1f} min  {done}: {name}, {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
