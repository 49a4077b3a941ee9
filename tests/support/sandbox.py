"""Runs a console script in a process of its own with bounded CPU time and memory, without a Python start for each.

multiprocessing's fork server has imported the heavy libraries once; every run is a fork of it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

CPU_SECONDS = 20 * (os.cpu_count() or 1)  # ONNX Runtime computes on all of them
MEMORY_BYTES = 8 << 30  # of address space beyond what the libraries have mapped: a safety belt for the machine
FILE_BYTES = 64 << 20  # of any one file written
WALL_SECONDS = 60
_PRELOADED = (
    "faiss",
    "onnx.version_converter",
    "onnx.compose",
    "onnxruntime",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "fct_infer.cli.embed",
    "fct_infer.cli.evaluate",
    "fct_infer.cli.export",
    "fct_infer.cli.upgrade_gallery",
    "fct_infer.artifacts.torch_program",
    "fct_infer.backends.loading",
    "fct_infer.backends.torch_runtime",
    "fct_infer.embedding",
    "fct_infer.evaluation",
    "fct_infer.export.plain_module",
    "fct_infer.export.graphs.module_graph",
    "fct_infer.export.user_files",
    "fct_infer.upgrade.run",
    "torch._inductor.pattern_matcher",  # which torch.export.load imports
    "psycopg",
    "pyarrow.parquet",
    "fct_infer.connectors.parquet_sink",
)


@dataclass(frozen=True)
class Ended:
    """How a run ended; a negative exit code is the number of the signal that killed it."""

    exit_code: int
    stdout: str
    stderr: str
    max_rss_bytes: int


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*_PRELOADED])


def start_fork(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """Begin ``work`` in a fork of the server, of which a process has one: all that tests fork comes from here."""
    process = _context.Process(target=work, args=arguments)
    # Else the child would import what __main__ is here: pytest.
    with mock.patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")}):
        process.start()
    return process


def run_limited(command: str, arguments: list[str], folder: Path, log: Path) -> Ended:
    """Run ``fct-<command>`` in ``folder``, also its place for temporary files; what it prints goes into ``log``."""
    log.mkdir()
    process = start_fork(_run, command, arguments, folder, log)
    process.join(WALL_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    usage = log / "max_rss"
    return Ended(
        process.exitcode,
        (log / "stdout").read_text(errors="replace"),
        (log / "stderr").read_text(errors="replace"),
        int(usage.read_text()) if usage.exists() else 0,
    )


def _run(command: str, arguments: list[str], folder: Path, log: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    sys.argv = [f"fct-{command}", *arguments]
    try:
        importlib.import_module(f"fct_infer.cli.{command.replace('-', '_')}").main()
    finally:
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (log / "max_rss").write_text(str(kibibytes * 1024))
