"""Which files below a folder are images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fct_infer.errors import InputError
from fct_infer.images.decoding import IMAGE_SUFFIXES


def find_images(folder: str | Path) -> tuple[list[str], int]:
    """Return the paths of all image files below a folder, sorted, and how many other files lie there.

    Raises:
        InputError: as :func:`walk`.
    """
    files = list(walk(folder))
    images = sorted(path for path in files if path.lower().endswith(IMAGE_SUFFIXES))
    return images, len(files) - len(images)


def walk(folder: str | Path) -> Iterator[str]:
    """Yield the paths of all files under a folder, links followed, hidden ones left out, in no certain order.

    Raises:
        InputError: a folder cannot be read, or a link leads back to a folder it lies in.
    """
    folder = str(folder)
    waiting = [(folder, frozenset({os.path.realpath(folder)}))]
    while waiting:
        here, above = waiting.pop()
        try:
            entries = [(entry, entry.is_dir()) for entry in os.scandir(here) if not entry.name.startswith(".")]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
        for entry, is_folder in entries:
            if not is_folder:
                yield entry.path
                continue
            real = os.path.realpath(entry.path)
            if real in above:
                raise InputError(f"{entry.path}: links back to a folder it lies in")
            waiting.append((entry.path, above | {real}))
