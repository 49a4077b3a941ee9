"""Growing a published gallery: parts whose source has not changed are taken over from DEST, the others transformed.

What is taken over is written into the unfinished work as if an earlier run had finished it, digests compared; from
there on all is as in an upgrade that is resumed, so the result is, byte for byte, that of an upgrade of all rows.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.gallery import Gallery, GalleryManifest, Part, read_manifest
from fct_infer.gallery.destination import Progress
from fct_infer.gallery.versions import INFOS_NAME
from fct_infer.storage import ReadFile, copy_file, remove_tree, work_folder
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.report import UpgradeReport
from fct_infer.upgrade.work import FolderWork

_MAX_INFOS_BYTES = 1 << 28
_OF_THE_INDEX = ("index", "metric", "old_index")  # it is built anew


def unchanged_parts(plan: Plan) -> list[Part]:
    """Return the parts of the source whose rows in DEST are still right; none if there is no DEST.

    A part is unchanged if the fingerprints of its files are: their sizes, times of change, and 18 pieces of each.

    Raises:
        UsageError: the source is no gallery folder, or DEST was made by another transformation or other settings.
        ArtifactError: DEST is no published gallery, or is damaged.
    """
    if not isinstance(plan.gallery, Gallery):
        raise UsageError(
            f"{plan.gallery.path}: --append (append=True) tells by a gallery folder's files which rows are new; "
            "fct-gallery convert makes one"
        )
    if not _has_dest(plan):
        return []
    before, now = _inputs(plan), plan.identity()
    different = [
        f"{name} (was {was}, is {new})" for name, was, new in _of_rows(before, now) if was != new
    ]  # fmt: skip
    if different:
        raise UsageError(
            f"{plan.dest}: rows were made otherwise: {'; '.join(different)}; --append keeps them as they are, "
            "--force alone makes all of them anew"
        )
    known, fingerprint = before["gallery"], plan.fingerprint
    names = {
        shard: [file.relative_to(plan.gallery.path).as_posix() for file in shard.files] for shard in plan.gallery.shards
    }
    return [
        shard
        for shard, files in names.items()
        if all(known.get(name) == fingerprint[name] for name in files)
        and (shard.side_information is not None or f"side_information/{shard.name}.npy" not in known)
        and (shard.ids is not None or f"ids/{shard.name}.npy" not in known)
    ]


def is_up_to_date(plan: Plan) -> bool:
    """Whether DEST is what the upgrade would make, of these files, by this transformation, and no work is left over."""
    return _has_dest(plan) and not work_folder(_folder(plan)).exists() and _inputs(plan) == plan.identity()


def published_report(plan: Plan) -> UpgradeReport:
    """Return the report of what DEST is."""
    return UpgradeReport.load(_folder(plan) / INFOS_NAME)


def take_over(plan: Plan, work: FolderWork, progress: Progress | None) -> None:
    """Copy what is unchanged from DEST into the unfinished work; what is damaged in DEST is left to be made again."""
    if work.is_ready:
        return
    manifest, done, rows = None, work.finished, 0
    for part in unchanged_parts(plan):
        manifest = manifest or read_manifest(_folder(plan))
        if part.name not in done and (files := _copied(plan, work, manifest, part)):
            work.journal.append("shard", name=part.name, rows=part.rows, files=files)
        rows += part.rows
        if progress:
            progress("take over unchanged shards", rows, plan.gallery.schema.rows)


def _copied(plan: Plan, work: FolderWork, manifest: GalleryManifest, part: Part) -> dict[str, dict[str, Any]]:
    names = [name for name in manifest.files if "/" in name and PurePosixPath(name).stem == part.name]
    files: dict[str, dict[str, Any]] = {}
    for name in names:
        copied = copy_file(_folder(plan) / name, work.gallery / name)
        if copied != manifest.files[name]:
            for each in (*files, name):
                remove_tree(work.gallery / each)
            return {}
        files[name] = vars(copied)
    return files


def _folder(plan: Plan) -> Path:
    if not isinstance(plan.dest, Path):
        raise UsageError(f"{plan.dest}: --append (append=True) grows a folder; a table follows its source anyway")
    return plan.dest


def _has_dest(plan: Plan) -> bool:
    folder = _folder(plan)
    return folder.is_dir() and any(folder.iterdir())


def _inputs(plan: Plan) -> dict[str, Any]:
    """Return what DEST was made of."""
    path = _folder(plan) / INFOS_NAME
    manifest = read_manifest(path.parent)
    with ReadFile(path) as file:
        data = file.read(min(file.size, _MAX_INFOS_BYTES))
    try:
        inputs = json.loads(data)["inputs"]
        if INFOS_NAME not in manifest.files or not isinstance(inputs["gallery"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: is damaged, or does not say what the gallery was made of") from error
    found: dict[str, Any] = inputs
    return found


def _of_rows(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what decides the bytes of a row, by name: as it was, and as it is."""
    was, new = before["settings"], now["settings"]
    found = [(name, was.get(name), new.get(name)) for name in {**was, **new} if name not in _OF_THE_INDEX]
    found += [(name, before.get(name), now.get(name)) for name in ("transformation", "ranges")]
    return found
