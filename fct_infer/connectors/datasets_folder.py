"""What ``datasets.Dataset.save_to_disk`` wrote: Arrow streams in an order that state.json tells; read without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fct_infer.connectors.arrow import ArrowSource
from fct_infer.connectors.options import SourceOptions
from fct_infer.errors import ArtifactError, GalleryError, UsageError
from fct_infer.storage import ReadFile
from fct_infer.storage.strict_json import parse_strict

STATE, SPLITS = "state.json", "dataset_dict.json"
_MAX_BYTES = 16 << 20


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a data set, or several splits of one."""
    return ((folder / STATE).exists() and (folder / "dataset_info.json").exists()) or (folder / SPLITS).exists()


def open_dataset(path: Path, options: SourceOptions) -> ArrowSource:
    """Open the streams of a data set in their order.

    Raises:
        UsageError: it has several splits, of which one must be named.
        GalleryError: state.json is malformed, or rows are chosen by an index beside them (by very old releases).
    """
    if not (path / STATE).exists():
        splits = _json(path / SPLITS).get("splits")
        folders = ", ".join(str(path / str(name)) for name in splits) if isinstance(splits, list) else "none"
        raise UsageError(f"{path}: holds the splits of a data set; name one: {folders}")
    state = _json(path / STATE)
    if state.get("_indices_data_files"):
        raise GalleryError(
            f"{path}: its rows are chosen by an index; save it with flatten_indices() first, or by a newer datasets"
        )
    entries = state.get("_data_files")
    if not isinstance(entries, list | None):
        raise GalleryError(f"{path / STATE}: _data_files is no list")
    names: list[str] = []
    for entry in entries or []:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise GalleryError(f"{path / STATE}: names the file {name!r}, wanted one inside the folder")
        names.append(name)
    if not names or len(set(names)) != len(names):
        raise GalleryError(f"{path / STATE}: names no files, or one of them twice")
    return ArrowSource(path, options, [path / name for name in names], [path / STATE])


def _json(path: Path) -> dict[str, Any]:
    with ReadFile(path) as file:
        if file.size > _MAX_BYTES:
            raise GalleryError(f"{path}: is {file.size:,} bytes long, at most {_MAX_BYTES:,} are accepted")
        try:
            found = parse_strict(file.read(file.size))
        except ArtifactError as error:
            raise GalleryError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise GalleryError(f"{path}: holds no JSON object")
    return found
