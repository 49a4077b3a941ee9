"""A mixed gallery on disk: one folder, published in one step, every file under a digest and the manifest under a seal.

GALLERY/  manifest.json           what there is
          segments/N-*            index.faiss, ids, labels, is_new, gone; names, if the index knows rows by numbers
          changed/*.npy           ids, rows and is_new of the delta
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.errors import ArtifactError, FctError, UsageError
from fct_infer.gallery.manifest import read_published
from fct_infer.gallery.reader import read_npy
from fct_infer.gallery.writer import write_npy
from fct_infer.index import GalleryIndex, load_index_file, save_index_file
from fct_infer.index.gallery_index import metric_type
from fct_infer.index.stored_ids import StoredIds
from fct_infer.serving.mixed_gallery import State
from fct_infer.serving.rows import Bools, Ids
from fct_infer.serving.segment import Segment
from fct_infer.serving.spaces import NewSpace, Space
from fct_infer.storage import (
    DigestedFile,
    Staging,
    check_place,
    check_replaceable,
    remove_tree,
    sha256_of_file,
    write_bytes,
)
from fct_infer.storage.strict_json import Fields, check_seal, parse_strict, sealed_bytes
from fct_infer.transformation import Float32Array

SCHEMA, KIND = 1, "mixed-gallery"
MANIFEST = "manifest.json"
_MAX_SEGMENTS = 1 << 16
_METRICS = ("l2", "ip", "cosine")
_CHANGED = ("ids", "rows", "is_new")
_OF_SEGMENT = ("ids", "labels", "is_new", "gone")


def save_state(state: State, path: Path, *, force: bool) -> None:
    """See :meth:`~.mixed_gallery.MixedGallery.save`."""
    target = check_place(path, {})
    check_replaceable(target, _foreign, force=force)
    with Staging(target, "gallery") as staging:
        remove_tree(staging.folder)  # of a process that was killed
        try:
            space = state.segments[0].space
            document = {
                "schema": SCHEMA,
                "kind": KIND,
                "metric": space.metric,
                "dim": space.dim,
                "segments": [isinstance(segment.space, NewSpace) for segment in state.segments],
                "files": {name: vars(file) for name, file in _write(state, staging.folder).items()},
            }
            write_bytes(staging.folder / MANIFEST, sealed_bytes(document))
            staging.publish(replace=force)
        finally:
            remove_tree(staging.folder)


def _write(state: State, work: Path) -> dict[str, DigestedFile]:
    files = {}
    for number, segment in enumerate(state.segments):
        for name in _OF_SEGMENT:
            files[f"segments/{number}-{name}.npy"] = getattr(segment, name)
        if isinstance(segment.space, NewSpace):
            files[f"segments/{number}-index.faiss"] = segment.space.index.index
            if (stored := segment.space.index.stored_ids) is not None:
                files[f"segments/{number}-names.npy"] = stored.array
    files |= {f"changed/{name}.npy": held for name, held in zip(_CHANGED, state.delta.kept(), strict=True)}
    return {
        name: write_npy(work / name, held) if name.endswith(".npy") else save_index_file(held, work / name)
        for name, held in files.items()
    }


def load_state(path: Path, space: Space | None) -> tuple[list[Segment], tuple[Ids, Float32Array, Bools]]:
    """Return the segments, and ids, rows and is_new of the delta; see :meth:`~.mixed_gallery.MixedGallery.load`."""
    return read_published(path, lambda folder, data: _load(folder, data, space))


def _load(path: Path, data: bytes, space: Space | None) -> tuple[list[Segment], tuple[Ids, Float32Array, Bools]]:
    metric, dim, kinds, files = _parse(path, data)
    for name, file in files.items():
        try:
            found = sha256_of_file(path / name)
        except FctError as error:
            raise ArtifactError(str(error)) from error
        if found != file.sha256:
            raise ArtifactError(f"{path / name}: is damaged: its SHA-256 is not the one in {MANIFEST}")
    if all(kinds) != (space is None):
        wanted = "rows stay in the old space: give the space that searches them" if space is None else "no space"
        raise UsageError(f"{path}: {wanted}")
    segments = [
        _segment(path, number, metric, None if is_index else space, f"segments/{number}-names.npy" in files)
        for number, is_index in enumerate(kinds)
    ]
    if any(segment.space.dim != dim or segment.space.metric != metric for segment in segments):
        raise ArtifactError(f"{path}: is a gallery of {dim} dims by {metric}; what searches it is not")
    changed = tuple(_array(path / "changed" / f"{name}.npy") for name in _CHANGED)
    if changed[1].shape != (len(changed[0]), dim):
        raise ArtifactError(f"{path}: changed rows are {changed[1].shape}, wanted ({len(changed[0])}, {dim})")
    return segments, (changed[0], changed[1], changed[2])


def _parse(path: Path, data: bytes) -> tuple[str, int, list[bool], dict[str, DigestedFile]]:
    try:
        fields = Fields(parse_strict(data), "manifest")
        if (schema := fields.take("schema", int)) != SCHEMA or fields.take("kind", str) != KIND:
            raise ArtifactError(f"describes no mixed gallery of schema {SCHEMA}; schema is {schema}")
        check_seal(data, fields.sha256("sha256"))
        metric, dim = fields.one_of("metric", _METRICS), fields.positive("dim")
        kinds = fields.take("segments", list)
        if not 0 < len(kinds) <= _MAX_SEGMENTS or not all(isinstance(each, bool) for each in kinds):
            raise ArtifactError("manifest.segments is not a list of true and false")
        files = {}
        for name, value in fields.take("files", dict).items():
            of_file = Fields(value, f"files.{name[:80]}")
            files[name] = DigestedFile(of_file.positive("size"), of_file.sha256("sha256"))
            of_file.done()
        fields.done()
        wanted = {f"changed/{name}.npy" for name in _CHANGED}
        for number, is_index in enumerate(kinds):
            wanted |= {f"segments/{number}-{name}.npy" for name in _OF_SEGMENT}
            wanted |= {f"segments/{number}-index.faiss"} if is_index else set()
        names = {f"segments/{number}-names.npy" for number, is_index in enumerate(kinds) if is_index}
        if wanted != set(files) - names:
            raise ArtifactError("manifest.files are not those of its segments")
    except ArtifactError as error:
        raise ArtifactError(f"{path / MANIFEST}: {str(error)[:500]}") from error
    return metric, dim, kinds, files


def _segment(path: Path, number: int, metric: str, space: Space | None, is_named: bool) -> Segment:
    ids, labels, is_new, gone = (_array(path / "segments" / f"{number}-{name}.npy") for name in _OF_SEGMENT)
    if not len(ids) == len(labels) == len(is_new) or labels.dtype != np.int64 or is_new.dtype != bool:
        raise ArtifactError(f"{path}: the arrays of segment {number} do not fit each other")
    if space is None:
        names = StoredIds([_array(path / "segments" / f"{number}-names.npy")]) if is_named else None
        file = path / "segments" / f"{number}-index.faiss"
        index = GalleryIndex(load_index_file(file), metric, names)
        if names is not None and not -1 < int(labels.min(initial=0)) <= int(labels.max(initial=0)) < max(names.rows, 1):
            raise ArtifactError(f"{path}: segment {number} has rows without names")
        if index.index.metric_type != metric_type(metric):
            raise ArtifactError(f"{file}: has another metric than {metric}")
        space = NewSpace(index)
    return Segment(space, ids, labels, is_new, gone)


def _array(path: Path) -> NDArray[Any]:
    try:
        return read_npy(path)
    except FctError as error:
        raise ArtifactError(str(error)) from error


def _foreign(folder: Path) -> str | None:
    others = sorted({each.name for each in folder.iterdir()} - {MANIFEST, "segments", "changed"})
    return f"it holds more than a mixed gallery ({others[0]})" if others else None
