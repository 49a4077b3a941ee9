"""Install what ``make wheel`` made as a user would, away from the source tree, and upgrade a gallery with it.

    python tools/try_install.py dist/fct_infer-*

Wheels for other versions of Python than the one that runs this are passed over.

A new virtual environment of the interpreter that runs this gets the file with its extra ``cpu``. There the installed
commands fit a map, upgrade a gallery with it, search and verify it, and the new rows are compared with the true ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CHECK = Path(__file__).with_name("use_installed.py")


def main(package: Path) -> None:
    """Install one file into a new environment and use it from an empty folder."""
    with tempfile.TemporaryDirectory(prefix="fct-install-") as folder:
        place = Path(folder)
        venv.create(place / "venv", with_pip=True)
        python = place / "venv/bin/python"
        # Nothing of the environment this runs in, and no source tree, may stand in for what is missing.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            f"{package.resolve()}[cpu]",
        ]
        subprocess.run(install, check=True, env=outside)
        work = place / "work"
        work.mkdir()
        subprocess.run([python, "-I", "-W", "error::SyntaxWarning", CHECK.resolve()], check=True, env=outside, cwd=work)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: try_install.py WHEEL_OR_SDIST...")
    tag = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
    fitting = [each for each in sys.argv[1:] if tag in each or not each.endswith(".whl")]
    if not fitting:
        sys.exit(f"none of the wheels is for Python {sys.version.split()[0]}")
    for each in fitting:
        print(f"== {Path(each).name} on Python {sys.version.split()[0]}", flush=True)
        main(Path(each))
