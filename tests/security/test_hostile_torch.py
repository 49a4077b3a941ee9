"""TorchScript and torch.export archives. Their code runs, the user named it; all that is checked before and after."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from support.hostile import NEW_DIM, OLD_DIM, Canary, Spoiled, good_gallery, good_torchscript, rewrite_zip, script
from support.promises import Case, Cases, assert_accepted, assert_refused
from support.torch_models import exported
from torch import nn

case = Cases()
export_only = Cases()  # an upgrade finds them with the first row it transforms, and names that row
PICKLE = "a pickle written by torch.save"
ROWS = torch.randn(3, OLD_DIM)


def _linear() -> nn.Linear:
    return nn.Linear(OLD_DIM, NEW_DIM)


@case(PICKLE)
def _(folder: Path) -> Path:
    """pickled nn.Module"""
    torch.save(_linear(), folder / "model.pt")
    return folder / "model.pt"


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """pickled nn.Module in the old format"""
    torch.save(_linear(), folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


@case(PICKLE)
def _(folder: Path) -> Path:
    """state_dict"""
    torch.save(_linear().state_dict(), folder / "model.pt")
    return folder / "model.pt"


@case("not a TorchScript archive")
def _(folder: Path) -> Path:
    """pickle that runs code"""
    (folder / "model.pt").write_bytes(pickle.dumps(Canary(folder)))
    return folder / "model.pt"


@case(PICKLE)
def _(folder: Path) -> Path:
    """torch.save of an object that runs code"""
    torch.save(Canary(folder), folder / "model.pt")
    return folder / "model.pt"


@case("cannot be loaded as TorchScript")
def _(folder: Path) -> Path:
    """TorchScript whose data.pkl runs code"""
    return _spoil(folder, "data.pkl", pickle.dumps(Canary(folder), protocol=2))


@case("cannot be loaded as TorchScript")
def _(folder: Path) -> Path:
    """TorchScript whose constants.pkl runs code"""
    return _spoil(folder, "constants.pkl", pickle.dumps(Canary(folder), protocol=2))


@case("cannot be loaded as a torch.export archive")
def _(folder: Path) -> Path:
    """torch.export archive whose weights run code"""
    torch.save(Canary(folder), folder / "payload")
    payload = (folder / "payload").read_bytes()
    path = _good_pt2(folder)
    return rewrite_zip(
        path, lambda name, data: payload if "/weights/" in name or name.endswith("inputs/model.pt") else data
    )


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
def test_truncated(kind, share, folder):
    path = good_torchscript(folder) if kind == "TorchScript" else _good_pt2(folder)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused(_TRUNCATED, "export", path, path)


# Zip archives


@case("would inflate to")
def _(folder: Path) -> Path:
    """zip bomb"""
    with (
        zipfile.ZipFile(folder / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(300):
            entry.write(bytes(1 << 20))
    return folder / "model.pt"


@case("would inflate to")
def _(folder: Path) -> Path:
    """zip bomb inside TorchScript"""
    path = good_torchscript(folder)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/code/more.py", bytes(100 << 20))
    return path


@case("not a TorchScript archive|a pickle written")
def _(folder: Path) -> Path:
    """zip in a zip in a zip"""
    path = good_torchscript(folder)
    for _ in range(3):
        data = path.read_bytes()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.pt", data)
    return path


@case("would inflate to")
def _(folder: Path) -> Path:
    """zip whose entries lie over each other"""
    path = good_torchscript(folder)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data/9", bytes(4 << 20))
        shared = archive.infolist()[-1]
        for number in range(500):
            twin = zipfile.ZipInfo(f"model/data/{10 + number}")
            twin.header_offset, twin.CRC = shared.header_offset, shared.CRC
            twin.compress_size = twin.file_size = shared.file_size
            archive.filelist.append(twin)
            archive._didModify = True
    return path


@case("a list of entries of [0-9,]+ bytes")
def _(folder: Path) -> Path:
    """zip of a million entries"""
    path = folder / "model.pt"
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    count = 1_000_000
    size = len(entry) * count
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(entry * count + end64 + locator + end)
    return path


@case("cannot be loaded as TorchScript|not a TorchScript archive|a pickle written")
def _(folder: Path) -> Path:
    """zip entries named ../canary and /tmp"""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../canary", "../../canary", f"{folder}/canary", "model/constants.pkl"):
            archive.writestr(name, b"x")
    return path


@case("cannot be loaded as a torch.export archive")
def _(folder: Path) -> Path:
    """torch.export entries named ../canary"""
    path = folder / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("archive_format", b"pt2"), ("version", b"0"), ("../../canary", b"x")):
            archive.writestr(f"model/{name}", data)
    return path


@case("not a TorchScript archive|cannot be loaded")
def _(folder: Path) -> Path:
    """encrypted zip entries"""
    path = good_torchscript(folder)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 4)
    path.write_bytes(data)
    return path


# TorchScript


@case("a pickle written|cannot be loaded as TorchScript")
def _(folder: Path) -> Path:
    """TorchScript without data.pkl"""
    return rewrite_zip(good_torchscript(folder), lambda name, data: None if name.endswith("data.pkl") else data)


@case("cannot be loaded as TorchScript")
def _(folder: Path) -> Path:
    """TorchScript with damaged code"""
    path = good_torchscript(folder)
    return rewrite_zip(path, lambda name, data: b"def forward(self:\n" if name.endswith(".py") else data)


@case("a weight of (192|24) bytes, but no entry of that size")
def _(folder: Path) -> Path:
    """TorchScript with a weight file cut short"""
    return rewrite_zip(good_torchscript(folder), lambda name, data: data[:5] if "/data/" in name else data)


@case("does not match its checksum")
def _(folder: Path) -> Path:
    """TorchScript with a bit flipped in a weight"""
    path = good_torchscript(folder)
    with zipfile.ZipFile(path) as archive:
        weight = archive.read(next(name for name in archive.namelist() if "/data/" in name))
    data = path.read_bytes()
    at = data.index(weight)
    path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
    return path


@case("takes 3 inputs")
def _(folder: Path) -> Path:
    """three inputs"""

    class Three(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return a + b + c

    return script(Three(), folder / "model.pt", ROWS, ROWS, ROWS)


@case("takes 0 inputs")
def _(folder: Path) -> Path:
    """no inputs"""

    class NoInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self) -> torch.Tensor:
            return self.weight

    return script(NoInput(), folder / "model.pt")


@case("one tensor")
def _(folder: Path) -> Path:
    """output a tuple"""
    return script(Spoiled(lambda rows: (rows, rows)), folder / "model.pt", ROWS)


@case("makes|output")
def _(folder: Path) -> Path:
    """output a scalar"""
    return script(Spoiled(lambda rows: rows.sum()), folder / "model.pt", ROWS)


@case("makes|depends|output")
def _(folder: Path) -> Path:
    """output with another batch"""
    return script(Spoiled(lambda rows: rows.flatten()[:, None]), folder / "model.pt", ROWS)


@case("makes|depends|output")
def _(folder: Path) -> Path:
    """output of always three rows"""
    return script(Spoiled(lambda rows: rows.sum(0, keepdim=True).expand(3, -1)), folder / "model.pt", ROWS)


@case(r"float16, wanted float32; save model\.float\(\)")
def _(folder: Path) -> Path:
    """float16 weights"""
    return script(_linear().half(), folder / "model.pt", ROWS.half())


@case("NaN|finite")
def _(folder: Path) -> Path:
    """NaN weight"""
    module = _linear()
    module.weight.data[2, 3] = torch.nan
    return script(module, folder / "model.pt", ROWS)


@case("NaN|finite")
def _(folder: Path) -> Path:
    """infinite weight"""
    module = _linear()
    module.bias.data[2] = torch.inf
    return script(module, folder / "model.pt", ROWS)


@export_only("NaN or infinity")
def _(folder: Path) -> Path:
    """NaN weight in a graph no program holds"""
    module = Spoiled(torch.tanh)
    module.linear.weight.data[2, 3] = torch.nan
    return script(module, folder / "model.pt", ROWS)


@export_only("NaN or infinity")
def _(folder: Path) -> Path:
    """negative variance"""
    norm = nn.BatchNorm1d(NEW_DIM)
    norm.running_var.fill_(-1)
    return script(nn.Sequential(_linear(), norm), folder / "model.pt", ROWS)


# torch.export


def _good_pt2(folder: Path) -> Path:
    return exported(_linear(), folder / "model.pt2", ROWS)


@case("takes only batches of exactly 3")
def _(folder: Path) -> Path:
    """torch.export with a fixed batch"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(_linear(), (ROWS,)), folder / "model.pt2")
    return folder / "model.pt2"


@case("cannot be loaded as a torch.export archive")
def _(folder: Path) -> Path:
    """torch.export with a damaged graph"""
    return rewrite_zip(_good_pt2(folder), lambda name, data: data[: len(data) // 2] if name.endswith(".json") else data)


@case("cannot be loaded as a torch.export archive")
def _(folder: Path) -> Path:
    """torch.export with a graph of another operator"""
    return rewrite_zip(_good_pt2(folder), lambda _, data: data.replace(b"aten.linear.default", b"os.system.default"))


@case("cannot be loaded as a torch.export archive")
def _(folder: Path) -> Path:
    """torch.export with a deeply nested graph"""
    deep = b"[" * 100_000 + b"]" * 100_000
    return rewrite_zip(_good_pt2(folder), lambda name, data: deep if name.endswith("models/model.json") else data)


@case("cannot be loaded as a torch.export archive")
def _(folder: Path) -> Path:
    """torch.export without weights"""
    return rewrite_zip(_good_pt2(folder), lambda name, data: None if "/weights/weight" in name else data)


@case("cannot be loaded as a torch.export archive")
def _(folder: Path) -> Path:
    """torch.export with weights of absurd sizes"""
    return rewrite_zip(_good_pt2(folder), _absurd_sizes)


def _absurd_sizes(name: str, data: bytes) -> bytes:
    if not name.endswith("_weights_config.json"):
        return data
    document = json.loads(data)
    for entry in document["config"].values():
        entry["tensor_meta"]["sizes"] = [{"as_int": 10**6}, {"as_int": 10**6}]
        entry["tensor_meta"]["strides"] = [{"as_int": 10**6}, {"as_int": 1}]
    return json.dumps(document).encode()


_TRUNCATED = Case(good_torchscript, "not a TorchScript archive|a pickle written")


@pytest.mark.parametrize("name", [*case, *export_only])
def test_refused_by_export(name, folder):
    chosen = (case | export_only)[name]
    file = chosen.make(folder)
    assert_refused(chosen, "export", file, file)


@pytest.mark.parametrize("name", case)
def test_refused_by_upgrade(name, folder):
    file = case[name].make(folder)
    assert_refused(case[name], "upgrade-gallery", file, good_gallery(file.parent), "--transformation", file)


@pytest.mark.parametrize("make", [good_torchscript, _good_pt2])
def test_good_ones_pass(make, folder):
    file = make(folder)
    assert_accepted("export", file, file)


def _spoil(folder: Path, entry: str, data: bytes) -> Path:
    return rewrite_zip(good_torchscript(folder), lambda name, old: data if name.endswith("/" + entry) else old)
