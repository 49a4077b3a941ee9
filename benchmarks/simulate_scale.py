"""What do stragglers, preemptions and a slow store cost an upgrade on hundreds of machines?

Simulated are the machines and the store. What decides which worker does which part is the scheduling code that
``--executor ray`` runs, on a clock that the simulation moves; how much time it takes itself is measured.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from fct_infer.errors import FctError, ResourceError
from fct_infer.gallery import Part
from fct_infer.upgrade.crew import Came, Event, Failed, Finished, Lost, Policy
from fct_infer.upgrade.schedule import Schedule, run_parts

HOUR = 3600.0


@dataclass(frozen=True)
class World:
    """Machines and a store as they are, bad days included; times in seconds.

    Attributes:
        workers, parts, rows: how many, and of each part.
        row_seconds: of one row on one worker: read, transformed, written.
        spread: of the time parts take, as sigma of a log-normal factor.
        slow_share, slow_factor: of all runs of a part so many take so many times as long.
        hang_share: so many never end, and nobody says so.
        preempted_every: a worker lives that long on the average; 0: for ever.
        replaced_after: until another comes in its place.
        store_seconds: median of what the store takes for one part beside its bytes; with a long tail.
        store_error_share: so many runs of a part fail by the store.
        outage: (start, seconds) in which all runs that end fail by the store.
        record_seconds: in which the driver makes one receipt durable.
    """

    workers: int = 500
    parts: int = 76_294
    rows: int = 131_072
    row_seconds: float = 1 / 7_000
    spread: float = 0.1
    slow_share: float = 0.0
    slow_factor: float = 10.0
    hang_share: float = 0.0
    preempted_every: float = 0.0
    replaced_after: float = 120.0
    store_seconds: float = 0.1
    store_error_share: float = 0.0
    outage: tuple[float, float] | None = None
    record_seconds: float = 0.002


SCENARIOS: dict[str, dict[str, Any]] = {
    "a quiet day": {},
    "1 % of parts take 10 times as long": {"slow_share": 0.01},
    "1 part in 10,000 hangs for ever": {"hang_share": 1e-4},
    "spot machines, each gone after 2 h": {"preempted_every": 2 * HOUR},
    "spot machines, each gone after 20 min": {"preempted_every": HOUR / 3},
    "a slow store, 5 s a part": {"store_seconds": 5.0},
    "1 % of writes fail": {"store_error_share": 0.01},
    "the store is gone for 90 s": {"outage": (100.0, 90.0)},
    "all of it": {
        "slow_share": 0.01,
        "hang_share": 1e-4,
        "preempted_every": 2 * HOUR,
        "store_seconds": 5.0,
        "store_error_share": 0.01,
        "outage": (100.0, 90.0),
    },
}


class NothingWillHappenError(Exception):
    """All workers hang, and the loop waits for ever."""


class VirtualCrew:
    """Workers that exist in numbers only; see :class:`~fct_infer.upgrade.crew.Crew`.

    Attributes:
        now: the clock.
        busy: worker-seconds at work, whatever came of it.
        recorded: parts in the order of their receipts.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.now, self.busy = world, 0.0, 0.0
        self.recorded: list[str] = []
        self._random = random.Random(seed)
        self._coming: list[tuple[float, int, Event]] = []
        self._ties, self._names = 0, 0
        self._since: dict[str, float] = {}  # of workers that are alive, when they began what they do
        for _ in range(world.workers):
            self._enlist(0.0)

    def clock(self) -> float:
        """Return the virtual time."""
        return self.now

    def record(self, part: Part, _worker: Any) -> None:
        """Make a receipt durable, on the driver's time."""
        self.now += self.world.record_seconds
        self.recorded.append(part.name)

    def start(self, worker: str, part: Part) -> None:
        """Decide how the part will end."""
        world, chance = self.world, self._random
        self._since[worker] = self.now
        if chance.random() < world.hang_share:
            return
        seconds = part.rows * world.row_seconds * math.exp(chance.gauss(0, world.spread))
        if chance.random() < world.slow_share:
            seconds *= world.slow_factor
        end = self.now + seconds + world.store_seconds * math.exp(chance.gauss(0, 1))
        if chance.random() < world.store_error_share or (world.outage and 0 <= end - world.outage[0] < world.outage[1]):
            self._later(end, Failed(worker, part, ResourceError("the store does not answer")))
        else:
            self._later(end, Finished(worker, part, worker))

    def stop(self, worker: str) -> None:
        """End a worker; another one comes in its place."""
        self.busy += self.now - self._since.pop(worker)
        self._enlist(self.world.replaced_after)

    def wait(self, until: float | None) -> Iterable[Event]:
        """Move the clock to the next thing that happens, or to ``until``."""
        while self._coming:
            if until is not None and max(self.now, self._coming[0][0]) > until:
                break
            when, _, event = heapq.heappop(self._coming)
            if not isinstance(event, Came) and event.worker not in self._since:
                continue  # of a worker that is gone
            self.now = max(self.now, when)
            if isinstance(event, Came):
                self._since[event.worker] = self.now
            elif isinstance(event, Lost):
                self.stop(event.worker)
            else:
                self.busy += self.now - self._since[event.worker]
                self._since[event.worker] = self.now
            return [event]
        if until is None:
            raise NothingWillHappenError
        self.now = max(self.now, until)
        return []

    def _enlist(self, after: float) -> None:
        name = f"worker {self._names}"
        self._names += 1
        self._later(self.now + after, Came(name))
        if self.world.preempted_every:
            life = self._random.expovariate(1 / self.world.preempted_every)
            self._later(self.now + after + life, Lost(name, "preempted"))

    def _later(self, when: float, event: Event) -> None:
        heapq.heappush(self._coming, (when, self._ties, event))
        self._ties += 1


def parts_of(world: World) -> Sequence[Part]:
    """Return the parts of a gallery in such a world."""
    return [Part(f"{number:06d}", world.rows, number * world.rows) for number in range(world.parts)]


@dataclass(frozen=True)
class Simulated:
    """One simulated upgrade.

    Attributes:
        hours: until the last part is recorded.
        efficiency: the work of a perfect day (every part once, on all workers, nothing lost) over ``hours``.
        schedule: its counts.
        loop_ms: milliseconds of real time the scheduling code took, a part.
        ended_by: the error that ended it, if one did; what was done is kept then.
    """

    hours: float
    efficiency: float
    schedule: Schedule | None
    loop_ms: float
    ended_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as strict JSON."""
        counts = vars(self.schedule.counts) if self.schedule else {}
        return {
            "hours": round(self.hours, 3),
            "efficiency": round(self.efficiency, 4),
            **counts,
            "loop_ms_per_part": round(self.loop_ms, 4),
            "ended_by": self.ended_by,
        }


def simulate(world: World, seed: int = 0, policy: Policy | None = None) -> Simulated:
    """Run the scheduling code over a whole upgrade."""
    crew, parts, schedule, error = VirtualCrew(world, seed), parts_of(world), None, None
    start = time.process_time()
    try:
        schedule = run_parts(parts, crew, crew.record, policy, crew.clock)
    except FctError as ended:
        error = str(ended)
    taken = time.process_time() - start
    perfect = len(crew.recorded) * world.rows * world.row_seconds / world.workers
    return Simulated(crew.now / HOUR, perfect / crew.now, schedule, 1000 * taken / world.parts, error)


def table(results: dict[str, Simulated]) -> str:
    """Return results as a Markdown table."""
    lines = [
        "| | hours | efficiency | lost with a worker | failed | begun twice, being slow | loop, ms a part |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        if found.schedule is None:
            lines.append(f"| {name} | {found.hours:.2f}: ended by {found.ended_by} | | | | | {found.loop_ms:.2f} |")
            continue
        counts = found.schedule.counts
        lines.append(
            f"| {name} | {found.hours:.2f} | {found.efficiency:.1%} | {counts.losses:,} | {counts.failures:,} "
            f"| {counts.repeated:,} | {found.loop_ms:.2f} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--workers", default=World.workers, show_default=True, type=click.IntRange(min=1))
@click.option("--total", default="1e10", show_default=True, help="Rows of the gallery.")
@click.option("--part-rows", default=World.rows, show_default=True, type=click.IntRange(min=1))
@click.option("--rows-per-second", default=1 / World.row_seconds, show_default=True, help="Of one worker.")
@click.option("--seed", default=0, show_default=True)
@click.option("--no-repeat", is_flag=True, help="Leave slow parts alone, to see what repeating them is worth.")
@click.option("--quick", is_flag=True, help="A hundredth of the rows on a tenth of the workers.")
@click.option("--json", "as_json", is_flag=True)
def main(
    workers: int,
    total: str,
    part_rows: int,
    rows_per_second: float,
    seed: int,
    no_repeat: bool,
    quick: bool,
    as_json: bool,
) -> None:
    """Simulate an upgrade of 10^10 rows under several kinds of bad luck (about 3 minutes; --quick: seconds)."""
    parts = math.ceil(float(total) / part_rows)
    if quick:
        workers, parts = max(1, workers // 10), max(1, parts // 100)
    world = World(workers=workers, parts=parts, rows=part_rows, row_seconds=1 / rows_per_second)
    policy = Policy(slow_factor=0.0) if no_repeat else Policy()
    results = {}
    for name, luck in SCENARIOS.items():
        if no_repeat and "hang_share" in luck:
            continue  # it would never end
        click.echo(f"{name} ...", err=True)
        results[name] = simulate(replace(world, **luck), seed, policy)
    if as_json:
        click.echo(json.dumps({name: found.as_dict() for name, found in results.items()}, indent=2))
    else:
        click.echo(f"{workers:,} workers, {parts:,} parts of {part_rows:,} rows, {rows_per_second:,.0f} rows/s each\n")
        click.echo(table(results))


if __name__ == "__main__":
    main()
