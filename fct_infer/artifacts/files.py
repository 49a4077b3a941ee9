"""Reading model files that may be anything: bounded, regular files only, every failure an ArtifactError."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fct_infer.errors import ArtifactError, GalleryError, UsageError
from fct_infer.storage import ReadFile, sha256_of_file

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


def path_of(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as a Path.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"the path of a model is a {type(path).__name__}, wanted a str or Path")
    return Path(path)


def read_file(path: Path, limit: int) -> bytes:
    """Return the whole file.

    Raises:
        ArtifactError: it is missing, unreadable, no regular file, or larger than ``limit`` bytes.
    """
    size = file_size(path)
    if size > limit:
        raise ArtifactError(f"{path}: {size:,} bytes, wanted at most {limit:,}")
    try:
        with ReadFile(path) as file:
            return file.read(size)
    except GalleryError as error:
        raise ArtifactError(str(error)) from error


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a regular file as hex; errors as in :func:`read_file`."""
    file_size(path)
    try:
        return sha256_of_file(path)
    except GalleryError as error:
        raise ArtifactError(str(error)) from error


def file_size(path: Path, *, follow_symlinks: bool = True) -> int:
    """Return the size in bytes of a regular file; anything else (a FIFO would block a read) is an ArtifactError."""
    try:
        status = path.stat(follow_symlinks=follow_symlinks)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path}: not a regular file")
    return status.st_size
