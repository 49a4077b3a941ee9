"""Reading and writing the weights of a program as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fct_infer.artifacts.files import GIBIBYTE, MEBIBYTE, read_file
from fct_infer.errors import ArtifactError
from fct_infer.transformation import Float32Array, Program

MAX_HEADER_BYTES = 16 * MEBIBYTE
MAX_TENSOR_BYTES = 16 * GIBIBYTE
_LENGTH_BYTES = 8


def tensor_bytes(program: Program, metadata: dict[str, str]) -> bytes:
    """Return the weights and biases of ``program`` as a safetensors file; the same bytes for the same."""
    return _with_ordered_metadata(save(dict(program.tensors()), metadata))


def _with_ordered_metadata(data: bytes) -> bytes:
    """Sort the metadata of a safetensors file: its library writes them in an order that changes from call to call."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:end])
    header |= {name: dict(sorted(of.items())) for name, of in header.items() if name == "__metadata__"}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # tensors begin at a multiple of 8
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[end:]


def read_tensors(path: Path) -> dict[str, Float32Array]:
    """Read a safetensors file of float32 tensors.

    Returns:
        C-contiguous, aligned float32 arrays that own their memory.

    Raises:
        ArtifactError: it is truncated or malformed, its header is larger than 16 MiB, or a tensor is not float32.
    """
    data = read_file(path, MAX_TENSOR_BYTES)
    header = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or header > min(MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        raise ArtifactError(f"{path}: says its header is {header:,} bytes, in a file of {len(data):,}")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a valid safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ArtifactError(f"{path}: tensor {name!r} is {tensor.dtype}, wanted float32")
    return {name: np.array(tensor, np.float32, order="C") for name, tensor in tensors.items()}
