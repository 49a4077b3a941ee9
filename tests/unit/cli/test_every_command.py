"""What is the same in all commands: help, usage errors, -q and -v, completion, Ctrl-C before they begin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

import click
import pytest

from fct_infer.cli import _verbosity
from fct_infer.cli._common import duration_text, with_common_options
from fct_infer.cli._progress import progress_on_stderr

SCRIPTS = {
    script.name: script.value.partition(":")[0]
    for script in distribution("fct-infer").entry_points
    if script.group == "console_scripts"
}


def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for inner, found in getattr(command, "commands", {}).items():
        yield from walk(f"{name} {inner}", found)


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, module in SCRIPTS.items():
        home = import_module(module)
        found |= walk(name, with_common_options(getattr(home, "command", None) or home.group))
    return found


COMMANDS = commands()


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=60, env=os.environ | environment
    )  # fmt: skip


@pytest.fixture(autouse=True)
def as_before():
    yield
    _verbosity.begin()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    lacking = [
        option.opts[-1] for option in COMMANDS[name].params if isinstance(option, click.Option) and not option.help
    ]
    assert not lacking


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_of_its_own_command_with_options_that_it_has(name):
    command = COMMANDS[name]
    assert command.help is not None
    _, _, example = command.help.partition("Example:\n")
    lines = [line.strip() for line in example.strip().splitlines()]
    assert lines and all(line.startswith("fct-") for line in lines)
    own = [line for line in lines if line.startswith(name)]
    assert own
    if isinstance(command, click.Group):
        return
    known = {flag for parameter in command.params for flag in parameter.opts}
    for line in own:
        assert {word for word in line.split() if word.startswith("-")} <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_quiet_and_verbose_once(name):
    flags = [flag for parameter in COMMANDS[name].params for flag in parameter.opts]
    assert flags.count("-q") == flags.count("-v") == flags.count("--quiet") == flags.count("--verbose") == 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["fct-fit", "--olt", "x"], "error: No such option '--olt'"),
        (["fct-upgrade-gallery"], "error: Missing argument 'SOURCE'; fct-upgrade-gallery --help says more\n"),
        (["fct-gallery", "serch"], "error: No such command 'serch'"),
        (["fct-gallery", "verify"], "error: Missing argument 'DEST'; fct-gallery verify --help says more\n"),
        (["fct-gallery", "verify", "-q", "-v", "x"], "error: -q and -v contradict each other"),
        (["fct-backfill", "x", "-o", "y", "--embed", "z", "--order", "w"], "error: Invalid value for '--order': 'w'"),
    ],
)
def test_usage_errors_are_one_line(arguments, wanted):
    done = script(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(wanted) and done.stderr.count("\n") == 1


def test_a_group_without_a_command_shows_its_help():
    done = script("fct-gallery")
    assert done.returncode == 2 and "Commands:" in done.stdout + done.stderr


def test_completion_of_options_commands_and_files(tmp_path):
    """As the shell asks for it; docs/guide/completion.md says how it is switched on."""

    def complete(line: str, word: int) -> str:
        name = line.partition(" ")[0]
        asked = {f"_{name.upper().replace('-', '_')}_COMPLETE": "bash_complete"}
        return script(name, COMP_WORDS=line, COMP_CWORD=str(word), **asked).stdout

    assert "plain,--transformation" in complete("fct-upgrade-gallery --trans", 1)
    assert {"plain,verify", "plain,versions"} <= set(complete("fct-gallery ver", 1).split())
    assert "plain,cosine" in complete("fct-upgrade-gallery x --metric c", 3)
    assert "file," in complete("fct-upgrade-gallery ./x", 1)
    assert "complete -o nosort -F" in script("fct-fit", _FCT_FIT_COMPLETE="bash_source").stdout


def test_ctrl_c_while_a_command_is_still_importing_ends_it_without_a_traceback():
    code = "import os, signal, sys, time; sys.argv[0] = '/usr/bin/fct-fit'; import fct_infer.cli; {}"
    kill = "os.kill(os.getpid(), signal.SIGINT); time.sleep(90)"
    done = subprocess.run(
        [sys.executable, "-c", code.format(kill)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    other = code.replace("fct-fit", "my-server").format("print(signal.getsignal(2) is signal.default_int_handler)")
    assert subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=True).stdout == "True\n"


def invoke(*arguments: str) -> None:
    @click.command()
    def command() -> None:
        _verbosity.note("a note")
        _verbosity.detail("a detail")
        click.echo("a warning", err=True)
        with progress_on_stderr() as progress:
            progress("read", 1, 2)
            progress("write", 2, 2)

    with_common_options(command).main(list(arguments), "fct-x", standalone_mode=False)


def test_what_is_said_by_default(capsys):
    invoke()
    assert capsys.readouterr().err.splitlines()[:4] == ["a note", "a warning", "read: 1/2 rows", "write: 2/2 rows"]


def test_quiet_leaves_warnings(capsys):
    invoke("-q")
    assert capsys.readouterr().err == "a warning\n"


def test_verbose_says_versions_details_and_how_long_each_stage_took(capsys):
    invoke("-v")
    said = capsys.readouterr().err
    assert "fct_infer " in said and " s] a detail\n" in said
    assert "] read took " in said and "] write took " in said


def test_verbose_shows_where_an_error_began(tmp_path):
    missing = str(tmp_path / "nothing")
    plain, verbose = script("fct-gallery", "verify", missing), script("fct-gallery", "verify", missing, "-v")
    assert plain.returncode == verbose.returncode == 4
    assert "Traceback" not in plain.stderr and "Traceback" in verbose.stderr
    assert verbose.stderr.splitlines()[-1] == plain.stderr.strip()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (7320, "2 h 2 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text
