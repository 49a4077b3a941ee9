"""Runs sanitize.py under compute-sanitizer, where that is installed and can watch this machine's device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

WATCHED = Path(__file__).resolve().parent / "sanitize.py"
# The least use of a device there is: shows whether the tool can watch one at all.
TRIVIAL = "from fct_infer.backends.cuda_memory import CudaMemory as M; m = M(0); m.free(m.allocate(1 << 20))"
# Races are looked for in the kernels of csrc/cuda/nvidia/*.cu, by their namespace, and not in those of cuBLASLt.
TOOLS = {"memcheck": [], "racecheck": ["--kernel-name", "kernel_substring=_ZN3fct4cuda7kernels"]}


def main() -> int:
    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join((os.environ["PATH"], "/usr/local/cuda/bin")))
    if sanitizer is None:
        print("== compute-sanitizer was not found: left out")
        return 0
    # The repository too: the core may have been built into it, and not be installed.
    paths = [str(WATCHED.parents[1]), str(WATCHED.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    trivial = [sys.executable, "-c", TRIVIAL]
    subprocess.run(trivial, check=True)  # what fails without the tool as well is no fault of the tool
    probe = subprocess.run([sanitizer, "--error-exitcode", "1", *trivial], capture_output=True, text=True, check=False)
    if probe.returncode:
        print(f"== compute-sanitizer cannot watch this device, left out; its words:\n{probe.stdout}{probe.stderr}")
        return 0
    for tool, options in TOOLS.items():
        print(f"== compute-sanitizer {tool}", flush=True)
        command = [sanitizer, "--tool", tool, *options, "--error-exitcode", "1", sys.executable, str(WATCHED)]
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
