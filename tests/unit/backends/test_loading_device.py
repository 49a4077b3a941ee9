"""Which device a transformation is loaded for; devices are stood in for by the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from support import fake_devices
from support.bundles import core_bundle
from support.fake_devices import Executable
from support.outputs import rows_for
from support.programs import plain_mlp, random_rows

from fct_infer import _core, load_transformation
from fct_infer.errors import DeviceMemoryError, ResourceError, UnsupportedError, UsageError
from fct_infer.export import Options, export_transformation

PROGRAM = plain_mlp(24, 8, 32, hidden=(40,))
DIMS = {"old": 24, "side": 8}
ROWS = [random_rows(9, dim) for dim in DIMS.values()]
MISSING = "no driver: libcuda.so.1 was not found"
NO_DEVICE = pytest.mark.skipif(
    torch.cuda.is_available() or "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="there is a device",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "h"
    export_transformation(PROGRAM, folder, Options(("core", "onnx"), ("fp32",), rows_for(DIMS, 100)))
    return folder


@pytest.mark.parametrize(
    ("device", "found"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cuda:0,cuda:1", "cuda:0,cuda:1"), ("cpu", "cpu")],
)
@pytest.mark.parametrize("backend", ["auto", "core"])
@pytest.mark.parametrize("name", ["", "model.onnx"])
def test_where_there_are_devices_the_core_runs_on_them(monkeypatch, bundle, backend, device, found, name):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))
    h = load_transformation(bundle / name, "fp32", 1, backend, device=device, device_memory=1 << 30)
    assert (h.backend, h.device, h.precision, h.device_memory) == ("core", found, "fp32", 1 << 30)


def test_precisions_of_a_device(monkeypatch, bundle):
    fake_devices.install(monkeypatch)
    assert load_transformation(bundle).precision == "fp32"
    assert load_transformation(bundle, "auto").precision == "auto"
    assert load_transformation(bundle, "tf32").precision == "tf32"
    assert not load_transformation(bundle, "fp8").is_calibrated


@pytest.mark.parametrize("name", ["", "model.onnx"])
def test_a_full_device_that_nobody_asked_for(monkeypatch, bundle, name):
    fake_devices.install(monkeypatch, full="cuda:0")
    h = load_transformation(bundle / name, device_memory=1 << 30)
    assert (h.backend, h.device, h.device_memory) == ("core", "cpu", 1 << 30)  # which still holds for an index
    assert h.no_device == "cuda:0 has too little memory: this transformation needs 90 MiB on cuda:0, at hand are 7 MiB"
    assert h.normalized().no_device == h.no_device
    assert h.precision == load_transformation(bundle / name, device="cpu").precision
    np.testing.assert_array_equal(h(*ROWS), load_transformation(bundle, device="cpu")(*ROWS))


@pytest.mark.parametrize(("device", "precision"), [("cuda", "auto"), ("cuda:0", "fp32"), ("auto", "fp16")])
def test_a_full_device_that_is_needed(monkeypatch, bundle, device, precision):
    """By name, or by a precision that the CPU has not."""
    fake_devices.install(monkeypatch, full="cuda:0")
    with pytest.raises(DeviceMemoryError, match="needs 90 MiB on cuda:0"):
        load_transformation(bundle, precision, device=device)


def test_other_failures_of_a_device_are_errors(monkeypatch, bundle):
    fake_devices.install(monkeypatch)

    def fail(*_, **__):
        raise ResourceError("cudaErrorIllegalAddress")

    monkeypatch.setattr(_core, "Executable", fail)
    with pytest.raises(ResourceError, match="IllegalAddress"):
        load_transformation(bundle)


@pytest.mark.parametrize("backend", ["core", "onnxruntime"])
def test_normalized_from_the_start(monkeypatch, bundle, backend):
    """On a device, doing so afterwards would keep two programs there."""
    fake_devices.install(monkeypatch)
    h = load_transformation(
        bundle, "fp32", backend=backend, device="auto" if backend == "core" else "cpu", normalize=True
    )
    assert len(Executable.made) == (backend == "core")
    plain = load_transformation(bundle, "fp32", backend=backend, device="cpu")
    assert h.digest == plain.normalized().digest != plain.digest
    assert h.normalized() is h
    np.testing.assert_array_equal(h(*ROWS), plain.normalized()(*ROWS))


def test_without_a_device_auto_is_the_cpu(monkeypatch, bundle):
    fake_devices.install(monkeypatch, (), MISSING)
    h = load_transformation(bundle, device_memory=1 << 30)
    assert (h.backend, h.device) == ("core", "cpu")


@NO_DEVICE
@pytest.mark.parametrize("backend", ["auto", "core"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_was_asked_for_and_is_missing(monkeypatch, bundle, tmp_path, backend, device):
    fake_devices.install(monkeypatch, (), MISSING)
    for path in (bundle, core_bundle(PROGRAM, tmp_path / "core")):
        with pytest.raises(UnsupportedError, match=f"device {device}: {MISSING}"):
            load_transformation(path, "fp32", backend=backend, device=device)


def test_a_device_too_many(monkeypatch, bundle):
    fake_devices.install(monkeypatch)
    with pytest.raises(
        UnsupportedError, match=r"device cuda:1: no device cuda:1; the core sees cuda:0 \(NVIDIA H200\)"
    ):
        load_transformation(bundle, device="cuda:1", backend="core")


def test_several_devices_are_for_the_core(monkeypatch, bundle):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))
    with pytest.raises((UsageError, UnsupportedError), match=r"cuda:0,cuda:1"):
        load_transformation(bundle, backend="onnxruntime", device="cuda:0,cuda:1")


def test_other_backends_have_no_limit_on_memory(bundle):
    with pytest.raises(UsageError, match="device_memory bounds the core; backend onnxruntime has no such limit"):
        load_transformation(bundle, backend="onnxruntime", device="cpu", device_memory=1 << 30)


def test_the_core_without_a_device_leaves_it_to_others(monkeypatch, bundle):
    """``auto`` takes another runtime's device before it gives up."""
    fake_devices.install(monkeypatch, (), MISSING)
    seen = []

    class Runner:
        def __init__(self, path, *, device, **_):
            seen.append(device)
            raise UnsupportedError(f"device {device}: this ONNX Runtime has no CUDA")

    monkeypatch.setattr("fct_infer.backends.loading.OnnxRuntimeRunner", Runner)
    with pytest.raises(UnsupportedError, match=f"device cuda: {MISSING}; device cuda: this ONNX Runtime has no CUDA"):
        load_transformation(bundle, device="cuda")
    assert seen == ["cuda"]
