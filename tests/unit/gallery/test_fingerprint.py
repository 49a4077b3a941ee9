"""The fingerprint reads a bounded part of a file and still sees what a rewrite would change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from support.faults import FaultyFileSystem

from fct_infer.errors import GalleryError
from fct_infer.gallery import fingerprint
from fct_infer.gallery.fingerprint import PIECE_BYTES, PIECES, packed_fingerprints
from fct_infer.storage import use_filesystem

LARGE = 5_000_000


@pytest.fixture
def path(tmp_path):
    (tmp_path / "large").write_bytes(np.random.default_rng(0).bytes(LARGE))
    return tmp_path / "large"


def changed(path, place):
    before = fingerprint(path)["sha256"]
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    return fingerprint(path)["sha256"] != before


@pytest.mark.parametrize("place", [0, PIECE_BYTES - 1, LARGE - PIECE_BYTES, LARGE - 1])
def test_both_ends_are_covered(path, place):
    assert changed(path, place)


def test_the_pieces_are_spread_evenly(path):
    step = (LARGE - PIECE_BYTES) / (PIECES - 1)
    assert all(changed(path, int(number * step) + PIECE_BYTES // 2) for number in range(PIECES))
    assert not changed(path, int(step * 0.6))  # between two pieces: the price of cheapness


def test_a_bounded_part_is_read(path):
    counting = FaultyFileSystem()
    with use_filesystem(counting):
        fingerprint(path)
    assert counting.calls["pread_into"] == PIECES


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECES * PIECE_BYTES])
def test_a_small_file_is_hashed_whole(tmp_path, size):
    data = np.random.default_rng(1).bytes(size)
    (tmp_path / "small").write_bytes(data)
    stat = (tmp_path / "small").stat()
    expected = {"size": size, "mtime_ns": stat.st_mtime_ns, "sha256": hashlib.sha256(data).hexdigest()}
    assert fingerprint(tmp_path / "small") == expected


def test_a_missing_file(tmp_path):
    with pytest.raises(GalleryError, match="missing"):
        fingerprint(tmp_path / "missing")


@pytest.mark.parametrize("mtime_ns", [0, -1, 13_569_465_600 * 10**9])  # the last in the year 2400
def test_packed_fingerprints_hold_any_time_that_a_file_system_does(path, mtime_ns):
    found = fingerprint(path) | {"mtime_ns": mtime_ns}
    assert dict(packed_fingerprints([("large", found)])) == {"large": found}
