"""Progress of a training run on stderr: images embedded first, then loss, speed and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from fct_infer.cli._common import duration_text
from fct_infer.cli._progress import PLAIN_INTERVAL
from fct_infer.cli._verbosity import is_quiet, is_verbose

if TYPE_CHECKING:
    from fct_infer.training.runs.loop import Progress


@contextmanager
def training_progress_on_stderr() -> Iterator[TrainingProgress]:
    """Yield what is told of every step: a live line on a terminal, a plain one every few seconds elsewhere."""
    if is_quiet():
        yield _Silent()
        return
    if is_verbose() or not sys.stderr.isatty():
        yield _PlainLines()
        return
    with Bars(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bars:
        yield _LiveLine(bars)


class TrainingProgress:
    """Makes a line of where a run stands; the stages have their own pace."""

    def __init__(self) -> None:
        self._images, self._steps = _Pace("images"), _Pace("steps")

    def __call__(self, progress: Progress) -> None:
        """Tell of a step."""
        text = f"epoch {progress.epoch}/{progress.epochs}, step {progress.step:,}/{progress.steps:,}, "
        text += f"loss {progress.loss:.4g}{self._steps.describe(progress.step, progress.steps)}"
        self._show(text, progress.step, progress.steps)

    def on_images(self, done: int, whole: int) -> None:
        """Tell of embedded images."""
        self._show(f"embed: {done:,}/{whole:,} images{self._images.describe(done, whole)}", done, whole)

    def _show(self, text: str, done: int, whole: int) -> None:
        raise NotImplementedError


class _Silent(TrainingProgress):
    def _show(self, text: str, done: int, whole: int) -> None: ...


class _LiveLine(TrainingProgress):
    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars, self._task = bars, bars.add_task("")

    def _show(self, text: str, done: int, whole: int) -> None:
        self._bars.update(self._task, total=whole, completed=done, description=text)


class _PlainLines(TrainingProgress):
    def __init__(self) -> None:
        super().__init__()
        self._printed = float("-inf")

    def _show(self, text: str, done: int, whole: int) -> None:
        now = time.monotonic()
        if done == whole or now - self._printed >= PLAIN_INTERVAL:
            self._printed = now
            print(text, file=sys.stderr, flush=True)


class _Pace:
    """What is done per second since the first report of this process, which may have gone on with an earlier run."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._start: tuple[int, float] | None = None

    def describe(self, done: int, whole: int) -> str:
        """Return speed and time left, or nothing at the first report."""
        now = time.monotonic()
        first, start = self._start = self._start or (done, now)
        if done == first or now == start:
            return ""
        speed = (done - first) / (now - start)
        return f", {speed:,.1f} {self._unit}/s, {duration_text((whole - done) / speed)} left"
