"""An index published in parts: its shards stay where workers wrote them and are searched as one.

DEST/index.json            which shards, in the order of their rows, and how many lists a search visits
DEST/index_trained.faiss   what all of them were made from
DEST/index/NAME.faiss      one shard

Digests stand in DEST/manifest.json, which lists all of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fct_infer.errors import ArtifactError
from fct_infer.gallery.manifest import MAX_MANIFEST_BYTES, MAX_ROWS, GalleryManifest
from fct_infer.index.builder import IndexBuilder, load_index_file
from fct_infer.index.faiss_module import ivf_of
from fct_infer.index.parts import GatheredBuilder, IndexPart, Parts, gather
from fct_infer.storage import DigestedFile, ReadFile, remove_tree, write_json
from fct_infer.storage.strict_json import Fields, parse_strict, typed

SHARDED_NAME = "index.json"
TRAINED_NAME = "index_trained.faiss"
SHARDS_FOLDER = "index"
_SCHEMA = 1
_MAX_ID_SUM = 1 << 64


class ShardedBuilder(GatheredBuilder):
    """Parts that lie in the folder to be published already, as one index that stays in parts.

    Args:
        trained, parts, were_digested: as for the base.
        folder: in whose :data:`SHARDS_FOLDER` the parts lie; what was trained is written beside.
    """

    def __init__(self, trained: IndexBuilder, parts: Parts, folder: Path, *, were_digested: bool = False) -> None:
        self._trained = trained.save(folder / TRAINED_NAME)  # before it is used up
        super().__init__(trained, parts, were_digested=were_digested)

    def publish(self, folder: Path) -> dict[str, DigestedFile]:
        """See the base; parts that were merged into shards are dropped."""
        shards = {path.relative_to(folder).as_posix(): part.file for path, part in self.parts}
        for path in (folder / SHARDS_FOLDER).iterdir():
            if path.relative_to(folder).as_posix() not in shards:
                remove_tree(path)
        return {SHARDED_NAME: write_sharded(folder, self), TRAINED_NAME: self._trained, **shards}


def write_sharded(folder: Path, builder: GatheredBuilder) -> DigestedFile:
    """Write ``index.json`` of an index whose shards and trained index lie in ``folder`` already."""
    shards = [
        {
            "file": path.relative_to(folder).as_posix(),
            "rows": part.rows,
            "left_out": part.left_out,
            "ids": str(part.ids),
        }
        for path, part in builder.parts
    ]
    document = {"schema": _SCHEMA, "kind": "index", "factory": builder.factory, "nprobe": builder.nprobe}
    return write_json(folder / SHARDED_NAME, {**document, "shards": shards})


def load_sharded(dest: Path, manifest: GalleryManifest) -> Any:
    """Return the FAISS index that searches all shards as one; lists of an inverted file stay on the disk.

    It goes on answering when the folder is replaced.

    Raises:
        ArtifactError: a file is missing, damaged or none, or not in the manifest.
    """
    path = dest / SHARDED_NAME
    nprobe, shards = _read(dest, manifest)
    trained = manifest.files.get(TRAINED_NAME)
    if trained is None:
        raise ArtifactError(f"{path}: {TRAINED_NAME} is not in manifest.json")
    index = gather(load_index_file(dest / TRAINED_NAME, trained.sha256), shards)
    ivf = ivf_of(index)
    if ivf is not None and nprobe is not None:
        ivf.nprobe = nprobe
    return index


def published_shards(dest: Path, manifest: GalleryManifest) -> Parts:
    """Return the shards in the order of their rows, as ``index.json`` names them; their files are not looked at.

    Raises:
        ArtifactError: ``index.json`` is missing, damaged or none.
    """
    return _read(dest, manifest)[1]


def _read(dest: Path, manifest: GalleryManifest) -> tuple[int | None, Parts]:
    path = dest / SHARDED_NAME
    with ReadFile(path) as file:
        if file.size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path}: is {file.size} bytes long, at most {MAX_MANIFEST_BYTES} are accepted")
        data = file.read(file.size)
    if hashlib.sha256(data).hexdigest() != manifest.files[SHARDED_NAME].sha256:
        raise ArtifactError(f"{path}: is damaged: its SHA-256 is not the one in manifest.json")
    try:
        fields = Fields(parse_strict(data), "index")
        if (schema := fields.take("schema", int)) != _SCHEMA:
            raise ArtifactError(f"has schema {schema}; this version reads {_SCHEMA}")
        fields.one_of("kind", ("index",))
        fields.take("factory", str)
        nprobe = fields.take_optional("nprobe", int)
        if nprobe is not None and not 1 <= nprobe < MAX_ROWS:
            raise ArtifactError(f"index.nprobe is {nprobe}, wanted at least 1")
        shards = [(dest / name, part) for name, part in _shards(fields.take("shards", list), manifest)]
        fields.done()
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {str(error)[:500]}") from error
    return nprobe, shards


def _shards(values: list[Any], manifest: GalleryManifest) -> Iterator[tuple[str, IndexPart]]:
    if not values:
        raise ArtifactError("index.shards is empty")
    for number, value in enumerate(values):
        fields = Fields(typed(value, dict, f"index.shards[{number}]"), f"index.shards[{number}]")
        name = fields.take("file", str)
        if name not in manifest.files or not name.startswith(f"{SHARDS_FOLDER}/"):
            raise ArtifactError(f"index.shards[{number}].file is {name[:80]!r}, which manifest.json does not list")
        counts = {key: fields.take(key, int) for key in ("rows", "left_out")}
        ids = fields.take("ids", str)
        if min(counts.values()) < 0 or max(counts.values()) > MAX_ROWS:
            raise ArtifactError(f"index.shards[{number}] holds {counts['rows']} rows without {counts['left_out']}")
        if not (ids.isascii() and ids.isdigit() and len(ids) <= 20 and int(ids) < _MAX_ID_SUM):
            raise ArtifactError(f"index.shards[{number}].ids is {ids[:40]!r}, wanted a number below 2^64")
        fields.done()
        yield name, IndexPart(counts["rows"], counts["left_out"], int(ids), manifest.files[name])
