from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save
from support.programs import residual_mlp

from fct_infer.artifacts.tensors import MAX_HEADER_BYTES, read_tensors, tensor_bytes
from fct_infer.errors import ArtifactError

PROGRAM = residual_mlp(5, 4, inner=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tensors") / "transformation.safetensors"


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_round_trip_is_exact_and_ready_to_use(path):
    path.write_bytes(tensor_bytes(PROGRAM, {"model_version": "v1"}))
    tensors, wanted = read_tensors(path), PROGRAM.tensors()
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, wanted[name])
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous and tensor.flags.aligned and tensor.flags.owndata


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header is 0 bytes, in a file of 0"),
        (b"\x01\x02", "in a file of 2"),
        (struct.pack("<Q", 100 << 20) + b"{}", "header is 104,857,600 bytes"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header is 18,446,744,073,709,551,615 bytes"),
        (with_header(b"not json"), "not a valid safetensors file"),
        (with_header([]), "not a valid safetensors file"),
        (with_header(b"[" * 100_000), "not a valid safetensors file"),
        (with_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "not a valid safetensors file"),
        (
            with_header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}, b"\0" * 16),
            "not a valid safetensors file",
        ),
        (
            with_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, b"\0" * 24),
            "not a valid safetensors file",
        ),
        (
            with_header({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 8),
            "not a valid safetensors file",
        ),
        (save({"a": np.zeros(4, np.float64)}), "tensor 'a' is float64, wanted float32"),
        (save({"a": np.zeros(4, np.float16)}), "tensor 'a' is float16, wanted float32"),
        (tensor_bytes(PROGRAM, {})[:-1], "not a valid safetensors file"),
        (tensor_bytes(PROGRAM, {}) + b"\0", "not a valid safetensors file"),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else value,
)
def test_malformed_files_are_refused(path, data, message):
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"transformation\.safetensors: .*{message}"):
        read_tensors(path)


def test_a_header_over_the_limit_is_refused_before_it_is_parsed(path):
    path.write_bytes(with_header(b"{" + b" " * MAX_HEADER_BYTES + b"}"))
    with pytest.raises(ArtifactError, match="says its header is"):
        read_tensors(path)


@given(st.binary(max_size=80), st.integers(0, 200))
def test_random_headers_are_an_artifact_error(path, data, length):
    path.write_bytes(struct.pack("<Q", length) + data)
    with pytest.raises(ArtifactError):
        read_tensors(path)


def test_the_same_program_gives_the_same_bytes():
    """So that an upgrade goes on with a bundle that was made again."""
    metadata = {f"key{number}": f'Wert \u00e4 "{number}"' for number in range(12)}
    files = {tensor_bytes(PROGRAM, dict(order)) for order in (metadata.items(), reversed(metadata.items()))}
    assert len(files) == 1
    data = files.pop()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert {name: tensor.tobytes() for name, tensor in load(data).items()} == {
        name: tensor.tobytes() for name, tensor in PROGRAM.tensors().items()
    }
