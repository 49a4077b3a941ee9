"""The simulation is repeatable, loses no time on a perfect day, and shows what luck costs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from benchmarks.simulate_scale import SCENARIOS, World, main, simulate

SMALL = World(workers=10, parts=200, rows=1000, row_seconds=1e-2, store_seconds=0.0)


def test_a_perfect_day_is_as_long_as_the_work():
    found = simulate(World(**{**vars(SMALL), "spread": 0.0, "record_seconds": 0.0}))
    assert found.hours * 3600 == pytest.approx(200 * 1000 * 1e-2 / 10)
    assert found.efficiency == pytest.approx(1)


def test_the_drivers_own_time_counts():
    found = simulate(World(**{**vars(SMALL), "spread": 0.0, "record_seconds": 2.0}))
    assert found.hours * 3600 >= 200 * 2.0  # more than the workers need


def test_luck_costs_and_repeats():
    world = World(**{**vars(SMALL), "preempted_every": 50.0, "replaced_after": 5.0})
    found = simulate(world, seed=4)
    assert found.efficiency < simulate(SMALL, seed=4).efficiency
    assert found.schedule is not None
    assert found.schedule.counts.losses > 0
    assert vars(simulate(world, seed=4).schedule.counts) == vars(found.schedule.counts)


def test_a_store_that_stays_away_ends_it_and_it_is_said():
    found = simulate(World(**{**vars(SMALL), "outage": (100.0, 1e9)}))
    assert found.schedule is None
    assert "the store does not answer; what is done is kept" in found.ended_by


@pytest.mark.parametrize("more", [(), ("--no-repeat",)])
def test_the_command_shows_every_scenario(more):
    arguments = ["--workers", "20", "--total", "2e7", "--json", *more]
    shown = CliRunner().invoke(main, arguments, catch_exceptions=False)
    results = json.loads(shown.stdout)
    assert set(results) == {name for name, luck in SCENARIOS.items() if not (more and "hang_share" in luck)}
    assert all(0 < found["efficiency"] <= 1 and found["ended_by"] is None for found in results.values())
    table = CliRunner().invoke(main, [argument for argument in arguments if argument != "--json"]).stdout
    assert all(f"| {name} |" in table for name in results)
