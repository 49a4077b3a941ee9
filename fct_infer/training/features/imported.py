"""Cached embeddings in other formats than ``.npy``: written once as ``.npy`` into the run's folder.

A training reads rows in another order every epoch, which only ``.npy`` gives about as fast as the next one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.connectors.convert import convert
from fct_infer.connectors.registry import kind_of
from fct_infer.errors import ArtifactError, GalleryError, OutputError, UsageError
from fct_infer.gallery import Source, read_npy, write_npy
from fct_infer.gallery.model_file import model_of
from fct_infer.identity import ModelId
from fct_infer.storage import remove_tree, write_bytes
from fct_infer.storage.strict_json import parse_strict, sealed_bytes

if TYPE_CHECKING:
    from fct_infer.training.runs.folder import RunFolder
    from fct_infer.training.trainers.transformation_data import FeatureFolders

_SOURCES = "sources.json"  # what the files were made from; written last


def prepare_features(run: RunFolder, data: FeatureFolders, number: int = 0) -> FeatureFolders:
    """Return a set of cached embeddings as ``.npy``: itself, a gallery's folders, or converted into the run's folder.

    Args:
        run: begun here if anything is converted.
        data: what the user named.
        number: of the set, in a mixture.

    Raises:
        UsageError: a format is not known, a column must be named, or folders of shards are mixed with other formats.
        GalleryError: a file is malformed, or rows or ids of the columns are not the same; names the file.
        OutputError: files were changed since the run was begun.
    """
    data = _in_galleries(data)
    side = _listed(data.side)
    if all(_is_npy(Path(path)) for path in (data.old, data.new, *side)):
        return data
    sources = {"old": _open(data.old, data.old_column, data), "new": _open(data.new, data.new_column, data)}
    sources |= {f"side-{place}": _open(path, None, data) for place, path in enumerate(side)}
    _check_rows(sources)
    folder = run.path / "features" / f"converted-{number}"
    run.begin()
    run.first(lambda: _convert(folder, sources, data, is_resumed=run.is_resumed))
    names = [name for name in sources if name.startswith("side-")]
    converted: dict[str, Any] = {name: str(folder / name / "embeddings") for name in ("old", "new")}
    if names:
        converted["side"] = tuple(str(folder / name / "embeddings") for name in names)
    elif sources["old"].schema.side_dim is not None:
        converted["side"] = str(folder / "old" / "side_information")
    labels = (name for name in ("labels", "groups") if getattr(data, name) is not None)
    return replace(data, **(converted | {name: str(folder / f"{name}.npy") for name in labels}))


def models_of_features(data: FeatureFolders) -> tuple[str | None, str | None]:
    """Return whose vectors ``old`` and ``new`` are, as their files say: as :meth:`ModelId.of` takes it, or None."""
    models = (_model_of(data.old, data.old_column, data), _model_of(data.new, data.new_column, data))
    old, new = (None if model is None else model.text for model in models)
    return old, new


def _model_of(path: str, column: str | None, data: FeatureFolders) -> ModelId | None:
    place = Path(path)
    if _is_gallery(place):
        return model_of(place)
    if not _is_npy(place):
        return _open(path, column, data).model
    return model_of(place.parent) if place.is_dir() and place.name == "embeddings" else None


def _in_galleries(data: FeatureFolders) -> FeatureFolders:
    """Return the set with the folders of shards in place of the galleries that hold them."""
    found: dict[str, Any] = {}
    for name in ("old", "new"):
        place = Path(getattr(data, name))
        if _is_gallery(place):
            found[name] = str(place / "embeddings")
    own_side = Path(data.old) / "side_information"
    if "old" in found and data.side is None and own_side.is_dir():
        found["side"] = str(own_side)
    return replace(data, **found)


def _is_gallery(path: Path) -> bool:
    return (path / "embeddings").is_dir() and kind_of(path) == "folder"


def _is_npy(path: Path) -> bool:
    """Whether it is one ``.npy`` file or a folder of them, as far as can be told; what is neither is told later."""
    if path.is_dir():
        return kind_of(path) == "folder" and not _is_gallery(path)
    return path.suffix == ".npy" or not path.exists()


def _open(path: str, column: str | None, data: FeatureFolders) -> Source:
    place = Path(path)
    if place.is_dir() and _is_npy(place):
        if place.name != "embeddings":
            raise UsageError(f"{place}: a folder of .npy shards goes with other such folders; name a gallery, or files")
        place = place.parent
    return open_source(place, SourceOptions(column, allow_cast=data.allow_cast))


def _check_rows(sources: dict[str, Source]) -> None:
    rows = {name: source.schema.rows for name, source in sources.items()}
    for name, count in rows.items():
        if count != rows["old"]:
            raise GalleryError(
                f"{sources[name].path}: holds {count:,} rows, {sources['old'].path} {rows['old']:,}; row i of both is "
                "the same item. fct-fit matches rows by ids"
            )


def _convert(folder: Path, sources: dict[str, Source], data: FeatureFolders, *, is_resumed: bool) -> None:
    made_from = {name: dict(source.fingerprint()) for name, source in sources.items()}
    known = _made_from(folder / _SOURCES)
    if known == made_from:
        return
    if known is not None and is_resumed:
        raise OutputError(f"{folder}: was made from files that have changed since; --restart begins anew")
    remove_tree(folder)
    columns = {"old": data.old_column, "new": data.new_column}
    for name, source in sources.items():
        options = SourceOptions(columns.get(name), allow_cast=data.allow_cast)
        convert(source.path, folder / name, options, rows_per_shard=source.schema.rows)
    for name in ("labels", "groups"):
        if (given := getattr(data, name)) is not None:
            place = Path(given)
            files = sorted(place.glob("[!.]*.npy")) if place.is_dir() else [place]
            write_npy(folder / f"{name}.npy", np.concatenate([read_npy(file) for file in files]))
    _check_ids(folder, sources)
    write_bytes(folder / _SOURCES, sealed_bytes({"sources": made_from}))


def _check_ids(folder: Path, sources: dict[str, Source]) -> None:
    old, new = (folder / name / "ids" / "000000.npy" for name in ("old", "new"))
    if not (old.exists() and new.exists()):
        return
    ids = [read_npy(file) for file in (old, new)]
    if (other := np.flatnonzero(ids[0] != ids[1])).size:
        row = int(other[0])
        raise GalleryError(
            f"{sources['new'].where(row)}: is of id {ids[1][row].item()!r}, the old row of {ids[0][row].item()!r}; "
            "row i of both is the same item. fct-fit matches rows by ids"
        )


def _made_from(path: Path) -> Any:
    try:
        return parse_strict(path.read_bytes())["sources"]
    except (OSError, ArtifactError, TypeError, KeyError):
        return None


def _listed(paths: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if paths is None else (paths,) if isinstance(paths, str) else tuple(paths)
