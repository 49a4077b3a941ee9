"""How much a command says on stderr: ``-q`` and ``-v``, the same for all commands."""

from __future__ import annotations

import logging
import platform
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

QUIET, NORMAL, VERBOSE = -1, 0, 1


class _Verbosity:
    """The one of this process; a command begins at NORMAL."""

    def __init__(self) -> None:
        self.level, self.start = NORMAL, time.monotonic()


_chosen = _Verbosity()


def add_options(command: click.Command) -> None:
    """Give a command, and each command of a group, ``-q`` and ``-v``."""
    for option in _options():
        if all(known.name != option.name for known in command.params):
            command.params.append(option)
    for inner in getattr(command, "commands", {}).values():
        add_options(inner)


def begin() -> None:
    """Forget what an earlier command of this process was told."""
    _chosen.level, _chosen.start = NORMAL, time.monotonic()


def is_quiet() -> bool:
    """Whether only warnings and errors are wanted."""
    return _chosen.level <= QUIET


def is_verbose() -> bool:
    """Whether details are wanted."""
    return _chosen.level >= VERBOSE


def note(text: str) -> None:
    """Say something on stderr that ``-q`` silences; warnings are said by ``click.echo(..., err=True)``."""
    if not is_quiet():
        click.echo(text, err=True)


def detail(text: str) -> None:
    """Say something on stderr that only ``-v`` asks for, with the seconds since the command began."""
    if is_verbose():
        click.echo(f"[{time.monotonic() - _chosen.start:7.2f} s] {text}", err=True)


def explain(error: BaseException) -> None:
    """With ``-v``, say on stderr where an error came from."""
    if is_verbose():
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)


def _options() -> tuple[click.Option, click.Option]:
    def option(*names: str, level: int, text: str) -> click.Option:
        flags = {"is_flag": True, "is_eager": True, "expose_value": False}
        return click.Option(names, callback=_choose(level), help=text, **flags)

    return (
        option("-q", "--quiet", level=QUIET, text="No progress and no notes on stderr; warnings and errors stay."),
        option("-v", "--verbose", level=VERBOSE, text="Say on stderr what runs and how long, and where errors began."),
    )


def _choose(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def choose(_context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
        if not asked:
            return
        if _chosen.level not in (NORMAL, level):
            raise click.UsageError("-q and -v contradict each other")
        _chosen.level = level
        if level == VERBOSE:
            _say_machine()

    return choose


def _say_machine() -> None:
    from fct_infer import __version__
    from fct_infer.machine import usable_cpus

    facts: list[Any] = [f"fct_infer {__version__}", f"Python {platform.python_version()}", f"{usable_cpus()} CPUs"]
    with suppress(ImportError):
        from fct_infer import _core

        facts.append(_core.cpu_instruction_set())
    detail(", ".join(facts))
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger("fct_infer").setLevel(logging.DEBUG)
