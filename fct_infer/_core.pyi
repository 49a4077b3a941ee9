"""Types of the compiled core (csrc/bindings)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.transformation import Float32Array, Program

__version__: str
onednn_version: str

def precisions(device: str = "cpu") -> list[str]: ...
def cpu_int8_weight_bits() -> int: ...
def cpu_instruction_set() -> str: ...
def cuda_status() -> dict[str, Any]: ...

class Executable:
    def __init__(
        self,
        program: Program,
        precision: str,
        *,
        device: str = "cpu",
        device_memory: int = 0,
        ranges: dict[str, float] | None = None,
    ) -> None: ...
    @staticmethod
    def from_function(
        function: Callable[[Float32Array, Float32Array | None, Float32Array], None],
        *,
        old_dim: int,
        side_dim: int,
        new_dim: int,
        normalize: bool,
        description: str,
    ) -> Executable: ...
    def run(self, old: NDArray[Any], side: NDArray[Any] | None, out: NDArray[Any], threads: int) -> None: ...
    def run_on_device(
        self,
        old: int,
        old_dtype: str,
        side: int,
        side_dtype: str,
        out: int,
        out_dtype: str,
        rows: int,
        stream: int,
    ) -> None: ...
    @property
    def old_dim(self) -> int: ...
    @property
    def side_dim(self) -> int: ...
    @property
    def new_dim(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def device_bytes(self) -> int: ...
    @property
    def description(self) -> str: ...

class Assigner:
    def __init__(
        self,
        centroids: Float32Array | None,
        codebooks: Float32Array | None,
        *,
        metric: str = "l2",
        by_residual: bool = True,
        reduced: bool | None = None,
        groups: tuple[Float32Array, int] | None = None,
        directions: Float32Array | None = None,
    ) -> None: ...
    def assign(self, rows: Float32Array, threads: int) -> tuple[NDArray[np.int64] | None, NDArray[np.uint8] | None]: ...
    def assign_on_device(self, rows: int, count: int) -> tuple[NDArray[np.int64] | None, NDArray[np.uint8] | None]: ...
    @property
    def dim(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def stream(self) -> int: ...
    @property
    def device_bytes(self) -> int: ...
    @property
    def description(self) -> str: ...

def device_assigner(
    centroids: Float32Array | None,
    codebooks: Float32Array | None,
    *,
    device: str,
    metric: str = "l2",
    by_residual: bool = True,
    device_memory: int = 0,
) -> Assigner: ...
def refine_centroids(
    rows: Float32Array,
    centroids: Float32Array,
    *,
    metric: str,
    spherical: bool,
    iterations: int,
    threads: int,
    groups: tuple[Float32Array, int] | None = None,
    directions: Float32Array | None = None,
) -> Float32Array: ...
def refine_codebooks(rows: Float32Array, codebooks: Float32Array, *, iterations: int, threads: int) -> Float32Array: ...
def run_pipeline(
    executable: Executable,
    *,
    read: Callable[[NDArray[Any], NDArray[Any] | None], int],
    write: Callable[[NDArray[Any]], None],
    index: Callable[[NDArray[Any], int], None] | None,
    block_rows: int,
    threads: int,
    old_dtype: str,
    side_dtype: str,
    out_dtype: str,
    side_is_old: bool,
    keep_on_device: str = "none",
) -> dict[str, float]: ...
