"""Who does the work of a command, part by part, on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from threading import get_ident
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from fct_infer.errors import UsageError

if TYPE_CHECKING:
    from fct_infer.upgrade.executor import Executor


def resources(text: str) -> dict[str, int]:
    """Return the numbers of ``cpu=4,gpu=1`` as ``cpus`` and ``gpus``."""
    found = {}
    for item in text.split(","):
        kind, _, number = item.partition("=")
        if kind not in ("cpu", "gpu") or not number.isdecimal():
            raise click.BadParameter(f"{text!r} is not like cpu=4,gpu=1")
        found[f"{kind}s"] = int(number)
    return found


_OPTIONS = (
    click.option(
        "--executor",
        type=click.Choice(["threads", "ray"]),
        default="threads",
        show_default=True,
        help="Who works: this process, or workers of a Ray cluster, which see the same files under the same names.",
    ),
    click.option("--ray-address", metavar="ADDRESS", help="Of the cluster, or auto [default: one on this machine]."),
    click.option("--workers", type=click.IntRange(min=1), help="Ray workers [default: as many as there is room for]."),
    click.option("--resources", type=resources, help="Of each Ray worker, such as cpu=4,gpu=1 [default: cpu=1]."),
    click.option("--mixed-cpus", is_flag=True, help="Let machines take part whose last bits may differ."),
)


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--executor`` and its options to a command, which is called with ``executor`` (an Executor, or None)."""

    @wraps(command)
    def run(**given: Any) -> Any:
        names = ("executor", "ray_address", "workers", "resources", "mixed_cpus")
        executor = _executor(*(given.pop(name) for name in names))
        with redirect_stdout(cast("TextIO", _OwnStdout())):
            return command(executor=executor, **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


class _OwnStdout:
    """Standard output, for results; what other threads print, as Ray's does of workers that it lost, goes to stderr."""

    def __init__(self) -> None:
        self._stdout, self._thread = sys.stdout, get_ident()

    def write(self, text: str) -> int:
        return (self._stdout if get_ident() == self._thread else sys.stderr).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def _executor(
    name: str, address: str | None, workers: int | None, each: dict[str, int] | None, mixed_cpus: bool
) -> Executor | None:
    if name == "threads":
        if address is not None or workers is not None or each is not None or mixed_cpus:
            raise UsageError("--ray-address, --workers, --resources and --mixed-cpus are for --executor ray")
        return None
    from fct_infer.distributed.ray_executor import RayExecutor

    each = {"cpus": 1, "gpus": 0} | (each or {})
    return RayExecutor(address, workers, each["cpus"], each["gpus"], mixed_cpus)
