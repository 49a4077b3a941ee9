"""Arrays on a device: host memory under the protocols of devices, so that everything but the device itself is real."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import fake_devices
from support.fake_devices import DlpackArray, InterfaceArray, NamespaceArray
from support.programs import linear_map, plain_mlp, random_rows

from fct_infer import device_arrays
from fct_infer.errors import ArrayError, ResourceError, UnsupportedError, UsageError
from fct_infer.transformation import Transformation

WRAPPERS = pytest.mark.parametrize("wrap", [DlpackArray, InterfaceArray, NamespaceArray])


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))


@pytest.fixture
def h() -> Transformation:
    return Transformation(plain_mlp(6, 4, 5, (8,)), "fp32", device="cuda:0")


@WRAPPERS
@pytest.mark.parametrize("dtypes", [("float32", "float32", "float32"), ("float16", "float32", "float16")])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_equals_what_numpy_arrays_give(h, wrap, dtypes, rows):
    old, side = random_rows(rows, 6).astype(dtypes[0]), random_rows(rows, 4, 1).astype(dtypes[1])
    out, wanted = np.full((rows, 5), 7, dtypes[2]), np.empty((rows, 5), dtypes[2])
    filled = wrap(out)
    assert h.apply_on_device(wrap(old), wrap(side), filled) is filled
    h.apply_into(old, side, wanted)
    np.testing.assert_array_equal(out, wanted)


@WRAPPERS
def test_without_side_information(wrap):
    h = Transformation(linear_map(6, 5), "fp32", device="cuda")
    old, out = random_rows(3, 6), np.empty((3, 5), np.float32)
    h.apply_on_device(wrap(old), None, wrap(out))
    np.testing.assert_array_equal(out, h(old))


def test_the_result_is_made_by_the_library_of_old(h):
    old, side = random_rows(3, 6), random_rows(3, 4, 1)
    out = h.apply_on_device(NamespaceArray(old), DlpackArray(side))
    assert isinstance(out, NamespaceArray)
    np.testing.assert_array_equal(out.array, h(old, side))
    assert device_arrays._empty_rows(NamespaceArray(old, device_number=1), 3, 5).device_number == 1
    with pytest.raises(ArrayError, match=r"out is missing: no way is known to make a new .*DlpackArray; pass one"):
        h.apply_on_device(DlpackArray(old), NamespaceArray(side))


def test_cupys_result_is_made_on_the_device_that_old_is_on(monkeypatch):
    """CuPy has no argument for the device: it takes the current one."""
    current = [0]

    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            current.append(self.number)

        def __exit__(self, *_):
            current.pop()

    class Array(DlpackArray):
        @property
        def device(self):
            return Device(self.device_number)

    module = SimpleNamespace(
        ndarray=Array, float32=np.float32, empty=lambda shape, dtype: Array(np.empty(shape, dtype), current[-1])
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    h = Transformation(linear_map(6, 5), "fp32", device="cuda:1")
    old = random_rows(3, 6)
    out = h.apply_on_device(Array(old, device_number=1))
    assert (out.device_number, current) == (1, [0])
    np.testing.assert_array_equal(out.array, h(old))


def changed(**changes):
    """A call's arrays by name, some of them other than right."""
    return {
        "old": DlpackArray(random_rows(9, 6)),
        "side": DlpackArray(random_rows(9, 4)),
        "out": DlpackArray(np.full((9, 5), 7, np.float32)),
    } | changes


def as_both(array: np.ndarray) -> list[object]:
    return [DlpackArray(array), InterfaceArray(array)]


WRONG = [
    ("old", DlpackArray(np.ones((9, 6))), r"old is a float64 array of shape \(9, 6\), wanted a C-contiguous float32"),
    ("old", InterfaceArray(np.ones((9, 6))), r"old is a <f8 array of shape \(9, 6\), wanted a C-contiguous float32"),
    ("old", DlpackArray(np.ones((9, 6), np.int32)), "old is a int32 array"),
    ("old", DlpackArray(np.ones((9, 6), np.complex64)), "old is a complex64 array"),
    ("old", InterfaceArray(np.ones((9, 6), ">f4")), "old is a >f4 array"),
    *(("side", each, r"side is a float32 array of shape \(4, 9\)") for each in as_both(random_rows(4, 9))),
    *(("side", each, "that is not C-contiguous") for each in as_both(np.asfortranarray(random_rows(9, 4)))),
    *(("old", each, "that is not C-contiguous") for each in as_both(random_rows(9, 12)[:, ::2])),
    *(("old", each, "that is not C-contiguous") for each in as_both(random_rows(18, 6)[::2])),
    *(("out", each, "that is not C-contiguous") for each in as_both(random_rows(9, 5)[::-1])),
    *(("out", each, r"out is a float32 array of shape \(9,\)") for each in as_both(np.ones(9, np.float32))),
    *(("out", each, r"of shape \(9, 5, 1\)") for each in as_both(np.ones((9, 5, 1), np.float32))),
    *(("out", each, "out has 8 rows, old has 9") for each in as_both(random_rows(8, 5))),
    *(("side", each, "side has 10 rows, old has 9") for each in as_both(random_rows(10, 4))),
    ("out", InterfaceArray(random_rows(9, 5), read_only=True), "out is read-only"),
    ("old", InterfaceArray(random_rows(9, 6), mask=object()), "old is a masked array"),
    ("old", DlpackArray(random_rows(9, 6), device_number=1), "old is on cuda:1, the model on cuda:0"),
    ("side", DlpackArray(random_rows(9, 4), device_number=1), "side is on cuda:1, the model on cuda:0"),
    ("out", DlpackArray(random_rows(9, 5), device_number=1), "out is on cuda:1, the model on cuda:0"),
    ("old", DlpackArray(random_rows(9, 6), memory=3), r"old is a .*DlpackArray in pinned CPU memory, wanted one in a"),
    ("old", DlpackArray(random_rows(9, 6), memory=10), "in an AMD device's memory"),
    ("old", DlpackArray(random_rows(9, 6), memory=99), "in memory that is no NVIDIA device's"),
    ("old", random_rows(9, 6), r"old is a numpy\.ndarray in CPU memory, wanted one in a device's memory"),
    ("old", torch.ones(9, 6), r"old is a torch\.Tensor in CPU memory"),
    ("side", torch.ones(9, 4), r"side is a torch\.Tensor in CPU memory"),
    ("out", torch.ones(9, 5), r"out is a torch\.Tensor in CPU memory"),
    ("old", [[1.0]], "old is a list, wanted an array in a device's memory, with __dlpack__ or __cuda_array_"),
    ("side", None, "side is missing: this transformation has two inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "array", "message"), WRONG)
def test_wrong_arguments_are_named_and_nothing_is_computed(h, name, array, message):
    call = changed(**{name: array})
    before = call["out"].array.copy() if hasattr(call["out"], "array") else None
    with pytest.raises(ArrayError, match=message) as caught:
        h.apply_on_device(**call)
    assert str(caught.value).startswith(name)
    assert h.executable.streams == []
    if before is not None:
        np.testing.assert_array_equal(call["out"].array, before)


def test_superfluous_side_information_is_refused():
    h = Transformation(linear_map(6, 5), "fp32", device="cuda")
    with pytest.raises(ArrayError, match="side was given, but this transformation has no second input"):
        h.apply_on_device(**changed())


@WRAPPERS
@pytest.mark.parametrize("name", ["old", "side"])
def test_overlap_is_refused(wrap, name):
    h = Transformation(plain_mlp(5, 5, 5, (8,)), "fp32", device="cuda")
    memory = np.ones(100, np.float32)
    call = {"old": wrap(random_rows(9, 5)), "side": wrap(random_rows(9, 5)), "out": wrap(memory[:45].reshape(9, 5))}
    call[name] = wrap(memory[44:89].reshape(9, 5))
    with pytest.raises(ArrayError, match=f"out shares memory with {name}"):
        h.apply_on_device(**call)
    call[name] = wrap(memory[45:90].reshape(9, 5))
    h.apply_on_device(**call)


def test_an_address_that_does_not_suit_the_dtype(h):
    raw = np.zeros(9 * 6 * 4 + 1, np.uint8)[1:]
    with pytest.raises(ArrayError, match=r"old is .* at an address that does not suit its dtype"):
        h.apply_on_device(**changed(old=InterfaceArray(raw.view(np.float32).reshape(9, 6))))


def test_strides_of_single_rows_mean_nothing(h):
    row = InterfaceArray(random_rows(1, 6), strides=(400, 4))
    h.apply_on_device(row, InterfaceArray(random_rows(1, 4)), InterfaceArray(np.empty((1, 5), np.float32)))


def test_what_a_library_does_not_export_is_named(h):
    class Refusing(DlpackArray):
        def __dlpack__(self, stream=None):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(ArrayError, match=r"side: a .*Refusing that is not exported: .* use tensor\.detach\(\)"):
        h.apply_on_device(**changed(side=Refusing(random_rows(9, 4))))

    class Raising:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("requires grad")

    with pytest.raises(ArrayError, match=r"old: a .*Raising that is not exported: requires grad"):
        device_arrays.device_rows("old", Raising(), 6, 1)


# -- streams -----------------------------------------------------------------------------------------------------------


class Stream:
    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


@pytest.mark.parametrize(("stream", "used"), [(77, 77), (0, 1), (1, 1), (2, 2), (Stream(88), 88), (Stream(0), 1)])
def test_the_stream_asked_for_is_used_and_producers_order_themselves_before_it(h, stream, used):
    call = changed()
    h.apply_on_device(**call, stream=stream)
    assert h.executable.streams == [used]
    assert [call[name].streams for name in ("old", "side", "out")] == [[used]] * 3


@pytest.mark.parametrize("stream", ["7", 7.0, -1, object()])
def test_what_is_no_stream_is_refused(h, stream):
    with pytest.raises(ArrayError, match=r"stream is .*, wanted an integer or an object with __cuda_stream__"):
        h.apply_on_device(**changed(), stream=stream)


def test_unasked_the_stream_of_old_is_used(h, monkeypatch):
    waited = []
    monkeypatch.setattr(device_arrays, "_wait_for", lambda name, address, stream: waited.append((name, stream)))
    side, out = InterfaceArray(random_rows(9, 4), 55), InterfaceArray(np.empty((9, 5), np.float32), 44)
    h.apply_on_device(InterfaceArray(random_rows(9, 6), 44), side, out)
    assert h.executable.streams == [44]
    assert waited == [("side", 55)]
    h.apply_on_device(**changed())
    assert h.executable.streams == [44, 1]


def test_torchs_current_stream_is_found_without_importing_it(monkeypatch):
    class Tensor(DlpackArray):
        is_cuda, device = True, "cuda:1"

    class Cuda:
        @staticmethod
        def current_stream(device):
            return type("Stream", (), {"cuda_stream": {"cuda:1": 66, "cuda:0": 0}[device]})

    module = type("torch", (), {"Tensor": Tensor, "cuda": Cuda})
    monkeypatch.setitem(sys.modules, "torch", module)
    tensor = Tensor(random_rows(2, 2))
    assert device_arrays.stream_of(tensor) == 66
    tensor.device = "cuda:0"
    assert device_arrays.stream_of(tensor) == 1
    monkeypatch.delitem(sys.modules, "torch")
    assert device_arrays.stream_of(tensor) == 1


def test_waiting_without_a_driver_is_an_error(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(device_arrays.ctypes, "CDLL", absent)
    with pytest.raises(ResourceError, match=r"old: cannot wait for its stream: libcuda\.so\.1"):
        device_arrays.device_rows("old", InterfaceArray(random_rows(2, 3), 9), 3, 1)


class Driver:
    """NVIDIA's, on a thread without a context; memory is on device 1, stream 9 has failed."""

    def __init__(self):
        self.contexts, self.retained = [], 0

    def cuPointerGetAttribute(self, device, attribute, address):  # noqa: N802
        assert (attribute, address.value > 0) == (device_arrays._DEVICE_ORDINAL, True)
        device._obj.value = 1
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
        context._obj.value = 100 + device.value
        self.retained += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device):  # noqa: N802
        self.retained -= 1
        return 0 if device.value == 1 else 101

    def cuCtxPushCurrent_v2(self, context):  # noqa: N802
        self.contexts.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context):  # noqa: N802
        context._obj.value = self.contexts.pop()
        return 0

    def cuStreamSynchronize(self, stream):  # noqa: N802
        if self.contexts != [101]:
            return 201
        return 400 if stream.value == 9 else 0


@pytest.mark.parametrize("stream", [2, 8])
def test_a_producers_stream_is_waited_for_on_the_device_that_its_memory_is_on(monkeypatch, stream):
    driver = Driver()
    monkeypatch.setattr(device_arrays.ctypes, "CDLL", lambda name: driver)
    assert device_arrays.device_rows("old", InterfaceArray(random_rows(2, 3), stream), 3, 1).rows == 2
    with pytest.raises(ResourceError, match=r"old: .* CUDA driver error 400 of cuStreamSynchronize"):
        device_arrays.device_rows("old", InterfaceArray(random_rows(2, 3), 9), 3, 1)
    assert (driver.contexts, driver.retained) == ([], 0)


def test_for_no_rows_nothing_is_waited_for(monkeypatch):
    monkeypatch.setattr(device_arrays, "_wait_for", None)
    assert device_arrays.device_rows("old", InterfaceArray(random_rows(0, 3), 9), 3, 1).rows == 0


# -- life and place ----------------------------------------------------------------------------------------------------


def test_nothing_is_kept_alive_after_the_call(h):
    call = changed()
    memory = [weakref.ref(each.array) for each in call.values()]
    h.apply_on_device(**call)
    del call
    gc.collect()
    assert [each() for each in memory] == [None] * 3


@pytest.mark.parametrize("device", ["cpu", "cuda:0,cuda:1"])
def test_only_the_core_on_one_device_takes_them(device):
    h = Transformation(linear_map(6, 5), "fp32", device=device)
    with pytest.raises(UnsupportedError, match=f"this one runs in core on {device}"):
        h.apply_on_device(DlpackArray(random_rows(3, 6)), None, DlpackArray(random_rows(3, 5)))


def test_not_before_it_is_calibrated():
    h = Transformation(linear_map(6, 5), "fp8", device="cuda")
    with pytest.raises(UsageError, match="fp8 needs the range"):
        h.apply_on_device(DlpackArray(random_rows(3, 6)), None, DlpackArray(random_rows(3, 5)))
