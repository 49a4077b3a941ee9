"""How fast one runtime transforms a batch, in a process of its own: other runtimes' spinning threads disturb nothing.

Prints one JSON document: the seconds of a batch, or why it was not measured.
"""

from __future__ import annotations

import json
from functools import partial
from statistics import median

import click
import numpy as np

from benchmarks import opponents
from benchmarks.measure import alternate, cores
from benchmarks.opponents import OPPONENTS, NotMeasuredError
from benchmarks.opponents.plain_script import BATCH
from benchmarks.programs import UPGRADE_PROGRAMS
from tests.support.programs import random_rows


@click.command()
@click.option("--program", "name", required=True, type=click.Choice(list(UPGRADE_PROGRAMS)))
@click.option("--precision", required=True)
@click.option("--runtime", required=True, type=click.Choice(list(OPPONENTS)))
def main(name: str, precision: str, runtime: str) -> None:
    program = UPGRADE_PROGRAMS[name]
    try:
        apply = opponents.load(runtime, program, precision, cores())
    except NotMeasuredError as error:
        print(json.dumps({"not_measured": str(error)}))
        return
    old, side = (random_rows(BATCH, dim) for dim in program.dims.values())
    call = partial(apply, old, side, np.empty((BATCH, program.new_dim), np.float32))
    seconds = alternate({runtime: call}, rounds=5, min_seconds=0.1)[runtime]
    print(json.dumps({"seconds": median(seconds)}))


if __name__ == "__main__":
    main()
