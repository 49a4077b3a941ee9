"""What DEST is before it grows or is replaced: where its files lie, and what it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fct_infer.errors import ArtifactError, UsageError
from fct_infer.gallery import read_manifest
from fct_infer.gallery.url_place import UrlPlace
from fct_infer.gallery.versions import INFOS_NAME
from fct_infer.storage import ReadFile, RemotePath

_MAX_INFOS_BYTES = 1 << 28


def published_at(place: Path | str) -> Path | None:
    """Return the folder of what DEST is now; None where there is none.

    Raises:
        UsageError: it is a table.
        ArtifactError: a URL's ``published.json`` is damaged.
    """
    if not isinstance(place, Path):
        raise UsageError(f"{place}: --append (append=True) grows a folder; a table follows its source anyway")
    if isinstance(place, RemotePath):
        current = UrlPlace(place).current()
        return None if current is None else current[1]
    return place if place.is_dir() and any(place.iterdir()) else None


def published_infos(folder: Path) -> dict[str, Any]:
    """Return what ``upgrade_infos.json`` says of a published gallery.

    Raises:
        ArtifactError: it is no published gallery, is damaged, or does not say what it was made of.
    """
    path = folder / INFOS_NAME
    manifest = read_manifest(folder)
    with ReadFile(path) as file:
        data = file.read(min(file.size, _MAX_INFOS_BYTES))
    try:
        infos: dict[str, Any] = json.loads(data)
        if INFOS_NAME not in manifest.files or not isinstance(infos["inputs"]["gallery"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: is damaged, or does not say what the gallery was made of") from error
    return infos


def published_inputs(place: Path | str) -> dict[str, Any]:
    """Return the identity of the upgrade that made DEST; empty where there is none.

    Raises:
        UsageError, ArtifactError: see :func:`published_at`, :func:`published_infos`.
    """
    folder = published_at(place)
    inputs: dict[str, Any] = {} if folder is None else published_infos(folder)["inputs"]
    return inputs
