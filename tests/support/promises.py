"""What every hostile or broken file must lead to, checked in one place; and that good files get through it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.sandbox import Ended, run_limited

MAX_RSS_BYTES = 3 << 29
MAX_MESSAGE = 2000
_NOISE = re.compile(r"error:|Traceback|\w(Error|Warning|Exception)\b|\[[EWF]:|^\s|^$")  # of a library, beside progress


@dataclass(frozen=True)
class Case:
    """A file that must be refused.

    Attributes:
        make: writes it into a folder (which may hold files beside it) and returns its path.
        reason: regular expression found in the message, so that no case passes for another reason.
        exit_code: 4 unless ``why`` says otherwise.
    """

    make: Callable[[Path], Path]
    reason: str
    exit_code: int = 4
    why: str = ""


class Cases(dict[str, Case]):
    """Cases by name; a maker is added by decorating it, its docstring is the name."""

    def __call__(self, reason: str, exit_code: int = 4, why: str = "") -> Callable[[Callable], Callable]:
        def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
            name = make.__doc__
            assert name and name not in self
            self[name] = Case(make, reason, exit_code, why)
            return make

        return add


def assert_refused(case: Case, command: str, file: Path, *arguments: object, within: Path | None = None) -> None:
    """Run ``fct-<command> arguments -o OUT``: nothing may come of it but one line, which names ``file``.

    ``within`` is the folder that is watched and gets OUT; by default that of ``file``.
    """
    folder = within or file.parent
    before = tree(folder)
    ended = _run(command, arguments, folder)
    assert ended.exit_code == case.exit_code, f"exit {ended.exit_code}: {ended.stderr[-3000:]}"
    *progress, message = ended.stderr.splitlines()
    assert not any(map(_NOISE.search, progress)), ended.stderr
    assert message.startswith("error: ") and str(file) in message, message
    assert re.search(case.reason, message), message
    assert len(message) <= MAX_MESSAGE, message
    assert ended.stdout == ""
    assert tree(folder) == before
    assert ended.max_rss_bytes <= MAX_RSS_BYTES


def assert_accepted(command: str, file: Path, *arguments: object) -> None:
    """The same run with a good file: it ends well within the limits and its output is there."""
    ended = _run(command, arguments, file.parent)
    assert ended.exit_code == 0, ended.stderr[-3000:]
    assert (file.parent / "out").exists()
    assert 0 < ended.max_rss_bytes <= MAX_RSS_BYTES


def tree(folder: Path) -> dict[str, tuple]:
    """Kind, size, time of change and number of every entry below ``folder``."""
    entries = [folder, *folder.rglob("*")]
    return {str(path): _state(path) for path in entries}


def _state(path: Path) -> tuple:
    state = path.lstat()
    changed = 0 if path.is_dir() else state.st_mtime_ns  # a folder's changes with a temporary file that is gone again
    return state.st_mode, state.st_size, changed, state.st_ino


def _run(command: str, arguments: tuple[object, ...], folder: Path) -> Ended:
    log = folder.with_name(folder.name + ".log")
    output = "--report" if command == "evaluate" else "-o"
    return run_limited(command, [*map(str, arguments), output, str(folder / "out")], folder, log)
