"""Train what is missing, judge it, write docs/reproduction*.md: ``python -m reproduction.run [--part text]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch

from benchmarks.npm import MissingPackageError, package
from fct_infer.errors import FctError
from fct_infer.storage import write_json

from . import pictures, text
from .experiment import CLASSES, LARGE, SMALL
from .figures import judge as judge_glyphs
from .jobs import Job, run_jobs
from .page import write_page
from .runs import Runs

Judge: TypeAlias = Callable[[Runs], dict[str, Any]]


_COMPUTED = "computed"  # of figures: when, and on what; earlier ones do not say it
PARTS = ("glyphs", "pictures", "text")


def main() -> int:
    """Run all seeds; what is there already is not computed again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many [3]")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="which experiments [all]")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where to train [cpu]; cuda: larger, glyphs only"
    )
    parser.add_argument("--workers", type=int, help="processes at once, of one thread each [as many as CPUs]")
    parser.add_argument("--work", type=Path, default=Path("reproduction/work"), help="folder of the runs")
    parser.add_argument("--pages", type=Path, default=Path("docs"), help="folder of the pages [docs]")
    options = parser.parse_args()
    try:
        for part in options.part:
            _RUN[part](options)
    except FctError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _glyphs(options: argparse.Namespace) -> None:
    on_device = options.device == "cuda"
    scale = LARGE if on_device else SMALL
    seeds = [Runs(options.work / options.device / str(seed), seed, scale, options.device) for seed in _seeds(options)]
    found = _all_figures(seeds, judge_glyphs, options)
    page = options.pages / ("reproduction-cuda.md" if on_device else "reproduction.md")
    write_page(page, found, CLASSES * scale.test_images, found[-1].get(_COMPUTED, "earlier"))
    print(page)


def _pictures(options: argparse.Namespace) -> None:
    try:
        package(*pictures.PACKAGE)  # before there are several that want it
    except MissingPackageError as error:
        print(f"pictures are left out: {error}", file=sys.stderr)
        return
    work = options.work / "pictures"
    seeds = [Runs(work / str(seed), seed, pictures.SCALE, "cpu", pictures.EXPERIMENT) for seed in _seeds(options)]
    found = _all_figures(seeds, pictures.judge, options)
    _write(options.pages / "reproduction-pictures.md", pictures.page(found, found[-1].get(_COMPUTED, "earlier")))


def _text(options: argparse.Namespace) -> None:
    figures = options.work / "text" / "figures.json"
    if not figures.exists():
        try:
            found = text.judge()
        except MissingPackageError as error:
            print(f"text is left out: {error}", file=sys.stderr)
            return
        figures.parent.mkdir(parents=True, exist_ok=True)
        write_json(figures, found | {_COMPUTED: _machine("cpu")})
    known = json.loads(figures.read_text())
    _write(options.pages / "reproduction-text.md", text.page(known, known[_COMPUTED]))


_RUN: dict[str, Callable[[argparse.Namespace], None]] = {"glyphs": _glyphs, "pictures": _pictures, "text": _text}


def _seeds(options: argparse.Namespace) -> range:
    return range(options.seeds)


def _all_figures(seeds: list[Runs], judge: Judge, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is missing and return the figures of every seed."""
    cores = len(os.sched_getaffinity(0))
    workers, threads = (2, cores // 2 or 1) if seeds[0].device == "cuda" else (options.workers or cores, 1)
    jobs = _jobs(seeds, judge)
    run_jobs(jobs, workers, threads, _Report(len(jobs)))
    return [json.loads(_figures(runs).read_text()) for runs in seeds]


def _jobs(seeds: list[Runs], judge: Judge) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for runs in seeds:
        if not _figures(runs).exists():
            training = runs.jobs()
            jobs |= training
            jobs[f"seed {runs.seed}: figures"] = Job(judge_seed, (runs, judge), tuple(training))
    return jobs


def judge_seed(runs: Runs, judge: Judge) -> None:
    """Write what a seed's models are worth."""
    write_json(_figures(runs), judge(runs) | {_COMPUTED: _machine(runs.device)})


def _figures(runs: Runs) -> Path:
    return runs.folder / "figures.json"


def _machine(device: str) -> str:
    """Return when and on what figures are computed, in words."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{len(os.sched_getaffinity(0))} CPU cores"
    return f"{time.strftime('%Y-%m-%d')}, on {name}, PyTorch {torch.__version__}, {platform.machine()}"


def _write(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(path)


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
