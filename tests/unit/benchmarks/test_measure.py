from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bench_transformation import OURS, Bench, Effort, check_parity
from benchmarks.measure import alternate, paired_ratio
from benchmarks.opponents import NotMeasuredError
from benchmarks.table import Table, overlap


def test_contestants_take_turns():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "AB"}
    seconds = alternate(calls, rounds=3, min_seconds=0.0)
    assert "".join(order[-6:]) == "ABABAB"
    assert {name: len(timings) for name, timings in seconds.items()} == {"A": 3, "B": 3}


def test_ratio_is_taken_within_a_round():
    ours = [1.0, 10.0, 1.0]  # a busy moment slows both in round 2
    theirs = [2.0, 20.0, 2.0]
    assert paired_ratio(theirs, ours) == 2.0


@pytest.mark.parametrize(("precision", "tolerated", "refused"), [("fp32", 1e-6, 1e-3), ("bf16", 1e-2, 1.0)])
def test_parity_decides_who_is_timed(precision, tolerated, refused):
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((64, 32), dtype=np.float32)
    noise = rng.standard_normal((64, 32), dtype=np.float32)
    check_parity("x", ours + np.float32(tolerated) * noise, ours, precision)
    with pytest.raises(NotMeasuredError):
        check_parity("x", ours + np.float32(refused) * noise, ours, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_result_that_is_not_a_number_has_no_parity(precision):
    ours = np.ones((4, 8), np.float32)
    with pytest.raises(NotMeasuredError):
        check_parity("x", np.full_like(ours, np.nan), ours, precision)


def test_gate_is_judged_where_the_fastest_opponent_is_at_its_best():
    bench = Bench(Effort(rows=(512, 4096)), threads=1)
    bench.ceilings = {"fp32": 100.0}
    for rows, seconds in ((512, {OURS: 1.0, "slow": 4.0, "fast": 2.0}), (4096, {OURS: 4.0, "slow": 9.0, "fast": 6.0})):
        bench.cases.append(
            bench.summarise("small", "fp32", rows, {name: [value] * 3 for name, value in seconds.items()})
        )
    (gate,) = bench.gates()
    assert "fast, 0.7 k rows/s at 4,096 rows" in gate["what"]
    assert gate["value"] == 1.5
    assert gate["reached"]


def test_overlap_is_the_share_of_work_hidden():
    stages = {"read": 1.0, "transform": 2.0, "write": 0.5, "index": 0.5}
    assert overlap(stages) == 0.0
    assert overlap({**stages, "stream": 2.0}) == 0.5


def test_markdown_table_has_a_rule_and_every_cell():
    lines = Table("title", ["rows", "x"], [["1", "2"]]).markdown().splitlines()
    assert lines == ["**title**", "", "| rows | x |", "|---|---:|", "| 1 | 2 |"]
