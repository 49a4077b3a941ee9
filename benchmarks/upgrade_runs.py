"""Runs one upgrade, ours or the plain script's, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.galleries import warm_page_cache

Run = dict[str, Any]
LINES_OF_REASON = 3


def fused(program: str, precision: str, index: str) -> list[str]:
    """Return module and options of our upgrade."""
    return ["benchmarks.fused_upgrade", "--program", program, "--precision", precision, "--index", index]


def plain(program: str, precision: str, index: str, runtime: str, training_rows: int) -> list[str]:
    """Return module and options of the plain script."""
    common = ["--program", program, "--precision", precision, "--index", index]
    return ["benchmarks.opponents.plain_script", *common, "--runtime", runtime, "--training-rows", str(training_rows)]


def batch_seconds(program: str, precision: str, runtime: str) -> float | None:
    """Return the seconds a runtime takes for a batch, measured in a process of its own; None if it cannot run.

    Raises:
        RuntimeError: it failed.
    """
    options = ["--program", program, "--precision", precision, "--runtime", runtime]
    return _document("benchmarks.runtime_speed", options).get("seconds")


def run_once(command: list[str], gallery: Path, dest: Path) -> Run:
    """Run it to the end; when it starts, the disk is idle and the gallery in the page cache.

    Raises:
        RuntimeError: it failed; the message ends with the last lines it wrote on stderr.
    """
    shutil.rmtree(dest, ignore_errors=True)
    os.sync()
    warm_page_cache(gallery)
    module, *options = command
    result = _document(module, [str(gallery), str(dest), *options])
    index = dest / "index.faiss"
    return {**result, "index_bytes": index.stat().st_size if index.exists() else 0}


def _document(module: str, options: list[str]) -> dict[str, Any]:
    """Return the JSON document that a module prints, run in a process of its own."""
    arguments = [sys.executable, "-m", module, *options]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = " | ".join(done.stderr.strip().splitlines()[-LINES_OF_REASON:])
        raise RuntimeError(f"{module} ended with {done.returncode}: {tail}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document
