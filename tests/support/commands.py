"""Console scripts run in this process: the same arguments, streams and exit codes without seconds of imports."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock


def run_command(
    module: str, *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``fct_infer.cli.MODULE`` as its console script would; what is no exit of the command is raised as it is.

    For what a process alone can show (signals, closed pipes, limits, imports) start one.
    """
    line = [f"fct-{module.replace('_', '-')}", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    main = import_module(f"fct_infer.cli.{module}").main
    with (
        _signals_kept(),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.dict(os.environ, env or {}),
        mock.patch.object(sys, "argv", line),
        mock.patch.object(sys, "stdout", stdout),
        mock.patch.object(sys, "stderr", stderr),
        # From the package of __main__ click concludes how it was called.
        mock.patch.object(sys.modules["__main__"], "__package__", None),
    ):
        try:
            main()
        except SystemExit as end:
            return subprocess.CompletedProcess(line, _code(end), stdout.getvalue(), stderr.getvalue())
    raise AssertionError(f"{line[0]} returned; a console script exits")


def _code(end: SystemExit) -> int:
    assert end.code is None or isinstance(end.code, int), end.code
    return end.code or 0


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Commands change what happens at a signal."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
