from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from support import fake_devices

from fct_infer import _core, cuda
from fct_infer.errors import DeviceMemoryError, UnsupportedError, UsageError


@pytest.mark.parametrize(
    ("device", "numbers", "name"),
    [
        ("cpu", (), "cpu"),
        ("cuda", (0,), "cuda:0"),
        ("cuda:0", (0,), "cuda:0"),
        ("cuda:7", (7,), "cuda:7"),
        ("cuda:1,cuda:0", (1, 0), "cuda:1,cuda:0"),
        ("cuda,cuda:3", (0, 3), "cuda:0,cuda:3"),
    ],
)
def test_a_device_has_one_name(device, numbers, name):
    assert cuda.device_numbers(device) == numbers
    assert cuda.device_name(device) == name


@pytest.mark.parametrize(
    "device", ["", "auto", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0,", "cuda:0,cpu", "cpu,cpu"]
)
def test_other_names_do_not_exist(device):
    with pytest.raises(UsageError, match="does not exist; there is auto, cpu, cuda, cuda:0"):
        cuda.device_numbers(device)


@pytest.mark.parametrize("device", ["cuda:1,cuda:1", "cuda,cuda:0"])
def test_a_device_is_named_once(device):
    with pytest.raises(UsageError, match="names a device twice"):
        cuda.device_numbers(device)


def test_what_the_core_says_of_devices(monkeypatch):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA L4"))
    status = cuda.cuda_status()
    assert [
        (device_number.index, device_number.name, device_number.compute_capability) for device_number in status.devices
    ] == [
        (0, "NVIDIA H200", "9.0"),
        (1, "NVIDIA L4", "9.0"),
    ]
    assert (status.missing, status.driver, status.cublaslt) == (None, "13.0", "13.1")
    assert cuda.first_device() == "cuda:0"
    assert cuda.device_text("cuda:1,cuda:0") == "cuda:1 (NVIDIA L4), cuda:0 (NVIDIA H200)"
    cuda.require("cuda:1,cuda:0")
    with pytest.raises(
        UnsupportedError, match=r"device cuda:2: no device cuda:2; the core sees cuda:0 \(NVIDIA H200\)"
    ):
        cuda.require("cuda:2")


@pytest.mark.parametrize("names", [(), ("NVIDIA H200",)])
def test_what_is_missing_is_passed_on(monkeypatch, names):
    fake_devices.install(monkeypatch, names, "no driver: libcuda.so.1 was not found")
    assert cuda.cuda_status().devices == ()
    assert cuda.first_device() == "cpu"
    assert cuda.device_text("cuda:0") == "cuda:0"
    with pytest.raises(UnsupportedError, match=r"device cuda: no driver: libcuda\.so\.1 was not found"):
        cuda.require("cuda")


def test_a_device_too_old_is_not_taken_unasked(monkeypatch):
    fake_devices.install(monkeypatch, ("Tesla T4", "NVIDIA L4"))

    def precisions(device="cpu"):
        if device == "cuda:0":
            raise UnsupportedError("cuda:0 (Tesla T4, compute capability 7.5) is too old")
        return ["fp32"]

    monkeypatch.setattr(_core, "precisions", precisions)
    assert cuda.first_device() == "cuda:1"
    monkeypatch.setattr(_core, "precisions", lambda device: precisions("cuda:0"))
    assert cuda.first_device() == "cpu"


def test_a_device_too_full_to_be_set_up_is_the_first_one_all_the_same(monkeypatch):
    """Whoever uses it says what to do about that."""
    fake_devices.install(monkeypatch)

    def full(device):
        raise DeviceMemoryError("CUDA driver: retain: CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(_core, "precisions", full)
    assert cuda.first_device() == "cuda:0"


def test_a_driver_without_a_device(monkeypatch):
    fake_devices.install(monkeypatch, ())
    assert cuda.cuda_status().missing == "this machine has no device"


def test_the_cpu_asks_for_nothing(monkeypatch):
    def never():
        raise AssertionError("asked for devices")

    monkeypatch.setattr(_core, "cuda_status", never, raising=False)
    assert cuda.missing_for("cpu") is None
    assert cuda.device_text("cpu") == "cpu"


class Located:
    """A file of an installed package."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, Path(path).name

    def locate(self) -> Path:
        return Path("/packages") / self.path


@pytest.fixture
def loaded(monkeypatch):
    """Paths that are loaded instead of being loaded."""
    paths = []

    def load(path, mode=None):
        if mode is not None:  # not the driver
            paths.append((path, mode))

    monkeypatch.setattr(ctypes, "CDLL", load)
    cuda._load_cublaslt.cache_clear()
    yield paths
    cuda._load_cublaslt.cache_clear()


def test_the_library_of_the_package_is_loaded_once(monkeypatch, loaded):
    names = ["nvidia/cu13/lib/libcublas.so.13", "nvidia/cu13/lib/libcublasLt.so.13", "nvidia/cu13/include/cublasLt.h"]
    monkeypatch.setattr(cuda, "files", lambda package: [Located(name) for name in names])
    cuda._load_cublaslt()
    cuda._load_cublaslt()
    assert loaded == [("/packages/nvidia/cu13/lib/libcublasLt.so.13", ctypes.RTLD_GLOBAL)]


def test_without_the_package_nothing_is_loaded(monkeypatch, loaded):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(cuda, "files", absent)
    cuda._load_cublaslt()
    monkeypatch.setattr(cuda, "files", lambda package: None)  # installed without a list of files
    cuda._load_cublaslt.cache_clear()
    cuda._load_cublaslt()
    assert loaded == []


def test_without_a_driver_nothing_is_loaded(monkeypatch):
    def absent(path, **_):
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setattr(cuda, "files", lambda package: pytest.fail("looked for the library"))
    cuda._load_cublaslt.__wrapped__()


def test_a_library_that_does_not_load_is_left_to_the_core_to_report(monkeypatch, tmp_path):
    (tmp_path / "libcublasLt.so.13").write_bytes(b"not a library")
    file, load = Located(str(tmp_path / "libcublasLt.so.13")), ctypes.CDLL
    monkeypatch.setattr(cuda, "files", lambda package: [file])
    monkeypatch.setattr(ctypes, "CDLL", lambda path, **mode: load(path, **mode) if mode else None)
    cuda._load_cublaslt.__wrapped__()
