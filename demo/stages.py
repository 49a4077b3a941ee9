"""Work in stages that are kept: a stage whose settings, sources and inputs are unchanged is not done again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fct_infer.storage import remove_tree, write_json

Reporter = Callable[[float, str], None]
"""Takes the share of a stage that is done, 0 to 1, and what to say of it."""


@dataclass(frozen=True)
class Stage:
    """One step of the demo.

    Attributes:
        name: of the folder its results lie in.
        title: what a person reads.
        make: fills the folder and returns one line about the result.
        needs: names of the stages whose results it reads.
        settings: what decides its result, beside sources and inputs; must have a meaningful ``repr``.
        sources: folders and files of Python code whose change makes its result stale.
    """

    name: str
    title: str
    make: Callable[[Path, Reporter], str]
    needs: tuple[str, ...]
    settings: Any
    sources: tuple[Path, ...]


class StageRunner:
    """Runs stages in their order, each into ``work/NAME``.

    A stage counts as done once its record is written, after its folder is complete; a folder without one is from a
    run that was stopped, and is made again.
    """

    def __init__(self, work: Path, stages: Iterable[Stage]) -> None:
        self._work, self._stages = work, tuple(stages)
        self._keys: dict[str, str] = {}
        self._console = Console(stderr=True)

    def run(self) -> None:
        """Make what is missing or stale, and say so."""
        for number, stage in enumerate(self._stages, start=1):
            self._keys[stage.name] = self._key(stage)
            record = self._read_record(stage)
            made = record is None
            record = record or self._make(stage, number)
            note = f"{record['seconds']:.1f} s" if made else "reused"
            line = f"[green]✓[/green] {self._label(number)} [bold]{stage.title}[/bold] [dim]{note}[/dim]"
            self._console.print(f"{line}  {record['result']}", soft_wrap=True, highlight=False)

    def _label(self, number: int) -> str:
        return f"[dim]{number:>2}/{len(self._stages)}[/dim]"

    def _make(self, stage: Stage, number: int) -> dict[str, Any]:
        self._record_file(stage).unlink(missing_ok=True)
        folder = self._work / stage.name
        remove_tree(folder)
        folder.mkdir(parents=True)
        start = time.monotonic()
        with self._reporting(stage, number) as reporter:
            result = stage.make(folder, reporter)
        record = {"key": self._keys[stage.name], "seconds": time.monotonic() - start, "result": result}
        write_json(self._record_file(stage), record)
        return record

    @contextmanager
    def _reporting(self, stage: Stage, number: int) -> Iterator[Reporter]:
        """Show a bar on a terminal, and one line at the start elsewhere."""
        if not self._console.is_terminal:
            self._console.print(f"  {self._label(number)} {stage.title} ...", highlight=False)
            yield lambda share, text: None
            return
        columns = (
            TextColumn(f"  {self._label(number)} [bold]{stage.title}[/bold]"),
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f} % [dim]{task.fields[text]}[/dim]"),
            TimeElapsedColumn(),
            TextColumn("[dim]left[/dim]"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(stage.title, total=1.0, text="")
            yield _Bar(progress, task)

    def _read_record(self, stage: Stage) -> dict[str, Any] | None:
        """Return what was noted when the stage was made, or None if it must be made again."""
        try:
            record = json.loads(self._record_file(stage).read_text())
        except (FileNotFoundError, ValueError):
            return None
        is_current = record["key"] == self._keys[stage.name] and (self._work / stage.name).is_dir()
        return record if is_current else None

    def _record_file(self, stage: Stage) -> Path:
        return self._work / f"{stage.name}.stage.json"

    def _key(self, stage: Stage) -> str:
        digest = hashlib.sha256(repr(stage.settings).encode())
        for name in stage.needs:
            digest.update(self._keys[name].encode())
        for source in stage.sources:
            for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
                digest.update(file.read_bytes())
        return digest.hexdigest()


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __call__(self, share: float, text: str) -> None:
        self._progress.update(self._task, completed=share, text=text)
