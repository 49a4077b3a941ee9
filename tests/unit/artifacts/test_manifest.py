from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import core_manifest
from support.malformed import JSON, places, put
from support.programs import plain_mlp

from fct_infer.artifacts.manifest import (
    MAX_MANIFEST_BYTES,
    BundleFile,
    Engine,
    Manifest,
    Parity,
    Preprocessing,
    read_manifest,
)
from fct_infer.errors import ArtifactError

PARITY = Parity(
    7, 1e-7, 2e-7, 0.9999, top1_agreement=0.99, real_rows=3, runtime="onnxruntime 1.20.0 cpu", rows_per_second=2e5
)
FILE = BundleFile("model.onnx", "onnx", "fp32", 17, "ab" * 32, PARITY)
ENGINE = BundleFile(
    "model.h100.engine",
    "tensorrt",
    "fp16",
    9,
    "cd" * 32,
    None,
    Engine("10.3.0", "NVIDIA H100", "9.0", (1, 4096, 65536)),
)
TRANSFORMATION = core_manifest(plain_mlp(7, 3, 5, hidden=(4,)), FILE, ENGINE)
BACKBONE = replace(
    TRANSFORMATION,
    kind="backbone",
    inputs={"image": (3, 32, 32)},
    program=None,
    preprocessing=Preprocessing((32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.25), resize=36),
)


def sealed(document: dict) -> bytes:
    """An altered manifest with the digest of its new contents, as someone with bad intentions would write it."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps({**body, "sha256": ""}, indent=2).encode().removesuffix(b'"\n}')
    return text + hashlib.sha256(text).hexdigest().encode() + b'"\n}\n'


def read(folder: Path, data: bytes) -> Manifest:
    (folder / "manifest.json").write_bytes(data)
    return read_manifest(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bundle")


@pytest.mark.parametrize("manifest", [TRANSFORMATION, BACKBONE, replace(BACKBONE, preprocessing=None)])
def test_round_trip(folder, manifest):
    assert read(folder, manifest.to_bytes()) == manifest


CHOSEN_BY_THE_WRITER = [
    ("inputs", "image"),
    *(("files", file.name) for file in BACKBONE.files),
    *(("versions", name) for name in BACKBONE.versions),
]
ADDED_LATER = ("preprocessing", "interpolation")


def test_a_bundle_from_before_interpolation_was_a_setting_is_bilinear(folder):
    document = replace(BACKBONE, preprocessing=replace(BACKBONE.preprocessing, interpolation="bicubic")).to_json()
    assert document["preprocessing"]["interpolation"] == "bicubic"
    assert read(folder, sealed(document)).preprocessing.interpolation == "bicubic"
    del document["preprocessing"]["interpolation"]
    assert read(folder, sealed(document)).preprocessing.interpolation == "bilinear"


@pytest.mark.parametrize(
    "key",
    [
        place
        for place in places(BACKBONE.to_json())
        if place and isinstance(place[-1], str) and place not in (*CHOSEN_BY_THE_WRITER, ADDED_LATER)
    ],
)
def test_every_missing_key_is_named(folder, key):
    document = BACKBONE.to_json()
    parent = document
    for part in key[:-1]:
        parent = parent[part]
    del parent[key[-1]]
    with pytest.raises(ArtifactError, match=f"'{key[-1]}' is missing"):
        read(folder, sealed(document) if key[0] != "sha256" else json.dumps(document).encode())


@pytest.mark.parametrize(
    "name",
    ["../model.onnx", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "manifest.json", "a\0b", "x" * 200, "\ud800", ".x"],
)
def test_file_names_cannot_leave_the_bundle(folder, name):
    document = TRANSFORMATION.to_json()
    document["files"] = {name: document["files"]["model.onnx"]}
    with pytest.raises(ArtifactError, match="not a plain name inside the bundle"):
        read(folder, sealed(document))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("schema_version",), 2, "schema version 2, this fct-infer reads 1"),
        (("schema_version",), True, "schema_version is bool, wanted int"),
        (("kind",), "engine", "kind is 'engine', wanted one of transformation, backbone, side-information"),
        (("output_dim",), 0, "output_dim is 0, wanted at least 1"),
        (("output_dim",), "5", "output_dim is str, wanted int"),
        (("inputs", "image"), [3, 32, -1], "inputs.image is -1"),
        (("program",), {}, "kind 'backbone' has a program"),
        (("files", "model.onnx", "sha256"), "ab", "sha256 is 'ab', wanted 64 hex digits"),
        (("files", "model.onnx", "size"), 1.5, "size is float, wanted int"),
        (("files", "model.onnx", "parity", "min_cosine"), "1", "min_cosine is str, wanted a number"),
        (("files", "model.onnx", "parity", "rows"), None, "rows is NoneType, wanted int"),
        (("files",), {}, "lists no files"),
        (("files",), [], "files is list, wanted dict"),
        (("preprocessing", "size"), [32], r"wanted size \[h, w\]"),
        (("preprocessing", "std"), [0.2, 0.2, 0.0], "positive"),
        (("preprocessing", "mean"), [0.5], "as many means"),
        (("preprocessing", "interpolation"), "nearest", "wanted one of bilinear, bicubic, lanczos"),
        (("preprocessing", "resize"), 31, "cuts 32x32 out of images resized to 31"),
        (("files", "model.h100.engine", "engine", "rows"), [1, 8, 4], "wanted the fewest, typical and most"),
        (("versions", "fct-infer"), 1, "versions.fct-infer is int, wanted str"),
        (("surprise",), 1, "unknown 'surprise'"),
    ],
)
def test_wrong_values_are_named(folder, place, value, message):
    with pytest.raises(ArtifactError, match=message):
        read(folder, sealed(put(BACKBONE.to_json(), place, value)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 200_000,
        b'{"schema_version": 1' + b"0" * 10_000 + b"}",
        TRANSFORMATION.to_bytes()[:-2],
    ],
    ids=["empty", "cut", "list", "null", "no UTF-8", "NaN", "deep", "long number", "truncated"],
)
def test_other_data_is_refused(folder, data):
    with pytest.raises(ArtifactError, match=r"manifest\.json: "):
        read(folder, data)


@pytest.mark.parametrize("huge", ["1e999", "-1e999", "Infinity", "NaN", "1" + "0" * 400])
def test_numbers_beyond_float_are_refused(folder, huge):
    body, _, _ = TRANSFORMATION.to_bytes().decode().replace("1e-07", huge).rpartition('"sha256": "')
    body += '"sha256": "'
    with pytest.raises(ArtifactError, match=r"not a finite number|too large"):
        read(folder, (body + hashlib.sha256(body.encode()).hexdigest() + '"\n}\n').encode())


def test_a_huge_manifest_is_refused_unread(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)  # sparse
    with pytest.raises(ArtifactError, match="wanted at most 16,777,216"):
        read_manifest(tmp_path)


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"manifest\.json: no such file"):
        read_manifest(tmp_path)


@settings(deadline=None)
@given(st.data())
def test_any_changed_byte_is_noticed(folder, data):
    text = bytearray(TRANSFORMATION.to_bytes())
    position = data.draw(st.integers(0, len(text) - 1))
    text[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ArtifactError):
        read(folder, bytes(text))


@settings(deadline=None)
@given(data=st.data(), manifest=st.sampled_from([TRANSFORMATION, BACKBONE]))
def test_any_other_value_anywhere_is_an_artifact_error_or_harmless(folder, data, manifest):
    document = manifest.to_json()
    place = data.draw(st.sampled_from([place for place in places(document) if place]))
    altered = sealed(put(document, place, data.draw(JSON)))
    try:
        assert isinstance(read(folder, altered), Manifest)
    except ArtifactError as error:
        assert str(folder / "manifest.json") in str(error)
        assert len(str(error)) < 1000


@given(st.binary(max_size=64))
def test_random_bytes_are_refused(folder, data):
    with pytest.raises(ArtifactError):
        read(folder, data)
