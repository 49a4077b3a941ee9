"""Reads an ONNX file, and the weights that it keeps in files beside it, as PyTorch's exporter does by default."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from fct_infer.artifacts.files import GIBIBYTE, read_file
from fct_infer.errors import ArtifactError, GalleryError, import_error
from fct_infer.storage import ReadFile

MAX_ONNX_BYTES = 2 * GIBIBYTE
MAX_WEIGHT_BYTES = MAX_ONNX_BYTES - (64 << 20)  # what a protobuf message can hold, with room for the graph
MAX_NODES = 50_000  # and as many weights; a runtime takes seconds to load so many


def read_onnx(path: Path, *, self_contained: bool = False) -> tuple[Any, bytes]:
    """Return the file as ``onnx.ModelProto``, and the bytes of one file that holds all of it.

    With ``self_contained`` weights in other files are refused: a bundle's manifest has no digest of those.
    Read once: a file on the disk could be exchanged after it was checked, and refer to other files.

    Raises:
        FctError: as :func:`program_from_onnx`.
    """
    data = read_file(path, MAX_ONNX_BYTES)
    model = _parsed(data, path)
    if self_contained:
        return model, data  # such weights are refused by whoever reads them
    return model, model.SerializeToString(deterministic=True) if take_weights(model, path) else data


def parse_onnx(path: Path) -> Any:
    """Return the file as ``onnx.ModelProto``; errors as :func:`program_from_onnx`."""
    return read_onnx(path)[0]


def _parsed(data: bytes, path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise import_error("onnx", "export", error) from error
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not an ONNX model: {error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{path}: not an ONNX model, or one without nodes")
    count = max(len(model.graph.node), len(model.graph.initializer))
    if count > MAX_NODES:
        raise ArtifactError(f"{path}: a graph of {count:,} nodes or weights, at most {MAX_NODES:,} are accepted")
    return model


def take_weights(model: Any, path: Path) -> bool:
    """Put the weights of the graph that lie in other files into ``model``, which is self-contained then.

    A file is taken from the model's own folder only: a name that leads elsewhere, by ``..``, from the root or through a
    link, could read whatever the user may read.

    Returns:
        Whether there were any.

    Raises:
        ArtifactError: such a file is missing, elsewhere, no regular file, or too short, or weights are too large.
        ResourceError: the machine failed.
    """
    total, found = 0, False
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        found = True
        where = f"{path}: weight {tensor.name!r}"
        location, offset, length = _place(tensor, where)
        try:
            with ReadFile(location, below=path.parent) as opened:
                length = max(opened.size - offset, 0) if length is None else length
                total += length
                if total > MAX_WEIGHT_BYTES:
                    raise ArtifactError(f"{path}: more than {MAX_WEIGHT_BYTES:,} bytes of weights in other files")
                if offset + length > opened.size:
                    raise ArtifactError(
                        f"{where}: {opened.path.name} has {opened.size:,} bytes, wanted {length:,} from byte {offset:,}"
                    )
                tensor.raw_data = opened.read(length, offset)
        except GalleryError as error:
            raise ArtifactError(f"{where} lies in another file; {error}{_way_out(error)}") from error
        del tensor.external_data[:]
        tensor.data_location = 0  # onnx.TensorProto.DEFAULT
    return found


def _place(tensor: Any, where: str) -> tuple[str, int, int | None]:
    """Return file, offset and length of a weight; a key said twice could mean either to whoever reads it next."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise ArtifactError(f"{where}: says twice where it lies")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries["length"]) if "length" in entries else None
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from error
    if offset < 0 or (length or 0) < 0:
        raise ArtifactError(f"{where}: {length} bytes from byte {offset} of a file")
    location = entries.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or ".." in parts or "\\" in location or "\0" in location:
        raise ArtifactError(f"{where} lies in {location!r}, wanted a file in the model's own folder")
    return location, offset, length


def _way_out(error: GalleryError) -> str:
    if not isinstance(error.__cause__, FileNotFoundError):
        return ""
    return "; put it beside the model, or write one file: onnx.save(onnx.load('model.onnx'), 'whole.onnx')"
