"""Run the numeric tests again as CPUs with fewer instructions would: under each set below this machine's.

    python tests/instruction_sets.py FCT_CORE_TESTS

oneDNN takes the set from ONEDNN_MAX_CPU_ISA, so one machine can be several.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SETS = ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16")  # each has other kernels, the last native bf16
TESTS = (
    "unit/test_transformation.py",
    "unit/backends/test_precision.py",
    "unit/index/test_filling.py",
    "unit/upgrade/test_upgrade_precision.py",
)


def instruction_set(limit: str | None) -> str:
    """Return what the core computes with under a limit, asked in a process of its own as oneDNN reads it once."""
    code = "from fct_infer import _core; print(_core.cpu_instruction_set())"
    return subprocess.check_output([sys.executable, "-c", code], env=limited(limit), text=True).strip()


def limited(limit: str | None) -> dict[str, str]:
    """Return the environment with a limit."""
    return os.environ | ({"ONEDNN_MAX_CPU_ISA": limit} if limit else {})


def main() -> None:
    """Run them all; the first that fails ends it."""
    folder, own = Path(__file__).parent, instruction_set(None)
    done = {own}
    for limit in SETS:
        name = instruction_set(limit)
        if name in done:
            continue
        done.add(name)
        print(f"== numeric tests with {name} (this CPU has {own})", flush=True)
        quiet = subprocess.run([sys.argv[1]], env=limited(limit), capture_output=True, text=True, check=False)
        if quiet.returncode:
            sys.exit(quiet.stdout + quiet.stderr)
        tests = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            str(os.cpu_count()),
            *(str(folder / test) for test in TESTS),
        ]
        if subprocess.run(tests, env=limited(limit), check=False).returncode:
            sys.exit(1)


if __name__ == "__main__":
    main()
