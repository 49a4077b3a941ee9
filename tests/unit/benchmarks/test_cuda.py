"""The device's benchmark, as far as it goes without one: how it counts, what it leaves out, and who may take part."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from support import fake_devices
from support.programs import paper_h

from benchmarks import bench_cuda
from benchmarks.bench_cuda import (
    REHEARSAL,
    Bench,
    check_parity,
    ours_on_device,
    reason_of,
    storage_for,
    summary,
    usable_device,
)
from benchmarks.device_assignment import FROM_HOST, Assignment
from benchmarks.device_ceilings import FAST_SUMS, copy_ceilings, matmul_ceiling
from benchmarks.device_clock import MOST_SETS, REHEARSAL_CACHE_BYTES, DeviceClock, timing
from benchmarks.device_summary import OURS, PRODUCT, best_speed, by_rows, fastest_opponent, gates, host_limit, tables
from benchmarks.opponents import NotMeasuredError
from benchmarks.opponents.on_device import ON_DEVICE
from benchmarks.upgrade_runs import fused, run_once
from fct_infer.errors import ResourceError
from fct_infer.transformation import Transformation

PROGRAM = paper_h(old_dim=16, side_dim=8, new_dim=12, inner=32)


def speed(rows_per_second):
    return {"rows_per_second": rows_per_second, "seconds": 1 / rows_per_second, "spread": 0.01}


def result():
    """Figures in which every target but the last is reached."""
    return {
        "parameters": {"bytes_in_per_row": 512, "bytes_out_per_row": 256},
        "ours": {
            "bf16": {
                "description": "Device, blocks 8192 128; M rows/s by block: 8192 90; step 0 a + cast; step 1 b",
                "max_relative_error": 0.0123,
                "min_cosine": 0.9999,
            }
        },
        "matmul": {
            "bf16": {**speed(100e6), "tflops": 1140.0},
            "fp8": {**speed(180e6), "tflops": 2052.0},
            FAST_SUMS: {**speed(200e6), "tflops": 2280.0},
        },
        "copies": {"each_way_at_once": 512 * 80e6},
        "cases": [
            {"precision": "bf16", "rows": 4096, "runtimes": {OURS: speed(50e6), "TensorRT": speed(60e6)}},
            {"precision": "bf16", "rows": 65536, "runtimes": {OURS: speed(90e6), "torch eager": speed(45e6)}},
            {"precision": "fp8", "rows": 65536, "runtimes": {OURS: speed(144e6)}},
        ],
        "host": {"bf16": {**speed(76e6), "rows": 1000}},
        "upgrade": {
            "none": {**speed(38e6), "rows": 1000, "in_memory": True},
            "IVF16,PQ8np": {**speed(9e6), "rows": 1000},
        },
    }


def test_targets_are_judged_where_each_is_at_its_best():
    found = {gate["what"]: (gate["value"], gate["reached"]) for gate in gates(result())}
    assert found == {
        "bf16 on device data: ours / matrix products of the same shapes": (pytest.approx(0.9), True),
        "bf16 on device data: ours / fastest (TensorRT)": (pytest.approx(1.5), True),
        "device data: fp8 / bf16": (pytest.approx(1.6), True),
        "bf16 host to host / min(compute, copies) (copies)": (pytest.approx(0.95), True),
        "whole upgrade without index / host to host": (pytest.approx(0.5), False),
    }


def test_the_slower_of_compute_and_copies_bounds_the_host():
    figures = result()
    assert host_limit(figures, "bf16") == ("copies", pytest.approx(80e6))
    figures["copies"]["each_way_at_once"] *= 2
    assert host_limit(figures, "bf16") == ("compute", 90e6)
    assert host_limit(figures, "fp16") is None


@pytest.mark.parametrize("missing", ["matmul", "copies", "host", "upgrade"])
def test_a_target_with_a_figure_missing_is_not_judged(missing):
    figures = result()
    figures[missing] = {}
    assert 3 <= len(gates(figures)) < len(gates(result()))
    figures["cases"] = []
    assert all("upgrade" in gate["what"] for gate in gates(figures))
    tables(figures)


def test_the_best_of_us_and_of_the_others():
    cases = result()["cases"]
    assert best_speed(cases, "bf16") == 90e6
    assert best_speed(cases, "tf32") is None
    assert fastest_opponent(cases, "bf16") == ("TensorRT", 60e6)
    assert fastest_opponent(cases, "fp8") is None


def test_one_row_of_a_table_for_all_that_ran_with_as_many_rows():
    cases = [*result()["cases"], {"precision": "bf16", "rows": 4096, "runtimes": {OURS: speed(1.0), "x": speed(2.0)}}]
    merged = by_rows(cases, "bf16")
    assert list(merged[4096]) == [OURS, "x", "TensorRT"]
    assert merged[4096][OURS]["rows_per_second"] == 50e6
    (table,) = [table for table in tables({**result(), "cases": cases}) if table.title.startswith("bf16")]
    assert table.rows[0] == ["4,096", "50 (50 %) ±1 %", "2e-06 (0 %) ±1 %", "60 (60 %) ±1 %", "-"]


def test_fp8_is_judged_by_products_that_sum_as_it_does():
    """Both are shown."""
    ceilings, ours, *others = tables(result())
    assert [row[0] for row in ceilings.rows[:3]] == ["products, bf16", "products, fp8", f"products, {FAST_SUMS}"]
    assert ours.rows == [
        ["bf16", "1.2e-02", "0.999900", "Device, blocks 8192 128; M rows/s by block: 8192 90, 1 of 2 layers cast apart"]
    ]
    (table,) = [table for table in others if table.title.startswith("fp8")]
    assert table.rows[0][1] == "144 (80 %) ±1 %"


def test_what_we_run_is_kept_with_its_error():
    bench = Bench(REHEARSAL, "cpu")
    bench.program = PROGRAM
    bench.describe_ours("fp32")
    assert bench.result["ours"]["fp32"]["description"] == bench.ours("fp32").executable.description
    assert 0 < bench.result["ours"]["fp32"]["max_relative_error"] < 1e-5
    assert bench.result["ours"]["fp32"]["min_cosine"] == pytest.approx(1)
    assert bench.ours("fp32") is bench.ours("fp32")


def test_timing():
    assert timing([2.0, 1.0, 4.0], 10) == {"seconds": 2.0, "spread": 1.5, "rows_per_second": 5.0}


def test_contestants_take_turns_and_inputs_rotate():
    order = []
    calls = {name: [partial(order.append, f"{name}{number}") for number in range(2)] for name in "AB"}
    seconds = DeviceClock("cpu").alternate(calls, rounds=3, min_seconds=0.0)
    assert order[-6:] == ["A0", "B0"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"A": 3, "B": 3}
    order.clear()
    DeviceClock("cpu").seconds(calls["A"], 5)
    assert order == ["A0", "A1", "A0", "A1", "A0"]


def test_inputs_of_all_sets_exceed_the_cache_twice():
    sets = DeviceClock("cpu").row_sets(1000, 16, 8, 12)
    assert 2 * REHEARSAL_CACHE_BYTES < 4 * 1000 * 24 * len(sets) < 4 * REHEARSAL_CACHE_BYTES
    assert not torch.equal(sets[0].old, sets[1].old)
    assert len(DeviceClock("cpu").row_sets(1, 16, 8, 12)) == MOST_SETS
    assert len(DeviceClock("cpu").row_sets(100_000, 16, 8, 12)) == 2


@pytest.mark.parametrize("name", [OURS, "torch eager", "ONNX Runtime"])
def test_contestants_compute_the_program(name):
    clock = DeviceClock("cpu")
    sets = clock.row_sets(90, 16, 8, 12)[:2]
    ours = Transformation(PROGRAM, "fp32")
    calls = ours_on_device(ours, sets) if name == OURS else ON_DEVICE[name](PROGRAM, "fp32", sets)
    for call, rows in zip(calls, sets, strict=True):
        check_parity(name, PROGRAM, "fp32", rows, call, clock)


@pytest.mark.parametrize("name", ["CUDA graphs", "TensorRT", "torch.compile"])
def test_what_needs_a_device_says_so(name):
    with pytest.raises(NotMeasuredError, match=f"{name}: .*device"):
        ON_DEVICE[name](PROGRAM, "fp32", DeviceClock("cpu").row_sets(9, 16, 8, 12))


@pytest.mark.parametrize("wrong", [lambda rows: None, lambda rows: torch.ones(90, 12), lambda rows: rows.out.fill_(1)])
def test_who_computes_something_else_is_not_timed(wrong):
    clock = DeviceClock("cpu")
    (rows, *_) = clock.row_sets(90, 16, 8, 12)
    with pytest.raises(NotMeasuredError, match=r"x: cosine .* with float64, wanted >= 0\.999"):
        check_parity("x", PROGRAM, "bf16", rows, partial(wrong, rows), clock)


def test_ceilings_are_of_all_products_together():
    clock = DeviceClock("cpu")
    found = matmul_ceiling(clock, PROGRAM, "fp32", (16, 64), rounds=2, min_seconds=0.0)
    assert [case["rows"] for case in found["cases"]] == [16, 64]
    assert found["rows_per_second"] == max(case["rows_per_second"] for case in found["cases"])
    assert found["tflops"] == pytest.approx(1e-12 * found["rows_per_second"] * PROGRAM.flops_per_row)
    for precision in ("fp8", FAST_SUMS):
        with pytest.raises(NotMeasuredError, match="fp8"):
            matmul_ceiling(clock, PROGRAM, precision, (16,), 1, 0.0)
    copies = copy_ceilings(clock, 1 << 12, 2, 0.0)
    assert list(copies) == ["host_to_device", "device_to_host", "each_way_at_once", "within_device"]
    assert min(copies.values()) > 0


def test_lists_and_codes_are_timed_beside_the_product_alone():
    bench = Bench(REHEARSAL, "cpu")
    bench._part("lists and codes", bench.measure_assignment)
    (case,) = bench.result["assignment"]
    assert (case["rows"], case["lists"], case["parts"]) == (1000, 16, 4)
    assert list(case["runtimes"]) == [PRODUCT, FROM_HOST]
    assert list(bench.not_measured) == ["FAISS, add: a rehearsal"]
    runtimes = {PRODUCT: speed(200e6), OURS: speed(50e6)}
    found = tables({**result(), "assignment": [{**case, "runtimes": runtimes}]})
    (table,) = [table for table in found if table.title.startswith("Lists and codes")]
    assert table.rows == [["1,000 x 32, IVF16,PQ4", "200 (100 %) ±1 %", "50 (25 %) ±1 %"]]


def test_other_lists_than_the_cpu_finds_are_not_timed(monkeypatch):
    assignment = Assignment(DeviceClock("cpu"), REHEARSAL.assignments[0])
    monkeypatch.setattr(assignment, "centroids", assignment.centroids[::-1].copy())
    with pytest.raises(NotMeasuredError, match=r"lists are the CPU's for 0\.\d+ of the rows"):
        assignment.check()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ResourceError("out of it\nsecond line"), "out of it"),
        (RuntimeError("CUDA error: an illegal address\nmore"), "RuntimeError: CUDA error: an illegal address"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (NotMeasuredError(), "NotMeasuredError"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_part_that_fails_is_named_and_what_was_measured_is_kept(error, reason):
    kept = []
    bench = Bench(REHEARSAL, "cpu", lambda bench: kept.append(summary(bench, {})))

    def fail():
        raise error

    bench._part("a", bench.measure_host, "fp32")
    bench._part("b", fail)
    assert [list(result["host"]) for result in kept] == [["fp32"]] * 2
    assert [result["not_measured"] for result in kept] == [[], [f"b: {reason}"]]
    assert reason_of(error) == reason


def test_a_part_that_comes_too_late_is_named(capsys):
    bench = Bench(REHEARSAL, "cpu")
    bench._deadline = 0
    bench._part("b", bench.measure_copies)
    assert list(bench.not_measured) == ["b: no time left"]
    assert "b" not in capsys.readouterr().err.split()


def test_memory_backed_storage_is_taken_if_it_has_room(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_cuda, "STORAGE", tmp_path)
    assert storage_for(1) == tmp_path
    assert storage_for(1 << 62) == Path(tempfile.gettempdir())
    monkeypatch.setattr(bench_cuda, "STORAGE", tmp_path / "absent")
    assert storage_for(1) == Path(tempfile.gettempdir())


def test_an_upgrade_that_fails_says_why_and_spoils_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_cuda, "STORAGE", tmp_path.parent)
    bench = Bench(REHEARSAL, "cpu")
    bench._part("c", bench.measure_upgrade, "fp32", "no such index", 1, tmp_path)
    assert "benchmarks.fused_upgrade ended with 1: " in next(iter(bench.not_measured))
    bench._part("d", bench.measure_upgrade, "fp32", "none", 2, tmp_path)
    assert len(bench.not_measured) == 1
    assert bench.result["upgrade"]["none"]["storage"] == str(tmp_path.parent)
    assert bench.result["upgrade"]["none"]["rows"] == 2 * REHEARSAL.upgrade_rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1 times", "2 times", "once"]


def test_an_upgrade_on_a_disk_is_no_target(tmp_path):
    bench = Bench(REHEARSAL, "cpu")
    bench._part("d", bench.measure_upgrade, "fp32", "none", 1, tmp_path)
    assert "whole upgrade as a target: " in next(iter(bench.not_measured))
    figures = {**bench.result, "host": {"bf16": {"rows_per_second": 1.0}}, "parameters": {}}
    assert not any("upgrade" in gate["what"] for gate in gates(figures))


def test_the_last_words_of_a_child_are_in_the_reason(tmp_path):
    with pytest.raises(RuntimeError, match=r"benchmarks\.fused_upgrade ended with 1: .*GalleryError: "):
        run_once(fused("small", "fp32", "none"), tmp_path / "absent", tmp_path / "dest")


def test_a_device_is_one_device_by_its_full_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA L4"))
    assert [usable_device(device) for device in ("cuda", "cuda:1")] == ["cuda:0", "cuda:1"]
    for device, words in (
        ("gpu", "'gpu' does not exist"),
        ("cpu", "one device is measured"),
        ("cuda:0,cuda:1", "one device is measured"),
        ("cuda:2", "no device cuda:2; the core sees cuda:0"),
    ):
        with pytest.raises(click.ClickException, match=words):
            usable_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(click.ClickException, match="cuda:0: this PyTorch cannot use it"):
        usable_device("cuda")


def test_nothing_is_timed_twice_for_an_opponent_that_cannot_run():
    bench = Bench(REHEARSAL, "cpu")
    bench.program = PROGRAM
    bench.measure_on_device("fp32", 64, ["torch eager"])
    bench.measure_on_device("fp32", 64, ["TensorRT"])
    assert [list(case["runtimes"]) for case in bench.result["cases"]] == [[OURS, "torch eager"]]
    assert list(bench.not_measured) == ["fp32: TensorRT: needs a device"]


def test_an_opponent_that_breaks_stops_no_other(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("in its kernel\nmore")

    monkeypatch.setitem(ON_DEVICE, "TensorRT", broken)
    bench = Bench(REHEARSAL, "cpu")
    bench.program = PROGRAM
    bench.measure_on_device("fp32", 64, ["TensorRT", "torch eager"])
    assert [list(case["runtimes"]) for case in bench.result["cases"]] == [[OURS, "torch eager"]]
    assert list(bench.not_measured) == ["fp32, 64 rows: TensorRT: ZeroDivisionError: in its kernel"]


def test_rows_from_host_to_host_are_those_of_the_dtype_a_gallery_has():
    bench = Bench(REHEARSAL, "cpu")
    bench.measure_host("fp32")
    assert bench.result["host"]["fp32"]["rows"] == REHEARSAL.host_rows
    assert np.isfinite(bench.result["host"]["fp32"]["rows_per_second"])
