"""Good files of every kind, and tools to spoil them: zip archives, ONNX graphs, bundles, safetensors, .npy headers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from support.bundles import core_bundle
from support.galleries import write_gallery
from support.programs import linear_map
from torch import nn

OLD_DIM, NEW_DIM = 8, 6
TERA = 10**12


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "canary"

    def __reduce__(self) -> tuple:
        return open, (str(self._path), "w")


def good_gallery(folder: Path) -> Path:
    """A gallery of old embeddings that fits every good transformation here; small, in two shards."""
    write_gallery(folder / "gallery", (40, 9), OLD_DIM, side_dim=None, ids="int")
    return folder / "gallery"


def good_bundle(folder: Path, name: str = "bundle") -> Path:
    return core_bundle(linear_map(OLD_DIM, NEW_DIM), folder / name)


def fifo_socket_or_link(folder: Path, kind: str) -> Path:
    """Something that is no file, and would block or never end a careless reader."""
    path = folder / "model.pt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        # Bound by a relative name: the path of a socket holds 107 bytes at most.
        here = Path.cwd()
        os.chdir(folder)
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(here)
    else:
        path.symlink_to(kind)
    return path


# PyTorch


class Spoiled(nn.Module):
    """A linear map whose output goes through ``function`` before it is returned."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(OLD_DIM, NEW_DIM), function

    def forward(self, old: torch.Tensor) -> Any:
        return self.function(self.linear(old))


def script(module: nn.Module, path: Path, *inputs: torch.Tensor) -> Path:
    """Save as TorchScript: traced if inputs are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module.eval(), inputs, check_trace=False) if inputs else torch.jit.script(module.eval())
        made.save(str(path))
    return path


def good_torchscript(folder: Path, name: str = "model.pt") -> Path:
    return script(nn.Linear(OLD_DIM, NEW_DIM), folder / name)


def rewrite_zip(path: Path, change: Callable[[str, bytes], bytes | None], **added: bytes) -> Path:
    """Write every entry of an archive again, as ``change(name, data)`` wants it (None leaves it out), and more."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            if (changed := change(name, data)) is not None:
                archive.writestr(name, changed)
        for name, data in added.items():
            archive.writestr(name, data)
    return path


# ONNX


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Any],
    *,
    inputs: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("new",),
    **options: Any,
) -> onnx.ModelProto:
    """A model from ``old`` (batch, 8) to ``new``, or with other inputs; weights are arrays or TensorProtos."""
    inputs = inputs or {"old": ["batch", OLD_DIM]}
    tensors = [
        weight if isinstance(weight, TensorProto) else numpy_helper.from_array(np.asarray(weight), name)
        for name, weight in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "h",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        tensors,
    )
    settings = {"opset_imports": [helper.make_opsetid("", 20)], "ir_version": 9} | options
    return helper.make_model(graph, **settings)


def matrix(rows: int = OLD_DIM, columns: int = NEW_DIM) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def linear_onnx(weight: Any = None, **options: Any) -> onnx.ModelProto:
    """A good one: one product, which is a program."""
    node = helper.make_node("MatMul", ["old", "weight"], ["new"])
    return graph_of([node], {"weight": matrix() if weight is None else weight}, **options)


def foreign_onnx(nodes: Sequence[onnx.NodeProto] = (), weights: dict[str, Any] | None = None) -> onnx.ModelProto:
    """One that no program holds, so that ONNX Runtime must take it: tanh, plus the ``extra`` that ``nodes`` make."""
    last = [helper.make_node("Tanh", ["product"], ["squashed"])]
    if nodes:
        total = helper.make_node("ReduceSum", ["extra"], ["total"], keepdims=0)
        last += [total, helper.make_node("Add", ["squashed", "total"], ["new"])]
    else:
        last += [helper.make_node("Identity", ["squashed"], ["new"])]
    product = helper.make_node("MatMul", ["old", "weight"], ["product"])
    return graph_of([*nodes, product, *last], {"weight": matrix(), **(weights or {})})


def image_onnx(folder: Path) -> Path:
    """A good image model: the mean of each channel."""
    node = helper.make_node("GlobalAveragePool", ["image"], ["new"])
    return save_onnx(graph_of([node], {}, inputs={"image": ["batch", 3, 32, 32]}), folder, "images.onnx")


def save_onnx(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def subgraph(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str], **weights: Any
) -> onnx.GraphProto:
    """A body for a loop (with ``count``, ``go``, ``go_on``) or a branch."""
    types = {"count": TensorProto.INT64, "go": TensorProto.BOOL, "go_on": TensorProto.BOOL}
    infos = [
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in names]
        for names in (inputs, outputs)
    ]
    tensors = [
        weight if isinstance(weight, TensorProto) else numpy_helper.from_array(weight, name)
        for name, weight in weights.items()
    ]
    return helper.make_graph(nodes, "body", *infos, tensors)


def when_positive(then_branch: onnx.GraphProto, else_branch: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The first branch if a number of the rows is positive, so not for rows of zeros."""
    return [
        helper.make_node("ReduceMax", ["old"], ["most"], keepdims=0),
        helper.make_node("Sign", ["most"], ["sign"]),
        helper.make_node("Cast", ["sign"], ["is_real"], to=TensorProto.BOOL),
        helper.make_node("If", ["is_real"], ["extra"], then_branch=then_branch, else_branch=else_branch),
    ]


def external(location: str, name: str = "weight", shape: Sequence[int] = (OLD_DIM, NEW_DIM)) -> TensorProto:
    """A weight that lies in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * int(np.prod(shape))))):
        tensor.external_data.add(key=key, value=value)
    return tensor


# Bundles, safetensors, .npy


def safetensors_bytes(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def reseal(bundle: Path, change: Callable[[dict[str, Any]], None] = lambda document: None) -> Path:
    """Make a bundle's manifest agree again with its (spoiled) files, then ``change`` it; as an attacker would."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_bytes())
    for name, entry in document["files"].items():
        data = (bundle / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(document)
    path.write_bytes(sealed(document))
    return bundle


def sealed(document: dict[str, Any]) -> bytes:
    fields = {key: value for key, value in document.items() if key != "sha256"}
    body = (json.dumps({**fields, "sha256": ""}, indent=2) + "\n").encode().removesuffix(b'"\n}\n')
    return body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def npy_bytes(
    header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """A .npy file with any header text, and any length said to be its own."""
    text = header.encode("latin1") if isinstance(header, str) else header
    field = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + field + text + data


def saved(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()
