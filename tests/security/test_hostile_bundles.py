"""Bundles and checkpoints: manifests, safetensors, engines; altered by accident, or sealed again by an attacker."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.hostile import (
    NEW_DIM,
    OLD_DIM,
    TERA,
    external,
    foreign_onnx,
    good_bundle,
    good_gallery,
    good_torchscript,
    linear_onnx,
    reseal,
    safetensors_bytes,
    sealed,
)
from support.promises import Case, Cases, assert_accepted, assert_refused

case = Cases()
untrusted = Cases()
WEIGHTS = "transformation.safetensors"


# The manifest


@case("no such file")
def _(folder: Path) -> Path:
    """manifest missing"""
    bundle = good_bundle(folder)
    (bundle / "manifest.json").unlink()
    return bundle


def _manifest(name: str, reason: str, data: Callable[[bytes], bytes]) -> None:
    """A case with the manifest's bytes changed and nothing else."""

    def make(folder: Path) -> Path:
        path = good_bundle(folder) / "manifest.json"
        path.write_bytes(data(path.read_bytes()))
        return path.parent

    make.__doc__ = f"manifest {name}"
    case(reason)(make)


_manifest("empty", r"manifest\.json: ", lambda old: b"")
_manifest("cut short", r"manifest\.json: ", lambda old: old[: len(old) // 2])
_manifest("not JSON", r"manifest\.json: ", lambda old: b"kind: transformation\n")
_manifest("not UTF-8", r"manifest\.json: ", lambda old: b"\xff\xfe" + old)
_manifest("a list", "wanted dict", lambda old: b"[]")
_manifest("nested deeply", "nested too deeply", lambda old: b"[" * 500_000 + b"]" * 500_000)
_manifest(
    "with an integer of a million digits", r"manifest\.json: .*digits", lambda old: b'{"a": ' + b"9" * 10**6 + b"}"
)
_manifest("with NaN", "not a finite number", lambda old: old.replace(b"0.0", b"NaN", 1))
_manifest("with 1e999", "not a finite number", lambda old: old.replace(b"0.0", b"1e999", 1))
_manifest("altered", "does not match its own sha256", lambda old: old.replace(b'"v1"', b'"v2"'))
_manifest(
    "with a key twice", "twice|does not match its own", lambda old: old.replace(b"{", b'{\n  "kind": "backbone",', 1)
)
_manifest("of 100 MB", "wanted at most", lambda old: old + b" " * (100 << 20))


def _sealed(name: str, reason: str, change: Callable[[dict[str, Any]], None]) -> None:
    """A case with the manifest's document changed and sealed again, as an attacker would."""

    def make(folder: Path) -> Path:
        return reseal(good_bundle(folder), change)

    make.__doc__ = f"sealed manifest {name}"
    case(reason)(make)


def _rename(document: dict[str, Any], name: str) -> None:
    document["files"] = {name: document["files"][WEIGHTS]}


for file_name in ("../secret", "/etc/passwd", "a/b", "..", ".", "", "manifest.json", "a\0b", "x" * 5000):
    _sealed(
        f"with the file name {file_name[:20]!r}",
        "is not a plain name inside the bundle|no such file",
        lambda document, file_name=file_name: _rename(document, file_name),
    )
_sealed("without files", "lists no files", lambda document: document["files"].clear())
_sealed("of another schema", "schema version 99", lambda document: document.update(schema_version=99))
_sealed("of an unknown kind", "kind", lambda document: document.update(kind="virus"))
_sealed("with an unknown key", "unknown 'run'", lambda document: document.update(run="rm -rf /"))
_sealed("with other dims than its program", "different dimensions", lambda document: document.update(output_dim=7))
_sealed("with dims of 10^18", "different dimensions", lambda document: document.update(output_dim=10**18))
_sealed(
    "without a program",
    "holds no program|has no ONNX file|malformed program",
    lambda document: document.update(program=None),
)
_sealed("with a program of no steps", "no step produces", lambda document: document["program"].update(steps=[]))
_sealed("with a step nobody knows", "exec", lambda document: document["program"]["steps"][0].update(op="exec"))
_sealed("with a step that reads itself", "map", lambda document: document["program"]["steps"][0].update(input="map"))
_sealed("with absurd widths", "weight is .*wanted", lambda document: document["program"]["inputs"].update(old=TERA))
_sealed("with a number for its version", "wanted str", lambda document: document.update(model_version=3))


# The files


def _weights(name: str, reason: str, data: Callable[[bytes], bytes], seal: bool = True) -> None:
    """A case with other bytes in place of the weights."""

    def make(folder: Path) -> Path:
        path = good_bundle(folder) / WEIGHTS
        path.write_bytes(data(path.read_bytes()))
        return reseal(path.parent) if seal else path.parent

    make.__doc__ = f"weights {name}"
    case(f"{WEIGHTS}: .*({reason})")(make)


_weights("swapped for others", "damaged or was replaced", lambda old: old[:-4] + b"abcd", seal=False)
_weights("cut short", "damaged or was replaced", lambda old: old[:-4], seal=False)
_weights("of 10 bytes", "says its header is", lambda old: b"0123456789")
_weights("cut short and sealed", "not a valid safetensors file", lambda old: old[:-4])
_weights("with a byte too many", "not a valid safetensors file", lambda old: old + b"x")
_weights("with a header of 100 MB", "says its header is", lambda old: safetensors_bytes(b"{}" + b" " * (100 << 20)))
_weights("with a header of 2^63", "says its header is", lambda old: safetensors_bytes(b"{}", length=2**63))
_weights("with a header of 2^64 - 1", "says its header is", lambda old: safetensors_bytes(b"{}", length=2**64 - 1))
_weights("with a header that is no JSON", "not a valid safetensors file", lambda old: safetensors_bytes(b"hello"))
_weights(
    "with a header nested deeply", "not a valid", lambda old: safetensors_bytes(b'{"a":' * 10**5 + b"1" + b"}" * 10**5)
)
_weights("without any", "map|missing|not a valid", lambda old: safetensors_bytes({}))


def _tensors(name: str, reason: str, **entries: dict[str, Any]) -> None:
    """A case with a header that lies about its tensors; 240 bytes follow it."""
    _weights(name, reason, lambda old: safetensors_bytes(entries, bytes(240)))


def _entry(dtype: str = "F32", shape: tuple[int, ...] = (6, 8), offsets: tuple[int, int] = (0, 192)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


_tensors("overlapping", "not a valid", w=_entry(), b=_entry(shape=(12,), offsets=(100, 148)))
_tensors("beyond the end", "not a valid", w=_entry(shape=(600, 8), offsets=(0, 19200)))
_tensors("of negative length", "not a valid", w=_entry(offsets=(192, 0)))
_tensors("of an unknown dtype", "not a valid", w=_entry("F31"))
_tensors("of a dtype that does not fit", "not a valid", w=_entry("F64"))
_tensors("of 10^24 numbers", "not a valid", w=_entry(shape=(TERA, TERA)))
_tensors("of negative dims", "not a valid", w=_entry(shape=(-6, -8)))


def _arrays(name: str, reason: str, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """A case with other, well-formed tensors."""

    def make(folder: Path) -> Path:
        path = good_bundle(folder) / WEIGHTS
        save_file(change(load_file(path)), path)
        return reseal(path.parent)

    make.__doc__ = f"tensors {name}"
    case(f"{WEIGHTS}: .*({reason})")(make)


def _with(value: float) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        changed = {name: array.copy() for name, array in tensors.items()}
        next(iter(changed.values())).flat[3] = value
        return changed

    return change


_arrays("with NaN", "NaN|finite", _with(np.nan))
_arrays("with infinity", "NaN|finite|infinity", _with(np.inf))
_arrays("of float64", "wanted float32", lambda old: {name: array.astype(np.float64) for name, array in old.items()})
_arrays("of other dims", "weight is .*wanted", lambda old: {name: array[..., :5].copy() for name, array in old.items()})
_arrays("renamed", "map|missing", lambda old: {f"x{name}": array for name, array in old.items()})
_arrays("more than used", "does not use", lambda old: old | {"more": np.ones(3, np.float32)})


@case("not a regular file")
def _(folder: Path) -> Path:
    """weights behind a link"""
    path = good_bundle(folder) / WEIGHTS
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    return path.parent


@case("not a regular file")
def _(folder: Path) -> Path:
    """weights a FIFO"""
    path = good_bundle(folder) / WEIGHTS
    path.unlink()
    os.mkfifo(path)
    return path.parent


@case("not a regular file")
def _(folder: Path) -> Path:
    """manifest a FIFO"""
    path = good_bundle(folder) / "manifest.json"
    path.unlink()
    os.mkfifo(path)
    return path.parent


@case("no such file")
def _(folder: Path) -> Path:
    """weights missing"""
    path = good_bundle(folder) / WEIGHTS
    path.unlink()
    return path.parent


# Other targets


def _other(folder: Path, data: bytes, name: str, target: str, **changes: Any) -> Path:
    """A sealed bundle whose only file is for ``target``."""
    bundle = good_bundle(folder)
    (bundle / WEIGHTS).rename(bundle / name)
    (bundle / name).write_bytes(data)

    def change(document: dict[str, Any]) -> None:
        document["files"][name] |= {"target": target}
        document.update(changes)

    document = json.loads((bundle / "manifest.json").read_bytes())
    _rename(document, name)
    (bundle / "manifest.json").write_bytes(sealed(document))
    return reseal(bundle, change)


def _onnx_bundle(folder: Path, model: Any = None, **changes: Any) -> Path:
    model = foreign_onnx() if model is None else model
    return _other(folder, model.SerializeToString(), "model.onnx", "onnx", **({"program": None} | changes))


@case("other inputs or outputs|different dimensions")
def _(folder: Path) -> Path:
    """ONNX with another width than the manifest states"""
    return _onnx_bundle(folder, output_dim=NEW_DIM + 1)


@case("other inputs or outputs|different dimensions")
def _(folder: Path) -> Path:
    """ONNX with other inputs than the manifest states"""
    return _onnx_bundle(folder, inputs={"old": [OLD_DIM], "side": [3]})


@case("lies in")
def _(folder: Path) -> Path:
    """ONNX with weights elsewhere"""
    return _onnx_bundle(folder, linear_onnx(external("/etc/passwd")))


@case("lies in another file")
def _(folder: Path) -> Path:
    """ONNX with weights beside it, which the manifest does not list"""
    bundle = _onnx_bundle(folder, linear_onnx(external("weights")))
    (bundle / "weights").write_bytes(bytes(4 * OLD_DIM * NEW_DIM))
    return bundle


@case("takes|holds a|other inputs")
def _(folder: Path) -> Path:
    """ONNX of rows called a backbone"""
    return _onnx_bundle(folder, kind="backbone", inputs={"image": [3, 8, 8]})


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """ONNX that is text"""
    return _other(folder, b"hello", "model.onnx", "onnx", program=None)


@untrusted("holds code that runs when it is loaded", 2, "a usage error: the same command with --backend torch is meant")
def _(folder: Path) -> Path:
    """TorchScript in a bundle"""
    data = good_torchscript(folder).read_bytes()
    return _other(folder, data, "model.pt", "torchscript", program=None)


@untrusted("holds code that runs when it is loaded", 2, "a usage error: --backend tensorrt is meant")
def _(folder: Path) -> Path:
    """engine in a bundle"""
    return _other(folder, b"ftrt" + bytes(1000), "model.any.engine", "tensorrt", program=None)


# Checkpoints of this project


def _checkpoint(folder: Path, name: str, arguments: dict[str, Any]) -> Path:
    """One whose weights are an empty file, described as a model of this project."""
    path = folder / "h.json"
    path.with_suffix(".safetensors").write_bytes(safetensors_bytes({}))
    sha256 = hashlib.sha256(safetensors_bytes({})).hexdigest()
    model = {"name": name, "arguments": arguments}
    path.write_text(json.dumps({"format": 1, "model": model, "config": {}, "sha256": sha256}))
    return path


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (b"", "not a checkpoint description"),
        (b"[1]", "not a checkpoint description"),
        (b"[" * 100_000 + b"]" * 100_000, "not a checkpoint description"),
        (b"{" + b" " * (2 << 20) + b"}", "wanted at most"),
    ],
    ids=["empty", "a list", "nested deeply", "2 MB"],
)
def test_checkpoint_description_refused(description, reason, folder):
    path = _checkpoint(folder, "resnet", {})
    path.write_bytes(description)
    assert_refused(Case(Path, reason), "export", path, path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"embedding_dim": 8},
        {"embedding_dim": 10**8, "widths": [4], "blocks": [1]},
    ],
    ids=["without weights", "of 400 MB without weights"],
)
def test_checkpoint_refused(arguments, folder):
    path = _checkpoint(folder, "resnet", arguments)
    named = path.with_suffix(".safetensors")
    assert_refused(Case(Path, "does not fit the model"), "export", named, path)


@pytest.mark.parametrize("name", case)
def test_refused_by_upgrade(name, folder):
    file = case[name].make(folder)
    assert_refused(case[name], "upgrade-gallery", file, good_gallery(file.parent), "--transformation", file)


@pytest.mark.parametrize("name", case)
def test_refused_by_export(name, folder):
    file = case[name].make(folder)
    assert_refused(case[name], "export", file, file)


@pytest.mark.parametrize("name", untrusted)
def test_code_is_not_run_unasked(name, folder):
    file = untrusted[name].make(folder)
    assert_refused(untrusted[name], "upgrade-gallery", file, good_gallery(file.parent), "--transformation", file)


def test_files_beside_those_listed_are_not_looked_at(folder):
    bundle = good_bundle(folder)
    (bundle / "model.onnx").write_bytes(b"hello")
    os.mkfifo(bundle / "more")
    assert_accepted("upgrade-gallery", bundle, good_gallery(bundle.parent), "--transformation", bundle)


@pytest.mark.parametrize("make", [good_bundle, _onnx_bundle, lambda folder: reseal(good_bundle(folder))])
@pytest.mark.parametrize("command", ["export", "upgrade-gallery"])
def test_good_ones_pass(make, command, folder):
    bundle = make(folder)
    arguments = [bundle] if command == "export" else [good_gallery(bundle.parent), "--transformation", bundle]
    assert_accepted(command, bundle, *arguments)
