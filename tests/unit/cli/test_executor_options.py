"""``--executor`` and what belongs to it."""

from __future__ import annotations

from threading import Thread

import click
import pytest
from click.testing import CliRunner

from fct_infer.cli._executor_options import executor_options
from fct_infer.distributed.ray_executor import RayExecutor
from fct_infer.errors import UsageError


def given(*arguments: str):
    found = []

    @click.command()
    @executor_options
    def command(executor):
        found.append(executor)

    shown = CliRunner().invoke(command, arguments)
    if shown.exception is not None:
        raise shown.exception
    return found[0]


def test_threads_by_default():
    assert given() is None
    assert given("--executor", "threads") is None


def test_ray_with_all_it_takes():
    line = "--executor ray --ray-address auto --workers 7 --resources cpu=4,gpu=1 --mixed-cpus"
    assert given(*line.split()) == RayExecutor("auto", 7, cpus=4, gpus=1, mixed_cpus=True)
    assert given("--executor", "ray") == RayExecutor()


@pytest.mark.parametrize("option", ["--ray-address auto", "--workers 2", "--resources cpu=1", "--mixed-cpus"])
def test_without_ray_its_options_mean_nothing(option):
    with pytest.raises(UsageError, match="are for --executor ray"):
        given(*option.split())


@pytest.mark.parametrize("resources", ["", "cpu", "cpu=", "cpu=-1", "memory=3", "cpu=1,,"])
def test_resources_that_are_none(resources):
    with pytest.raises(SystemExit) as ended:
        given("--executor", "ray", "--resources", resources)
    assert ended.value.code == 2


def test_what_ray_prints_on_a_thread_of_its_own_is_no_result():
    @click.command()
    @executor_options
    def command(executor):
        thread = Thread(target=print, args=["a worker died"])
        thread.start()
        thread.join()
        click.echo("found")

    said = CliRunner().invoke(command, ["--executor", "ray"])
    assert (said.stdout, said.stderr) == ("found\n", "a worker died\n")
