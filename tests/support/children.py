"""Processes that tests kill: forks of the sandbox's server, so that none spends a second on imports."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from support.sandbox import start_fork

SECONDS = 120


def run_code(
    code: str, *arguments: object, env: Mapping[str, str] | None = None, timeout: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run Python code in another process, as ``python -c CODE ARGUMENTS`` would; a signal's number comes negative."""
    line = ["-c", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        child = start_fork(_run, code, line, dict(env or os.environ), *said)
        child.join(timeout)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise subprocess.TimeoutExpired(line, timeout, *(path.read_bytes() for path in said))
        assert child.exitcode is not None
        texts = (path.read_text() if path.exists() else "" for path in said)
        return subprocess.CompletedProcess(line, child.exitcode, *texts)


def _run(code: str, line: list[str], env: dict[str, str], stdout: Path, stderr: Path) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = line
    os.environ.clear()
    os.environ.update(env)
    exec(compile(code, "<child>", "exec"), {"__name__": "__main__"})
