"""Progress on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fct_infer.cli._common import duration_text
from fct_infer.cli._verbosity import detail, is_quiet, is_verbose

PLAIN_INTERVAL = 5.0  # seconds between plain lines


@contextmanager
def progress_on_stderr(unit: str = "rows") -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callable ``progress(stage, done, whole)``, counted in ``unit``; under ``-q`` one that says nothing."""
    if is_quiet():
        yield _silent
        return
    if is_verbose():
        with _TimedStages(_PlainLines(unit)) as stages:
            yield stages
        return
    if not sys.stderr.isatty():
        yield _PlainLines(unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars, unit)


def _silent(_stage: str, _done: int, _whole: int) -> None: ...


class _TimedStages:
    """Plain lines, and after each stage how long it took."""

    def __init__(self, lines: _PlainLines) -> None:
        self._lines, self._stage, self._start = lines, "", 0.0

    def __enter__(self) -> _TimedStages:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._end_stage()

    def __call__(self, stage: str, done: int, rows: int) -> None:
        if stage != self._stage:
            self._end_stage()
            self._stage, self._start = stage, time.monotonic()
        self._lines(stage, done, rows)

    def _end_stage(self) -> None:
        if self._stage:
            detail(f"{self._stage} took {duration_text(time.monotonic() - self._start)}")


class _Speed:
    """What is done per second in the stage at work, from its first report on."""

    def __init__(self) -> None:
        self.stage, self._start, self._first = "", 0.0, 0

    def update(self, stage: str, done: int) -> float:
        """Return rows/s so far; 0 at the stage's first report."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self._start, self._first = stage, now, done
        return (done - self._first) / (now - self._start) if now > self._start else 0.0


class _Bars:
    def __init__(self, bars: Progress, unit: str) -> None:
        self._bars, self._unit, self._speed = bars, unit, _Speed()
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, rows: int) -> None:
        speed = self._speed.update(stage, done)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=rows, speed="")
        self._bars.update(self._tasks[stage], completed=done, speed=f"{speed:,.0f} {self._unit}/s" if speed else "")


class _PlainLines:
    def __init__(self, unit: str) -> None:
        self._unit, self._speed, self._printed = unit, _Speed(), 0.0

    def __call__(self, stage: str, done: int, rows: int) -> None:
        is_new = stage != self._speed.stage
        speed = self._speed.update(stage, done)
        now = time.monotonic()
        if not is_new and done < rows and now - self._printed < PLAIN_INTERVAL:
            return
        self._printed = now
        text = f"{stage}: {done:,}/{rows:,} {self._unit}"
        if speed:
            text += f", {speed:,.0f} {self._unit}/s, {duration_text((rows - done) / speed)} left"
        print(text, file=sys.stderr, flush=True)
