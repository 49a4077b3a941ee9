"""What every console script shares: how errors become exit codes, and where progress goes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import click

from fct_infer import __version__
from fct_infer.cli import _verbosity
from fct_infer.errors import FctError, ResourceError, StoppedError


class StdoutError(Exception):
    """The result cannot be printed, though the work is done; no OSError, of which click makes exit code 1."""


class _Stream:
    """An output stream whose failures (a pipe or a terminal that is gone) are kept apart from those of the work."""

    def __init__(self, stream: TextIO | None, failed: Callable[[OSError | ValueError], None]) -> None:
        self._stream, self._failed = stream, failed

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, use: Callable[[TextIO], object]) -> None:
        try:
            if self._stream is not None:
                use(self._stream)
        except (OSError, ValueError) as error:
            self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _watch_streams() -> None:
    """Let what is said on the way stop nothing, and what cannot be printed in the end be told from other errors."""

    def ignore(_error: Exception) -> None: ...

    def stop(error: Exception) -> NoReturn:
        raise StdoutError(str(error)) from error

    sys.stderr = cast(TextIO, _Stream(sys.stderr or open(os.devnull, "w"), ignore))  # noqa: SIM115, PTH123
    sys.stdout = cast(TextIO, _Stream(sys.stdout or open(os.devnull, "w"), stop))  # noqa: SIM115, PTH123


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; not an Exception, so that no handler swallows it on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number, self.name = number, signal.Signals(number).name


_BYTES = {
    "": 1,
    "B": 1,
    **{f"{letter}iB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
}


def byte_size(text: str) -> int:
    """Return the bytes that ``8GiB``, ``512MB`` or ``1000000`` mean; the type of options that take a size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text)
    if not found or found[2] not in _BYTES:
        raise click.BadParameter(f"{text!r} is no size; wanted for instance 8GiB or 512MiB")
    return int(float(found[1]) * _BYTES[found[2]])


def run_cli(command: click.Command, *, resumes: bool = False) -> NoReturn:
    """Run a click command and exit as the contract says: FctErrors as one line, a traceback only for a bug.

    ``resumes``: the same command goes on where it was stopped; only then a signal ends with "stopped, can be resumed".
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, _raise_terminated)
    _watch_streams()
    command = with_common_options(command)
    _verbosity.begin()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        result: Any = command.main(standalone_mode=False)
        _flush()
        sys.exit(result if isinstance(result, int) else 0)
    except click.ClickException as error:
        _fail_usage(error)
    except FctError as error:
        _verbosity.explain(error)
        _fail(f"error: {error}", error.exit_code)
    except Terminated as stop:
        if resumes:
            _fail(f"stopped by {stop.name}; the same command resumes", StoppedError.exit_code)
        _fail(f"stopped by {stop.name}", 128 + stop.number)
    except (KeyboardInterrupt, click.exceptions.Abort):
        _fail("interrupted", 130)
    except MemoryError:
        _fail("error: out of memory", ResourceError.exit_code)
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        _fail(f"error: the system allows no more threads: {error}", ResourceError.exit_code)
    except StdoutError as error:
        _forget_stdout()
        if isinstance(error.__cause__, BrokenPipeError):
            sys.exit(0)  # whoever read it has had enough
        _fail(f"error: the work is done, but its result cannot be printed: {error}", ResourceError.exit_code)


def with_common_options(command: click.Command) -> click.Command:
    """Give a command the options that all have: ``--version``, ``-q``, ``-v``."""
    if all(option.name != "version" for option in command.params):  # in tests a process runs several
        command = click.version_option(__version__, message="%(prog)s %(version)s")(command)
    _verbosity.add_options(command)
    return command


def say_files_are_code(model: Path) -> None:
    """Tell the user on stderr what naming a TorchScript or torch.export archive means."""
    click.echo(f"{model}: opened as a PyTorch archive, which is code and runs with your rights", err=True)


def show_rows(rows: Mapping[str, str]) -> None:
    """Print labelled lines on stdout, long paths whole and brackets as they are."""
    width = max(map(len, rows))
    for label, text in rows.items():
        click.echo(f"{click.style(label.ljust(width), bold=True)}  {text}")


def show_table(table: Sequence[Sequence[str]], numbers: Sequence[int]) -> None:
    """Print rows of text in columns; ``numbers`` are those that are set flush right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (
            text.rjust(width) if column in numbers else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


def duration_text(seconds: float) -> str:
    """Return a duration for people: ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def json_option() -> Callable[[Any], Any]:
    """Return the ``--json`` flag, the same in every command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def _raise_terminated(number: int, _frame: object) -> NoReturn:
    raise Terminated(number)


def _flush() -> None:
    sys.stdout.flush()


def _forget_stdout() -> None:
    """What is still to be written to it would fail once more when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_usage(error: click.ClickException) -> NoReturn:
    """Say a usage error in one line, as all errors; a group without a command shows its help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    says_more = f"; {context.command_path} --help says more" if context is not None else ""
    _fail(f"error: {' '.join(error.format_message().split()).rstrip('.')}{says_more}", error.exit_code)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(exit_code)
