"""Where a transformation runs, in which precision, and what it needs for that; devices are stood in for by the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from support import fake_devices
from support.fake_devices import Executable
from support.programs import linear_map, paper_h, random_rows

from fct_infer import _core, choose_precision
from fct_infer.errors import UnsupportedError, UsageError
from fct_infer.reference import largest_values
from fct_infer.transformation import Transformation

PROGRAM = paper_h(12, 6, 10, inner=16)
RANGES = {name: 2.0 + place for place, name in enumerate(PROGRAM.linear_inputs)}


@pytest.fixture
def devices(monkeypatch):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))


@pytest.mark.parametrize(
    ("device", "name"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cuda:1,cuda:0", "cuda:1,cuda:0"), ("cpu", "cpu")]
)
def test_it_is_compiled_for_the_device_named(devices, device, name):
    h = Transformation(PROGRAM, "fp32", 1, device, device_memory=1 << 30)
    assert h.device == h.executable.arguments["device"] == name
    old, side = random_rows(7, 12), random_rows(7, 6)
    np.testing.assert_array_equal(h(old, side), Transformation(PROGRAM, "fp32")(old, side))
    if device != "cpu":
        assert Executable.made[0].arguments == {"precision": "fp32", "device": name, "memory": 1 << 30, "ranges": None}


def test_auto_takes_the_fastest_precision_that_needs_no_ranges(devices):
    assert Transformation(PROGRAM, device="cuda").precision == Transformation(PROGRAM).precision == "fp32"
    rows = random_rows(20, PROGRAM.dims["old"]), random_rows(20, PROGRAM.dims["side"])
    assert choose_precision(Transformation(PROGRAM, "auto", device="cuda"), *rows).precision == "bf16"


def test_without_a_device_it_says_what_is_missing(monkeypatch):
    fake_devices.install(monkeypatch, (), "the core was built without CUDA")
    with pytest.raises(UnsupportedError, match="device cuda:0: the core was built without CUDA"):
        Transformation(PROGRAM, device="cuda")


@pytest.mark.parametrize("device", ["auto", "gpu", "cuda:0;cuda:1"])
def test_devices_that_do_not_exist(device):
    with pytest.raises(UsageError, match=f"device '{device}' does not exist"):
        Transformation(PROGRAM, device=device)


def test_fp8_has_to_be_calibrated_before_it_is_called(devices):
    h = Transformation(PROGRAM, "fp8", 1, "cuda")
    assert (h.precision, h.old_dim, h.side_dim, h.new_dim, h.is_calibrated) == ("fp8", 12, 6, 10, False)
    assert Executable.made == []
    with pytest.raises(UsageError, match="fp8 needs the range of every value that a linear layer reads"):
        h(random_rows(1, 12), random_rows(1, 6))
    ready = h.calibrated(RANGES | {"mixer.2": 9.0})  # the output, which no layer reads
    assert ready.is_calibrated and ready.ranges == RANGES and ready.digest == h.digest
    assert ready(random_rows(3, 12), random_rows(3, 6)).shape == (3, 10)
    assert Executable.made[0].arguments == {"precision": "fp8", "device": "cuda:0", "memory": 0, "ranges": RANGES}


def test_normalized_keeps_device_memory_and_ranges(devices):
    h = Transformation(PROGRAM, "fp8", 1, "cuda:1", 1 << 20, RANGES).normalized()
    assert (h.device, h.device_memory, h.ranges, h.precision) == ("cuda:1", 1 << 20, RANGES, "fp8")
    rows = h(random_rows(3, 12), random_rows(3, 6))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert not Transformation(PROGRAM, "fp8", device="cuda").normalized().is_calibrated


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan, None])
def test_ranges_that_are_none(devices, value):
    ranges = {name: number for name, number in (RANGES | {"concat": value}).items() if number is not None}
    with pytest.raises(UsageError, match=r"the range of 'concat' is .*, wanted a positive number for each of"):
        Transformation(PROGRAM, "fp8", device="cuda", ranges=ranges)


def test_ranges_are_for_precisions_that_need_them(devices):
    assert Transformation(PROGRAM, "fp16", device="cuda", ranges=RANGES).ranges is None


def test_the_cpu_has_no_fp8():
    native = ", ".join(_core.precisions())
    with pytest.raises(UnsupportedError, match=f"precision fp8: cpu has {native}"):
        Transformation(linear_map(3, 2), "fp8")


def test_ranges_of_real_rows_fit(devices):
    old, side = random_rows(50, 12), random_rows(50, 6)
    h = Transformation(PROGRAM, "fp8", device="cuda").calibrated(largest_values(PROGRAM, old, side))
    assert h.ranges["old"] == np.abs(old).max() and h.ranges["side"] == np.abs(side).max()
