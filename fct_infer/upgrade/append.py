"""Growing a published gallery: parts whose source has not changed are taken over from DEST, the others transformed.

What is taken over is written into the unfinished work as if an earlier run had finished it, digests compared (from URL
to URL by way of this machine). From there on all is as in an upgrade that is resumed: rows and ids are, byte for byte,
those of an upgrade of all rows. Precisions that need ranges keep those that DEST was made with.

Where rows were only added behind those there are, the published index is taken over as well and extended: its lists and
codes stay as they were trained, and shards of one in shards stay as they are. Otherwise an index is built of all rows,
byte for byte that of a whole upgrade.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from fct_infer.cuda import device_numbers
from fct_infer.errors import UsageError
from fct_infer.gallery import Gallery, GalleryManifest, Part, read_manifest
from fct_infer.gallery.destination import Progress
from fct_infer.gallery.sink import Receipt
from fct_infer.index.builder import INDEX_NAME
from fct_infer.index.sharded import SHARDED_NAME, SHARDS_FOLDER, TRAINED_NAME, published_shards
from fct_infer.storage import DigestedFile, copy_file, remove_tree
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.predecessor import published_at, published_infos, published_inputs
from fct_infer.upgrade.report import UpgradeReport
from fct_infer.upgrade.work import FolderWork

_READ_AS = "read as"  # in a fingerprint: not a file, but how rows come from all of them
_OF_THE_INDEX = ("index", "metric", "old_index", "sharded_index", "block_rows")  # no row depends on them


def unchanged_parts(plan: Plan) -> list[Part]:
    """Return the parts of the source whose rows in DEST are still right; none if there is no DEST.

    A part is unchanged if the fingerprints of its files are: their sizes, times of change, and 18 pieces of each. Of a
    source without a file for each part, all files before it have to be unchanged as well.

    Raises:
        UsageError: DEST was made by another transformation or other settings, or of other files.
        ArtifactError: DEST is no published gallery, or is damaged.
    """
    if published_at(plan.dest) is None:
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
    if isinstance(plan.gallery, Gallery):
        return _unchanged_shards(plan.gallery, before["gallery"], plan.fingerprint)
    if not set(before["gallery"]) & set(plan.gallery.files):
        raise UsageError(
            f"{plan.gallery.path}: --append (append=True) wants the source that {plan.dest} was made of, grown: "
            "it has none of those files"
        )
    return _parts_of_first_files(plan, before["gallery"])


def _unchanged_shards(gallery: Gallery, known: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> list[Part]:
    return [
        shard
        for shard in gallery.shards
        if all(known.get(name) == fingerprint[name] for name in shard.names)
        and (shard.has_side or f"side_information/{shard.name}.npy" not in known)
        and (shard.has_ids or f"ids/{shard.name}.npy" not in known)
    ]


def _parts_of_first_files(plan: Plan, known: dict[str, Any]) -> list[Part]:
    """Return the parts that are cut out of first files which have not changed.

    Where a part ends is decided by what comes next: of the last one only if nothing else followed.
    """
    rows, is_all = _rows_of_first_files(plan, known)
    return [
        part
        for part in plan.gallery.parts()
        if part.first_row + part.rows < rows or (is_all and part.first_row + part.rows == rows)
    ]


def _rows_of_first_files(plan: Plan, known: dict[str, Any]) -> tuple[int, bool]:
    """Return how many rows come from first files that have not changed, and whether DEST was made of these alone."""
    now = plan.fingerprint
    read_as = [{**each.get(_READ_AS, {}), "parts": None} for each in (known, now)]
    if read_as[0] != read_as[1]:
        return 0, False
    before = sorted((name for name in known if name != _READ_AS), key=PurePosixPath)
    files = sorted(plan.gallery.files, key=PurePosixPath)
    pairs = zip(before, files, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] and known[pair[0]] == now[pair[1]], pairs))
    return plan.gallery.rows_of_first(same), same == len(before)


def index_is_extended(plan: Plan) -> bool:
    """Whether DEST's index is one of the first rows, all of them unchanged, and of the kind that is wanted.

    The others are built anew: an index on a device, or one that is to begin with another index's lists.
    """
    is_other = plan.old_lists is not None or device_numbers(plan.index_device)
    if plan.index is None or is_other or not _inputs(plan):
        return False
    before, manifest = _inputs(plan), read_manifest(_folder(plan))
    wanted = {"index": plan.index.factory, "metric": plan.settings.metric}
    return (
        (SHARDED_NAME if plan.settings.sharded_index else INDEX_NAME) in manifest.files
        and {name: before["settings"].get(name) for name in wanted} == wanted
        and manifest.ids == plan.gallery.id_facts.use
        and _first_rows(plan, before["gallery"]) == manifest.rows
    )


def _first_rows(plan: Plan, known: dict[str, Any]) -> int:
    """Return how many rows, from the first on, are as they were when DEST was made."""
    if not isinstance(plan.gallery, Gallery):
        return _rows_of_first_files(plan, known)[0]
    unchanged = set(_unchanged_shards(plan.gallery, known, plan.fingerprint))
    return sum(part.rows for part in takewhile(unchanged.__contains__, plan.gallery.shards))


def is_up_to_date(plan: Plan) -> bool:
    """Whether DEST is what the upgrade would make, of these files, by this transformation, and no work is left over."""
    return _inputs(plan) == plan.identity() and not plan.destination.begun_with()


def published_report(plan: Plan) -> UpgradeReport:
    """Return the report of what DEST is."""
    return UpgradeReport.of(published_infos(_folder(plan)))


def take_over(plan: Plan, work: FolderWork, progress: Progress | None) -> None:
    """Copy what is unchanged from DEST into the unfinished work; what is damaged in DEST is left to be made again."""
    if work.is_ready:
        return
    manifest, done, rows = None, work.finished, 0
    for part in unchanged_parts(plan):
        manifest = manifest or read_manifest(_folder(plan))
        if part.name not in done and (files := _copied(plan, work, manifest, part)):
            work.record(part, files)
        rows += part.rows
        if progress:
            progress("take over unchanged shards", rows, plan.gallery.schema.rows)
    if not work.journal.has("trained") and index_is_extended(plan):
        manifest = manifest or read_manifest(_folder(plan))
        if plan.settings.sharded_index:
            _take_over_shards(plan, work, manifest)
        else:
            held = manifest.rows if manifest.indexed_rows is None else manifest.indexed_rows
            _take_over_trained(plan, work, manifest, INDEX_NAME, left_out=manifest.rows - held)


def _take_over_shards(plan: Plan, work: FolderWork, manifest: GalleryManifest) -> None:
    """Let the published shards be parts that were built; what is damaged, or holds several parts, is built again."""
    if not _take_over_trained(plan, work, manifest, TRAINED_NAME):
        return  # shards of another training are no parts
    parts = {part.name for part in plan.gallery.parts()}
    for path, shard in published_shards(_folder(plan), manifest):
        if path.stem in parts and copy_file(path, work.gallery / SHARDS_FOLDER / path.name) == shard.file:
            work.journal.append("index part", name=path.stem, **shard.as_record())


def _take_over_trained(plan: Plan, work: FolderWork, manifest: GalleryManifest, name: str, left_out: int = 0) -> bool:
    """Let a published file be what was trained; False if it is damaged: then an index is built anew."""
    copied = copy_file(_folder(plan) / name, work.trained_index)
    if copied != manifest.files[name]:
        return False
    said = f"the published index of {manifest.rows:,} rows was extended: its lists and codes are as they were trained"
    work.journal.append("trained", **vars(copied), left_out=left_out, lists=said)
    return True


def _copied(plan: Plan, work: FolderWork, manifest: GalleryManifest, part: Part) -> Receipt:
    names = [name for name in manifest.files if "/" in name and PurePosixPath(name).stem == part.name]
    names = [name for name in names if not name.startswith(f"{SHARDS_FOLDER}/")]
    files: dict[str, DigestedFile] = {}
    for name in names:
        copied = copy_file(_folder(plan) / name, work.gallery / name)
        if copied != manifest.files[name]:
            for each in (*files, name):
                remove_tree(work.gallery / each)
            return {}
        files[name] = copied
    return files


def _folder(plan: Plan) -> Path:
    """Return where the files of DEST lie, which is there."""
    folder = published_at(plan.dest)
    assert folder is not None
    return folder


def _inputs(plan: Plan) -> dict[str, Any]:
    """Return what DEST was made of."""
    return published_inputs(plan.dest)


def _of_rows(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what decides the bytes of a row, by name: as it was, and as it is."""
    was, new = before["settings"], now["settings"]
    found = [(name, was.get(name), new.get(name)) for name in {**was, **new} if name not in _OF_THE_INDEX]
    found += [(name, before.get(name), now.get(name)) for name in ("transformation", "ranges")]
    return found
