"""``python -m fct_infer``: the commands that come with the package."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import distribution

import click

from fct_infer import __version__


def main() -> None:
    """Print each command with the first sentence of its help."""
    click.echo(
        f"fct_infer {__version__}: change the embedding model of a retrieval system without recomputing its gallery\n"
    )
    scripts = {
        script.name: script.value.partition(":")[0]
        for script in distribution("fct-infer").entry_points
        if script.group == "console_scripts"
    }
    width = max(map(len, scripts))
    for name, module in sorted(scripts.items()):
        click.echo(f"  {name.ljust(width)}  {_command(module).get_short_help_str(100)}")
    click.echo("\nEach says more with --help.")


def _command(module: str) -> click.Command:
    """Return the click command of a module of ``fct_infer.cli``."""
    home = import_module(module)
    found: click.Command = getattr(home, "command", None) or home.group
    return found


if __name__ == "__main__":
    main()
