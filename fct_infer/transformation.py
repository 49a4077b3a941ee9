"""How a transformation is applied: NumPy in, NumPy out, or arrays on a device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.cuda import device_name, device_numbers, require
from fct_infer.device_arrays import device_call
from fct_infer.errors import ArrayError, UnsupportedError, UsageError
from fct_infer.identity import ModelId
from fct_infer.machine import usable_cpus
from fct_infer.pages import html_summary
from fct_infer.program import (
    ACTIVATIONS,
    INPUTS,
    MAX_WIDTH,
    Activation,
    Add,
    Concat,
    Float32Array,
    Linear,
    Normalize,
    Program,
    Step,
)

if TYPE_CHECKING:
    from fct_infer import _core

__all__ = [  # a transformation and what it is made of have one address
    "ACTIVATIONS",
    "INPUTS",
    "MAX_WIDTH",
    "NEEDS_RANGES",
    "Activation",
    "Add",
    "Concat",
    "Float32Array",
    "Linear",
    "Normalize",
    "Program",
    "Step",
    "Transformation",
    "thread_count",
]

MAX_THREADS = 1024  # more than any machine has CPUs
NEEDS_RANGES = ("int8", "fp8")  # precisions whose scales come from rows of a real gallery


class Transformation:
    """A program compiled for this CPU or for devices (CUDA): NumPy in, NumPy out, safe to call from many threads.

    What other runtimes compute is a :class:`fct_infer.backends.loading.RunnerTransformation`, with the same call.

    A row's result depends on nothing but the row itself: block size, thread count and neighbours do not change a
    byte on one device. Between a CPU and a device, between devices of different models, and between CPUs with different
    instruction sets the last bits may differ.

    Args:
        program: what to compute.
        precision: ``fp32``; ``bf16`` (bfloat16 products, float32 sums) where the CPU has it natively; on the CPU also
            ``int8`` (8-bit products, exact sums; weights of 7 bits where the CPU's sums of larger ones saturate); on
            devices also ``tf32``, ``fp16`` and, from compute capability 8.9 on, ``fp8``. ``auto`` is the fastest that
            proves itself on rows: the transformation can be upgraded with, which takes rows of the gallery, or handed
            to :func:`fct_infer.choose_precision`, but not called.
        threads: CPU threads a call may use; by default all this process may run on.
        device: ``cpu``, ``cuda`` (the first device), ``cuda:N``, or several: ``cuda:0,cuda:1`` share a call's rows.
        device_memory: most bytes of each device's memory to use; 0 leaves it to the core.
        ranges: for ``int8`` and ``fp8``, of each of :attr:`Program.linear_inputs` the largest absolute value that
            counts, as :func:`fct_infer.reference.largest_values` finds it; what is larger by more than a quarter (of
            fp8: than twice that) is cut. Without them the transformation can be upgraded with, which measures them on
            the gallery, but not called.

    Attributes:
        program: what it computes; None if another runtime computes something no program can hold.
        digest: SHA-256 that identifies the model: equal digests give equal results.
        precision: the precision in use; ``auto`` until it is chosen.
        choice: why it is that one, where ``auto`` was asked for; else None.
        ranges: as above; None where the precision needs none.
        backend: what computes: ``core``, ``onnxruntime``, ``torch``, ``tensorrt`` or ``tensorrt-rtx``.
        device: where it does: ``cpu``, ``cuda:0``, ``cuda:0,cuda:1``.
        device_memory: as above.
        source: the file or bundle it was loaded from; None if it was made otherwise.
        assignment: which input of a bare file was taken for which, for people; a bundle's are old and side anyway.
        old_model, new_model: whose vectors it takes, and makes; None where that is not known.
        is_trusted: whether its file may be code.
        no_device: why it runs on the CPU although ``auto`` found a device; None if that is not so.
        old_dim, side_dim, new_dim: width of the old embedding, of the side-information (0 if it takes none) and of the
            new embedding.

    Raises:
        UnsupportedError: the precision is unknown or not native on the device, or there is no such device; then the
            message says what is missing: a device, its driver, a library.
        UsageError: the device is no device, or ranges are missing or no positive numbers.
        DeviceMemoryError: a device has too little free memory, or ``device_memory`` is too little.
    """

    backend = "core"
    program: Program | None
    ranges: dict[str, float] | None = None
    device_memory = 0
    assignment: str | None = None
    no_device: str | None = None
    choice: str | None = None
    source: Path | None = None
    is_trusted = False
    old_model: ModelId | None = None
    new_model: ModelId | None = None

    def __init__(
        self,
        program: Program,
        precision: str = "fp32",
        threads: int | None = None,
        device: str = "cpu",
        device_memory: int = 0,
        ranges: Mapping[str, float] | None = None,
    ) -> None:
        from fct_infer import _core  # noqa: F401 - says what is missing before anything else does

        self.program, self.digest = program, program.digest
        self.old_dim, self.side_dim, self.new_dim = program.dims["old"], program.dims.get("side", 0), program.new_dim
        self.threads = thread_count(threads)
        self.device, self.device_memory = device_name(device), device_memory
        require(self.device)
        self.asked_threads: int | None = threads  # None: as many as there are, wherever it travels
        self.precision = precision
        self._executable: _core.Executable | None = None
        if precision == "auto":
            return
        if precision in NEEDS_RANGES and precision not in self.native_precisions:
            raise UnsupportedError(f"precision {precision}: {self.device} has {', '.join(self.native_precisions)}")
        if self.precision in NEEDS_RANGES:
            if ranges is None:
                return
            self.ranges = _checked_ranges(ranges, program)
        self._executable = self._compile(program)

    def _compile(self, program: Program) -> _core.Executable:
        from fct_infer import _core

        if self.device == "cpu":
            return _core.Executable(program, self.precision, ranges=self.ranges)
        return _core.Executable(
            program, self.precision, device=self.device, device_memory=self.device_memory, ranges=self.ranges
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as program and settings: it is compiled anew where it arrives, in the precision it had here."""
        settings = self.program, self.precision, self.asked_threads, self.device, self.device_memory, self.ranges
        return type(self), settings, {"choice": self.choice, **self.said()}

    def _with(self, program: Program, precision: str, ranges: Mapping[str, float] | None) -> Transformation:
        h = Transformation(program, precision, self.asked_threads, self.device, self.device_memory, ranges)
        vars(h).update(self.said(), choice=self.choice)
        return h

    def said(self) -> dict[str, Any]:
        """Return what is known of it that does not change what it computes."""
        names = ("no_device", "source", "is_trusted", "old_model", "new_model")
        return {name: getattr(self, name) for name in names}

    @property
    def is_normalized(self) -> bool:
        """Whether its results are L2-normalised by what it computes."""
        return self.program is not None and self.program.with_normalization() is self.program

    @property
    def native_precisions(self) -> tuple[str, ...]:
        """What the device computes in natively, slowest first."""
        from fct_infer import _core

        devices = device_numbers(self.device)
        return tuple(_core.precisions(f"cuda:{devices[0]}") if devices else _core.precisions())

    @property
    def int8_weight_bits(self) -> int | None:
        """Bits of the weights in ``int8`` on this CPU: 8, or 7 where sums of larger ones saturate; None if not int8."""
        from fct_infer import _core

        return _core.cpu_int8_weight_bits() if self.precision == "int8" and self.backend == "core" else None

    def in_precision(self, precision: str, choice: str | None = None) -> Transformation:
        """Return the same transformation in another precision, and why; see :class:`Transformation`."""
        assert self.program is not None
        h = self._with(self.program, precision, None)
        h.choice = choice
        return h

    @property
    def executable(self) -> _core.Executable:
        """The compiled program.

        Raises:
            UsageError: its precision is not chosen yet, or needs ranges that it has not.
        """
        if self._executable is None and self.precision == "auto":
            raise UsageError(
                "precision auto is chosen on rows: call fct_infer.choose_precision(h, old, side), or name one, "
                "fp32 for instance; an upgrade chooses on rows of the gallery itself"
            )
        if self._executable is None:
            raise UsageError(
                f"{self.precision} needs the range of every value that a linear layer reads: call calibrated() with "
                "those of some rows; an upgrade measures them on the gallery itself"
            )
        return self._executable

    @property
    def is_calibrated(self) -> bool:
        """Whether it can be called: its precision is chosen, and it has the ranges that one needs."""
        return self._executable is not None

    def calibrated(self, ranges: Mapping[str, float]) -> Transformation:
        """Return the same transformation with other ranges, see :class:`Transformation`."""
        assert self.program is not None
        return self._with(self.program, self.precision, ranges)

    def normalized(self) -> Transformation:
        """Return the same transformation with its results L2-normalised: itself if they are."""
        assert self.program is not None
        program = self.program.with_normalization()
        return self if program is self.program else self._with(program, self.precision, self.ranges)

    def __call__(self, old: NDArray[Any], side: NDArray[Any] | None = None) -> Float32Array:
        """Transform ``old`` (n, old_dim) and ``side`` (n, side_dim), float32 or float16, to float32 (n, new_dim).

        Raises:
            ArrayError: wrong dtype, layout or shape, naming the argument; nothing is cast or copied silently.
            NonFiniteError: a row of an input, or its result, holds NaN or infinity.
        """
        rows = old.shape[0] if isinstance(old, np.ndarray) and old.ndim else 0
        out = np.empty((rows, self.new_dim), np.float32)
        self.apply_into(old, side, out)
        return out

    def apply_into(self, old: NDArray[Any], side: NDArray[Any] | None, out: NDArray[Any]) -> None:
        """Like a call, but into ``out`` (n, new_dim), float32 or float16, which must not overlap the inputs."""
        for name, array in (("old", old), ("side", side), ("out", out)):
            if not isinstance(array, np.ndarray) and not (name == "side" and array is None):
                raise ArrayError(f"{name} is a {type(array).__name__}, wanted a NumPy array")
        self.executable.run(old, side, out, self.threads)

    def apply_on_device(self, old: Any, side: Any = None, out: Any = None, stream: Any = None) -> Any:
        """Transform rows that are in a device's memory into rows in its memory: no copy, and no wait for the result.

        ``old`` (n, old_dim), ``side`` (n, side_dim) and ``out`` (n, new_dim) are arrays with ``__dlpack__`` or
        ``__cuda_array_interface__``, as those of PyTorch and CuPy, float32 or float16, C-contiguous, on the device that
        the transformation runs on.
        As nobody waits to be told, a row that holds NaN or infinity, or whose result does, comes out as a row of NaN.

        Args:
            old: old embeddings.
            side: side-information; None if the transformation takes none.
            out: what to fill; without it a float32 array of the library that ``old`` came from.
            stream: a ``cudaStream_t`` as an integer, or an object with ``__cuda_stream__``, on which the work is
                enqueued, after all that fills the inputs; by default the one that ``old``'s library is using now.
                Memory must live until the stream has passed.

        Returns:
            ``out``, filled once the stream has passed.

        Raises:
            ArrayError: wrong dtype, layout, shape or device, naming the argument.
            UnsupportedError: the transformation does not run on one device, or the stream is being captured into a CUDA
                graph.
        """
        devices = device_numbers(self.device)
        if len(devices) != 1:
            raise UnsupportedError(
                f"arrays on a device are transformed on that device; this one runs in {self.backend} on {self.device}"
            )
        shapes = {"old": (self.old_dim,)} | ({"side": (self.side_dim,)} if self.side_dim else {})
        inputs = {"old": old, "side": side}
        call = device_call(inputs, out, stream, shapes=shapes, width=self.new_dim, device_number=devices[0])
        if call.out.rows:
            self.executable.run_on_device(*call.arguments())
        return call.result

    def __repr__(self) -> str:
        return (
            f"Transformation(old_dim={self.old_dim}, side_dim={self.side_dim}, new_dim={self.new_dim}, "
            f"backend={self.backend!r}, device={self.device!r}, precision={self.precision!r}, threads={self.threads})"
        )

    def _repr_html_(self) -> str:
        side = f" + {self.side_dim}" if self.side_dim else ""
        known = {
            "widths": f"{self.old_dim}{side} -> {self.new_dim}",
            "runs": f"by {self.backend} on {self.device} in {self.precision}, threads: {self.threads}",
        }
        return html_summary("Transformation", known)


def check_transformation(h: object) -> None:
    """Raise UsageError unless ``h`` is a transformation; a path is told how to become one."""
    if isinstance(h, Transformation):
        return
    way = f": fct_infer.load_transformation({str(h)!r})" if isinstance(h, str | Path) else " (load_transformation(...))"
    raise UsageError(f"h is a {type(h).__name__}, wanted a Transformation{way}")


def thread_count(threads: int | None) -> int:
    """Return ``threads``, at most :data:`MAX_THREADS`, or for None the CPUs this process may keep busy.

    Raises:
        UsageError: below 1.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, wanted at least 1")
    return min(threads or usable_cpus(), MAX_THREADS)


def _checked_ranges(ranges: Mapping[str, float], program: Program) -> dict[str, float]:
    wrong = [name for name in program.linear_inputs if not 0 < ranges.get(name, 0) < math.inf]
    if wrong:
        raise UsageError(
            f"the range of {wrong[0]!r} is {ranges.get(wrong[0], 'missing')}, wanted a positive number for each of "
            f"{', '.join(program.linear_inputs)}"
        )
    return {name: float(ranges[name]) for name in program.linear_inputs}
