"""Progress of a training run on stderr: loss, speed and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from fct_infer.cli._progress import PLAIN_INTERVAL

if TYPE_CHECKING:
    from fct_infer.training.loop import Progress


@contextmanager
def training_progress_on_stderr() -> Iterator[Callable[[Progress], None]]:
    """Yield a callable to be told of every step: a live line on a terminal, a plain one every few seconds elsewhere."""
    pace = _Pace()
    if not sys.stderr.isatty():
        yield _PlainLines(pace)
        return
    with Bars(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("")
        yield lambda progress: bars.update(
            task, total=progress.steps, completed=progress.step, description=pace.describe(progress)
        )


class _Pace:
    """Steps per second since the first step of this process, which may have gone on with an earlier one's run."""

    def __init__(self) -> None:
        self._start: tuple[int, float] | None = None

    def describe(self, progress: Progress) -> str:
        """Return the line for a step."""
        now = time.monotonic()
        first_step, start = self._start = self._start or (progress.step, now)
        text = f"epoch {progress.epoch}/{progress.epochs}, step {progress.step:,}/{progress.steps:,}, "
        text += f"loss {progress.loss:.4g}"
        if progress.step == first_step or now == start:
            return text
        speed = (progress.step - first_step) / (now - start)
        return f"{text}, {speed:,.1f} steps/s, {(progress.steps - progress.step) / speed:.0f} s left"


class _PlainLines:
    def __init__(self, pace: _Pace) -> None:
        self._pace, self._printed = pace, float("-inf")

    def __call__(self, progress: Progress) -> None:
        line, now = self._pace.describe(progress), time.monotonic()
        if progress.step == progress.steps or now - self._printed >= PLAIN_INTERVAL:
            self._printed = now
            print(line, file=sys.stderr, flush=True)
