"""The .npy header: what NumPy writes is read back; all else is refused, quickly, by name, and without running code."""

from __future__ import annotations

import io
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fct_infer.errors import GalleryError
from fct_infer.storage import ReadFile, npy_header_bytes, read_npy_header

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
DTYPES = st.sampled_from(["<f4", "<f2", "<f8", "<i8", "<i4", "|u1", "|b1", "|S1", "|S40", "<U1", "<U13", "<c8"])


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def header_file(text: str | bytes, data: bytes = b"", version: int = 1) -> bytes:
    """A file with any header text."""
    raw = text if isinstance(text, bytes) else text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(raw).to_bytes(2 if version == 1 else 4, "little") + raw + data


def read(path):
    with ReadFile(path) as file:
        return read_npy_header(file)


@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, dtype=DTYPES, version=st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_what_numpy_writes_is_read_back(tmp_path_factory, shape, dtype, version):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    array = np.zeros(shape, dtype)
    data = npy_bytes(array, version)
    path.write_bytes(data)
    header = read(path)
    assert header.shape == array.shape
    assert header.dtype == array.dtype
    assert header.data_offset == len(data) - array.nbytes
    if shape:
        assert header.row_bytes * shape[0] == array.nbytes


@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, dtype=DTYPES)
def test_our_header_is_numpys_own(shape, dtype):
    array = np.zeros(shape, dtype)
    assert npy_header_bytes(array.shape, array.dtype) + array.tobytes() == npy_bytes(array)


def test_a_large_header_is_read_and_a_huge_one_refused(tmp_path):
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"
    (tmp_path / "large.npy").write_bytes(header_file(text + " " * 30_000, bytes(4), 2))
    assert read(tmp_path / "large.npy").shape == (1,)
    (tmp_path / "huge.npy").write_bytes(header_file(text + " " * 70_000, bytes(4), 2))
    with pytest.raises(GalleryError, match=r"huge.npy: header of 70057 bytes"):
        read(tmp_path / "huge.npy")


@pytest.mark.parametrize("shape", [(64, 1), (1, 64), (64,), (), (1, 7, 1)], ids=str)
def test_fortran_order_of_one_row_or_column_is_the_same_bytes(tmp_path, shape):
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    text = str({"descr": "<f4", "fortran_order": True, "shape": shape})
    (tmp_path / "a.npy").write_bytes(header_file(text, array.tobytes()))
    assert read(tmp_path / "a.npy").shape == shape
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)  # NumPy reads the same numbers


GOOD = npy_bytes(np.arange(12, dtype=np.float32).reshape(3, 4))
FIELDS = "{'descr': %s, 'fortran_order': %s, 'shape': %s, }"
BAD = {
    "empty": (b"", "not a .npy file"),
    "text": (b"id,embedding\n1,2\n", "not a .npy file"),
    "zip (npz)": (b"PK\x03\x04" + bytes(100), "not a .npy file"),
    "pickle": (pickle.dumps([1, 2, 3]), "not a .npy file"),
    "magic only": (GOOD[:6], "version"),
    "version 9": (GOOD[:6] + b"\x09\x00" + GOOD[8:], "version 9.0"),
    "cut in the length": (GOOD[:9], "truncated"),
    "cut in the header": (GOOD[:60], "truncated"),
    "no data": (GOOD[:128], "truncated"),
    "last byte missing": (GOOD[:-1], r"is truncated: float32 \(3, 4\) takes 176 bytes, the file has 175"),
    "one byte too many": (GOOD + b"x", "longer than its header says"),
    "length field lies": (GOOD[:8] + b"\xff\xff" + GOOD[10:], "truncated"),
    "Fortran order": (npy_bytes(np.asfortranarray(np.zeros((3, 4)))), "Fortran order"),
    "object array": (npy_bytes(np.array([{"a": 1}, None])), "Python objects"),
    "structured": (npy_bytes(np.zeros(3, [("a", "f4"), ("b", "i4")])), "structured"),
    "big-endian": (npy_bytes(np.zeros(3, ">f4")), "big-endian"),
    "big-endian str": (npy_bytes(np.zeros(3, ">U4")), "big-endian"),
    "negative shape": (header_file(FIELDS % ("'<f4'", False, "(-1, 4)")), "negative"),
    "huge shape": (header_file(FIELDS % ("'<f4'", False, f"({1 << 60}, 4)")), "absurd"),
    "shape beyond the file": (header_file(FIELDS % ("'<f4'", False, f"({1 << 40}, 4)")), "truncated"),
    "shape of many zeros": (header_file(FIELDS % ("'<f4'", False, "(0,) * 3")), "malformed"),
    "shape of floats": (header_file(FIELDS % ("'<f4'", False, "(1.0, 2)")), "integers"),
    "shape of bools": (header_file(FIELDS % ("'<f4'", False, "(True, 2)")), "integers"),
    "shape a list": (header_file(FIELDS % ("'<f4'", False, "[1, 2]")), "integers"),
    "many axes": (header_file(FIELDS % ("'<f4'", False, "(" + "1," * 1000 + ")")), "absurd"),
    "order a number": (header_file(FIELDS % ("'<f4'", 0, "(1, 2)")), "fortran_order"),
    "unknown dtype": (header_file(FIELDS % ("'<q7'", False, "(1, 2)")), "not a dtype"),
    "impossible float": (header_file(FIELDS % ("'<f3'", False, "(1, 2)")), "not a dtype"),
    "huge item": (header_file(FIELDS % ("'|S999999999999'", False, "(1, 2)")), "not a dtype"),
    "zero-width item": (header_file(FIELDS % ("'|S0'", False, "(1,)")), "zero bytes"),
    "descr a number": (header_file(FIELDS % (7, False, "(1, 2)")), "not a dtype"),
    "object by name": (header_file(FIELDS % ("'|O'", False, "(1,)"), bytes(8)), "Python objects"),
    "subarray": (header_file(FIELDS % ("'(2,2)f4'", False, "(1, 2)")), "not a dtype"),
    "missing key": (header_file("{'descr': '<f4', 'shape': (1,)}"), "keys"),
    "extra key": (header_file(FIELDS[:-1] % ("'<f4'", False, "(1,)") + "'x': 1}"), "keys"),
    "not a dict": (header_file("['descr']"), "keys"),
    "a call": (header_file("__import__('os').system('true')"), "literal"),
    "deep brackets": (header_file("(" * 60_000), "literal"),
    "deep signs": (header_file("-" * 60_000 + "1"), "literal"),
    "deep attribute": (header_file("a" + ".b" * 30_000), "literal"),
    "deep dicts": (header_file("{1:" * 20_000), "literal"),
    "huge number": (header_file(FIELDS % ("'<f4'", False, "(" + "9" * 50_000 + ",)")), "literal"),
    "null bytes": (header_file(b"{'descr': '<f4'\x00}"), "literal"),
    "not UTF-8": (header_file(b"\xff\xfe{}", version=3), "malformed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_refused_by_name(tmp_path, name):
    data, words = BAD[name]
    (tmp_path / "bad.npy").write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(GalleryError, match=words) as caught:
        read(tmp_path / "bad.npy")
    assert str(tmp_path / "bad.npy") in str(caught.value)
    assert time.perf_counter() - start < 60


def test_a_size_that_overflows_64_bits_is_not_mistaken_for_a_small_one(tmp_path):
    shape = ",".join([str(1 << 32)] * 4)  # the product is 0 modulo 2^64
    (tmp_path / "bad.npy").write_bytes(header_file(FIELDS % ("'<f4'", False, f"({shape})")))
    with pytest.raises(GalleryError, match="truncated"):
        read(tmp_path / "bad.npy")


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=300), keep=st.integers(0, 128))
def test_random_bytes_never_raise_anything_else(tmp_path_factory, junk, keep):
    path = tmp_path_factory.mktemp("junk") / "a.npy"
    path.write_bytes(GOOD[:keep] + junk)
    try:
        header = read(path)
    except GalleryError:
        return
    assert header.data_offset + int(np.prod(header.shape)) * header.dtype.itemsize == keep + len(junk)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 127), value=st.integers(0, 255))
def test_a_changed_header_byte_is_refused_or_describes_the_file(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("flip") / "a.npy"
    data = bytearray(GOOD)
    data[place] = value
    path.write_bytes(data)
    try:
        header = read(path)
    except GalleryError:
        return
    assert header.data_offset + int(np.prod(header.shape)) * header.dtype.itemsize == len(data)
