"""What all commands share."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from fct_infer import __version__

COMMANDS = sorted(script.name for script in distribution("fct-infer").entry_points if script.group == "console_scripts")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_its_version(name):
    assert run(str(Path(sys.executable).with_name(name)), "--version").stdout == f"{name} {__version__}\n"


def test_the_package_lists_its_commands():
    lines = run(sys.executable, "-m", "fct_infer").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == COMMANDS
    assert all(len(line.split()) > 4 for line in lines if line.startswith("  "))
