"""What OpenMP's library was told when it was loaded, as it says itself."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

import pytest


def spins_read(line: Sequence[object], **chosen: str) -> set[str]:
    """Run a command that ends well, with ``chosen`` in its environment; return what each loaded copy read."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        list(map(str, line)),
        env=kept | chosen | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found = set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr))
    if not found:
        pytest.skip("what was loaded has threads of another library than libgomp here")
    return found
