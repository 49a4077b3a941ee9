"""``fct-gallery``: what lies in a gallery, and how to get one."""

from __future__ import annotations

from typing import NoReturn

import click

from fct_infer.cli._common import run_cli
from fct_infer.cli.gallery_add_column import add_column_command
from fct_infer.cli.gallery_convert import convert_command
from fct_infer.cli.gallery_inspect import inspect_command
from fct_infer.cli.gallery_search import search_command
from fct_infer.cli.gallery_verify import verify_command
from fct_infer.cli.gallery_versions import rollback_command, versions_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Look into galleries, make them of vectors in other formats; search published ones, check them, roll them back.

    \b
    Example:
      fct-gallery inspect items.parquet
      fct-gallery verify DEST
    """


command.add_command(add_column_command)
command.add_command(convert_command)
command.add_command(inspect_command)
command.add_command(search_command)
command.add_command(verify_command)
command.add_command(versions_command)
command.add_command(rollback_command)


def main() -> NoReturn:
    """Entry point of ``fct-gallery``."""
    run_cli(command)


if __name__ == "__main__":
    main()
