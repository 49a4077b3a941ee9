"""CIFAR-100 as its authors publish it: the python archive, packed or unpacked."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from fct_infer.artifacts.files import GIBIBYTE, read_file
from fct_infer.errors import ArtifactError, InputError, UsageError
from fct_infer.training.data.images import LabelledImages

_FOLDER = "cifar-100-python"
_LIMIT = GIBIBYTE  # bytes of one file; the largest has 155 MB
_PIXELS = 3 * 32 * 32


def read_cifar100(path: str | Path, split: Literal["train", "test"]) -> LabelledImages:
    """Read one split, 32 x 32 pixels, with the 100 fine labels.

    Args:
        path: ``cifar-100-python.tar.gz``, the folder it unpacks to, or the folder that holds either.
        split: 50,000 images to train with or 10,000 to test with.

    Raises:
        UsageError: there is no such archive.
        InputError: it is damaged, or not what it should be; the message names the file.
    """
    name, content = _read_member(Path(path), split)
    names_file, meta = _read_member(Path(path), "meta")
    data, labels = content.get(b"data"), content.get(b"fine_labels")
    class_names = meta.get(b"fine_label_names")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise InputError(f"{name}: its images are not uint8 (n, {_PIXELS})")
    if not _is_list_of(class_names, bytes):
        raise InputError(f"{names_file}: has no names of the fine classes")
    if (
        not _is_list_of(labels, int)
        or len(labels) != len(data)
        or not 0 <= min(labels) <= max(labels) < len(class_names)
    ):
        raise InputError(f"{name}: its fine labels are not one of {len(class_names)} for each of {len(data)} images")
    images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return LabelledImages(
        images, np.array(labels, np.int64), tuple(each.decode("utf-8", "replace") for each in class_names)
    )


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


_ALLOWED = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0] for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for Python 2
}


def _is_list_of(values: Any, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(values, list) and len(values) > 0 and all(type(value) is kind for value in values)


def _read_member(path: Path, member: str) -> tuple[str, dict[bytes, Any]]:
    """Return the name, for messages, and the content of one file of the archive."""
    for folder in (path, path / _FOLDER):
        if (folder / member).is_file():
            return str(folder / member), _unpickle(str(folder / member), _read(folder / member))
    archive = path if path.is_file() else path / f"{_FOLDER}.tar.gz"
    if not archive.is_file():
        raise UsageError(f"{path}: holds neither {_FOLDER}.tar.gz nor the folder {_FOLDER} with {member!r}")
    name = f"{archive}:{_FOLDER}/{member}"
    try:
        with tarfile.open(archive) as tar:
            entry = tar.getmember(f"{_FOLDER}/{member}")
            file = tar.extractfile(entry)
            if file is None or entry.size > _LIMIT:
                raise InputError(f"{name}: is no file of at most {_LIMIT:,} bytes")
            return name, _unpickle(name, file.read())
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return read_file(path, _LIMIT)
    except ArtifactError as error:
        raise InputError(str(error)) from error


class _ArraysOnly(pickle.Unpickler):
    """Builds numbers, strings, lists, dictionaries and plain arrays; a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which a data set does not need")


def _unpickle(name: str, data: bytes) -> dict[bytes, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # what damage leads to: any error of pickle or of numpy, MemoryErrors of absurd sizes
        raise InputError(f"{name}: cannot be read: {error or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: holds a {type(content).__name__}, wanted a dictionary")
    return content
