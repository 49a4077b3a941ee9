"""Rows in a device's memory, of any array that speaks DLPack or the CUDA array interface (PyTorch, CuPy, Numba ...).

Neither PyTorch nor CuPy is imported: an array of theirs brings all that is asked here.
DLPack: https://dmlc.github.io/dlpack/latest/python_spec.html
CUDA array interface, version 3: https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fct_infer.errors import ArrayError, ResourceError

LEGACY_STREAM = 1  # the default stream, in both protocols and as a cudaStream_t
_CUDA, _CUDA_MANAGED = 2, 13  # kinds of memory in DLPack
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL of cuda.h
_MEMORIES = {1: "CPU memory", 3: "pinned CPU memory", 10: "an AMD device's memory"}
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_DTYPES = {"float32": 4, "float16": 2}
_TYPESTRS = {"<f4": "float32", "<f2": "float16"}


@dataclass(frozen=True)
class DeviceRows:
    """Rows (n, width), or (n, channels, height, width) if they are images, C-contiguous, float32 or float16.

    Attributes:
        name: of the argument they came as.
        address: of the first row; 0 if there are none.
        device_number: of the device whose memory they are in; None if the array does not tell.
        owner: keeps the memory alive.
    """

    name: str
    address: int
    rows: int
    dtype: str
    size: int
    device_number: int | None
    owner: object

    @property
    def row_size(self) -> int:
        """Bytes of a row; there must be one."""
        return self.size // self.rows

    def row_address(self, row: int) -> int:
        """Return where a row begins."""
        return self.address + row * self.row_size

    def overlaps(self, other: DeviceRows) -> bool:
        """Say whether two share memory."""
        return self.address < other.address + other.size and other.address < self.address + self.size


@dataclass(frozen=True)
class FinishedRows:
    """A view of float32 rows (rows, width) that lie complete in a device's memory, as an array others can read."""

    address: int
    rows: int
    width: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self.rows, self.width),
            "typestr": "<f4",
            "data": (self.address, True),
            "strides": None,
            "version": 3,
            "stream": None,  # nothing has to be waited for
        }

    def __getitem__(self, part: slice) -> FinishedRows:
        start, stop, _ = part.indices(self.rows)
        return FinishedRows(self.address + start * self.width * _DTYPES["float32"], stop - start, self.width)


@dataclass(frozen=True)
class DeviceCall:
    """Checked arguments of one call; ``result`` is the array that ``out`` is in."""

    inputs: dict[str, DeviceRows]
    out: DeviceRows
    stream: int
    result: Any

    def arguments(self) -> tuple[int, str, int, str, int, str, int, int]:
        """Return those of a transformation as the core's ``run_on_device`` takes them."""
        old, found = self.inputs["old"], self.inputs.get("side")
        side = (found.address, found.dtype) if found else (0, old.dtype)
        return old.address, old.dtype, *side, self.out.address, self.out.dtype, self.out.rows, self.stream


def device_call(
    inputs: Mapping[str, Any],
    out: Any,
    stream: Any,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    width: int,
    device_number: int,
    dtypes: Collection[str] = tuple(_DTYPES),
) -> DeviceCall:
    """Check the arguments of one call of a model.

    Args:
        inputs: arrays by name; None is the same as no array.
        out: what will be filled; None makes it.
        stream: of the caller; None takes that of the first input's library.
        shapes: of one row of each input that the model has.
        width: of a row of ``out``.
        device_number: of the one that the model runs on.
        dtypes: that it takes and makes.

    Raises:
        ArrayError: one of them is not as wanted, or they do not go together.
        ResourceError: the driver fails.
    """
    first = next(iter(inputs))
    for name, array in inputs.items():
        if array is None and name in shapes and name != first:
            raise ArrayError(f"{name} is missing: this transformation has two inputs")
        if array is not None and name not in shapes:
            raise ArrayError(f"{name} was given, but this transformation has no second input")
    handle = stream_of(inputs[first]) if stream is None else stream_handle(stream)
    rows = {
        name: device_rows(name, array, shapes[name], handle, dtypes=dtypes)
        for name, array in inputs.items()
        if name in shapes
    }
    result = _empty_rows(inputs[first], rows[first].rows, width) if out is None else out
    out_rows = device_rows("out", result, width, handle, dtypes=dtypes, written=True)
    _check_together(list(rows.values()), out_rows, device_number)
    return DeviceCall(rows, out_rows, handle, result)


def _check_together(inputs: list[DeviceRows], out: DeviceRows, device_number: int) -> None:
    first = inputs[0]
    for rows in (*inputs, out):
        if rows.device_number not in (None, device_number):
            raise ArrayError(f"{rows.name} is on cuda:{rows.device_number}, the model on cuda:{device_number}")
        if rows.rows != first.rows:
            raise ArrayError(f"{rows.name} has {rows.rows} rows, {first.name} has {first.rows}")
    for rows in inputs:
        if out.overlaps(rows):
            raise ArrayError(f"out shares memory with {rows.name}")


def device_rows(
    name: str,
    array: Any,
    row: int | tuple[int, ...],
    stream: int,
    *,
    dtypes: Collection[str] = tuple(_DTYPES),
    written: bool = False,
) -> DeviceRows:
    """Read an array's protocol and see to it that work on ``stream`` comes after the work that fills the array.

    Args:
        name: of the argument, for errors.
        array: with ``__dlpack__`` or ``__cuda_array_interface__``; DLPack is asked first, for it orders streams itself.
        row: width, or shape, that its rows must have.
        stream: ``cudaStream_t`` that the rows will be used on.
        dtypes: one of which it must have, ``float32`` or ``float16``.
        written: whether they will be written to.

    Raises:
        ArrayError: it is no array on a device, or its dtype, layout or shape is not as wanted.
        ResourceError: the driver fails.
    """
    if hasattr(array, "__dlpack_device__"):
        found = _from_dlpack(name, array, stream)
    elif (interface := _interface(name, array)) is not None:
        found = _from_cuda_array_interface(name, interface, stream, written)
    else:
        raise ArrayError(
            f"{name} is a {_type_name(array)}, wanted an array in a device's memory, with __dlpack__ or "
            "__cuda_array_interface__, as those of PyTorch and CuPy"
        )
    return _checked(name, found, (row,) if isinstance(row, int) else row, dtypes)


def stream_of(array: Any) -> int:
    """Return the stream that the library an array came from is using now; the default stream if it does not tell."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if not array.is_cuda:
            return LEGACY_STREAM  # refused later, by name
        return int(torch.cuda.current_stream(array.device).cuda_stream) or LEGACY_STREAM
    try:
        interface = getattr(array, "__cuda_array_interface__", None) or {}
    except Exception:  # an array that is not exported: refused later, by name
        return LEGACY_STREAM
    return interface.get("stream") or LEGACY_STREAM


def stream_handle(stream: Any) -> int:
    """Return the ``cudaStream_t`` of an integer, or of an object with ``__cuda_stream__`` (PyTorch, CuPy, cuda.core).

    Raises:
        ArrayError: it is neither.
    """
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    if not isinstance(stream, int) or stream < 0:
        raise ArrayError(f"stream is {stream!r}, wanted an integer or an object with __cuda_stream__")
    return stream or LEGACY_STREAM


def _empty_rows(like: Any, rows: int, width: int) -> Any:
    """Return a new float32 array (rows, width) of the library and on the device that ``like`` is of.

    Raises:
        ArrayError: that library has no way to ask for one that is known here.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return like.new_empty((rows, width), dtype=torch.float32)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(like, cupy.ndarray):
        with like.device:  # it has no argument for the device, and its arrays do not name their namespace
            return cupy.empty((rows, width), dtype=cupy.float32)
    if hasattr(like, "__array_namespace__"):
        namespace = like.__array_namespace__()
        return namespace.empty((rows, width), dtype=namespace.float32, device=like.device)
    raise ArrayError(f"out is missing: no way is known to make a new {_type_name(like)}; pass one to be filled")


@dataclass(frozen=True)
class _Found:
    """What a protocol told; strides in elements, None if C-contiguous."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device_number: int | None
    owner: object


class _DlTensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h, the first member of what a capsule named "dltensor" points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _from_dlpack(name: str, array: Any, stream: int) -> _Found:
    """Read an unversioned capsule, which is never made of a read-only array; it is not consumed, so it frees itself."""
    memory, device_number = (int(value) for value in array.__dlpack_device__())
    if memory not in (_CUDA, _CUDA_MANAGED):
        where = _MEMORIES.get(memory, "memory that is no NVIDIA device's")
        raise ArrayError(f"{name} is a {_type_name(array)} in {where}, wanted one in a device's memory")
    try:
        capsule = array.__dlpack__(stream=stream)
        tensor = _DlTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    except Exception as error:  # each library has its own for arrays it does not export, such as those with gradients
        raise ArrayError(f"{name}: a {_type_name(array)} that is not exported: {error}") from error
    dtype = f"{_KINDS.get(tensor.code, 'unknown')}{tensor.bits}" + (f"x{tensor.lanes}" if tensor.lanes != 1 else "")
    return _Found(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        dtype=dtype,
        device_number=device_number,
        owner=capsule,
    )


def _interface(name: str, array: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = getattr(array, "__cuda_array_interface__", None)
    except Exception as error:  # as above
        raise ArrayError(f"{name}: a {_type_name(array)} that is not exported: {error}") from error
    return found


def _from_cuda_array_interface(name: str, interface: dict[str, Any], stream: int, written: bool) -> _Found:
    (address, read_only), typestr = interface["data"], interface["typestr"]
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    if interface.get("mask") is not None:
        raise ArrayError(f"{name} is a masked array, wanted one without a mask")
    if written and read_only:
        raise ArrayError(f"{name} is read-only")
    producer = interface.get("stream")
    if address and producer is not None and producer != stream:
        _wait_for(name, address, producer)
    dtype = _TYPESTRS.get(typestr, typestr)
    size = _DTYPES.get(dtype, 1)
    strides = None if strides is None else tuple(stride / size for stride in strides)
    return _Found(address or 0, shape, strides, dtype, None, interface)


def _wait_for(name: str, address: int, stream: int) -> None:
    """Wait until a producer's stream has done its work: the interface names the stream, but orders nothing itself.

    The default streams are those of the current context, and a thread that has not used the device has none: that
    of the device whose memory the address is in is made current meanwhile.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ResourceError(f"{name}: cannot wait for its stream: {error}") from error

    def call(function: str, *arguments: Any) -> None:
        result = getattr(driver, function)(*arguments)
        if result:
            raise ResourceError(f"{name}: cannot wait for its stream: CUDA driver error {result} of {function}")

    call("cuPointerGetAttribute", ctypes.byref(device), _DEVICE_ORDINAL, ctypes.c_uint64(address))
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        call("cuCtxPushCurrent_v2", context)
        try:
            call("cuStreamSynchronize", ctypes.c_void_p(stream))
        finally:
            call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    finally:
        call("cuDevicePrimaryCtxRelease_v2", device)


def _checked(name: str, found: _Found, row: tuple[int, ...], dtypes: Collection[str]) -> DeviceRows:
    shape = ", ".join(map(str, ("n", *row)))
    wanted = f"wanted a C-contiguous {' or '.join(dtypes)} array of shape ({shape})"
    text = f"{name} is a {found.dtype} array of shape {found.shape}"
    if found.dtype not in dtypes or not found.shape or found.shape[1:] != row:
        raise ArrayError(f"{text}, {wanted}")
    if not _is_contiguous(found.shape, found.strides):
        raise ArrayError(f"{text} that is not C-contiguous, {wanted}")
    if found.address % _DTYPES[found.dtype]:
        raise ArrayError(f"{text} at an address that does not suit its dtype, {wanted}")
    size = math.prod(found.shape) * _DTYPES[found.dtype]
    return DeviceRows(name, found.address, found.shape[0], found.dtype, size, found.device_number, found.owner)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Strides of axes with one element, and of arrays with none, mean nothing."""
    if strides is None or 0 in shape:
        return True
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
