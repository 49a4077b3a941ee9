"""What may lie behind the name of a model: every command that opens one refuses it alike."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.hostile import fifo_socket_or_link, good_bundle, good_gallery, good_torchscript, linear_onnx, save_onnx
from support.promises import Cases, assert_refused

case = Cases()


@case("no such file")
def _(folder: Path) -> Path:
    """missing"""
    return folder / "model.pt"


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """empty"""
    return _write(folder / "model.pt", b"")


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """empty ONNX"""
    return _write(folder / "model.onnx", b"")


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """random bytes"""
    return _write(folder / "model.pt", np.random.default_rng(0).bytes(100_000))


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """random bytes for ONNX"""
    return _write(folder / "model.onnx", np.random.default_rng(0).bytes(100_000))


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """text"""
    return _write(folder / "model.pt", b"model:\n  layers: 3\n")


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """text for ONNX"""
    return _write(folder / "model.onnx", b"<html><body>404 Not Found</body></html>\n")


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """name with markup"""
    return _write(folder / "[red]model[bold] {0} %s.pt", b"text")


@case(r"manifest\.json: no such file")
def _(folder: Path) -> Path:
    """folder without a manifest"""
    (folder / "model").mkdir()
    return folder / "model"


@case("not a regular file")
def _(folder: Path) -> Path:
    """FIFO"""
    return fifo_socket_or_link(folder, "fifo")


@case("not a regular file")
def _(folder: Path) -> Path:
    """socket"""
    return fifo_socket_or_link(folder, "socket")


@case("not a regular file")
def _(folder: Path) -> Path:
    """link to /dev/zero"""
    return fifo_socket_or_link(folder, "/dev/zero")


@case("no such file")
def _(folder: Path) -> Path:
    """dangling link"""
    return fifo_socket_or_link(folder, "nowhere")


@case("no such file|cannot be read")
def _(folder: Path) -> Path:
    """link to itself"""
    return fifo_socket_or_link(folder, "model.pt")


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """ONNX file named .pt"""
    return save_onnx(linear_onnx(), folder, "model.pt")


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """TorchScript named .onnx"""
    return good_torchscript(folder, "model.onnx")


@case("not an ONNX model")
def _(folder: Path) -> Path:
    """gallery shard named .onnx"""
    np.save(folder / "shard.npy", np.ones((5, 8), np.float32))
    return (folder / "shard.npy").rename(folder / "model.onnx")


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """gallery shard as it is"""
    np.save(folder / "shard.npy", np.ones((5, 8), np.float32))
    return folder / "shard.npy"


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """weights out of a bundle, renamed"""
    return (good_bundle(folder) / "transformation.safetensors").rename(folder / "model.pt")


@case("cannot be read")
def _(folder: Path) -> Path:
    """no permission"""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = save_onnx(linear_onnx(), folder)
    path.chmod(0)
    return path


COMMANDS = ("export", "upgrade-gallery", "embed")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", case)
def test_refused(name, command, folder):
    file = case[name].make(folder)
    assert_refused(case[name], command, file, *_arguments(command, file))


def _arguments(command: str, file: Path) -> list[object]:
    if command == "export":
        return [file]
    if command == "upgrade-gallery":
        return [good_gallery(file.parent), "--transformation", file]
    np.save(file.parent / "images.npy", np.zeros((3, 32, 32, 3), np.uint8))
    return [file.parent / "images.npy", "--model", file]


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
