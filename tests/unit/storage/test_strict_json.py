"""Documents of any size are written piece by piece, with the bytes that one call would make."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from fct_infer.storage.strict_json import PIECE_BYTES, check_seal, is_sealed, json_pieces, sealed_bytes, sealed_pieces


class Numbers(Mapping):
    """Made when asked for; counts how often."""

    def __init__(self, count):
        self.count, self.asked = count, 0

    def __iter__(self):
        return (f"name {number}" for number in range(self.count))

    def __len__(self):
        return self.count

    def __getitem__(self, name):
        self.asked += 1
        return {"size": int(name.split()[1]), "text": "ü"}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_pieces_are_the_bytes_of_json(indent, ensure_ascii, count):
    lazy = Numbers(count)
    value = {"a": [1, 2.5, None, {}], "files": lazy, "nested": {"again": lazy}, "empty": []}
    plain = value | {"files": dict(lazy), "nested": {"again": dict(lazy)}}
    pieces = list(json_pieces(value, indent, ensure_ascii=ensure_ascii))
    assert b"".join(pieces) == json.dumps(plain, indent=indent, ensure_ascii=ensure_ascii).encode()
    assert all(len(piece) < 2 * PIECE_BYTES for piece in pieces)
    assert (len(pieces) > 1) == (count == 5000)


def test_items_are_made_as_they_are_written():
    lazy = Numbers(50_000)
    next(json_pieces({"files": lazy}))
    assert 0 < lazy.asked < 5000


@pytest.mark.parametrize("count", [0, 3, 5000])
def test_the_seal_of_many_pieces(count):
    data = sealed_bytes({"files": Numbers(count)})
    check_seal(data, json.loads(data)["sha256"])
    assert is_sealed(data) and not is_sealed(data.replace(b"sha", b"shb"))
    assert (len(list(sealed_pieces({"files": Numbers(count)}))) > 1) == (count == 5000)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {"a": object()}])
def test_what_is_no_strict_json(value):
    with pytest.raises((ValueError, TypeError)):
        list(json_pieces({"value": value}))
