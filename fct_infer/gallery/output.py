"""Where a gallery is made: ``GALLERY.partial``, which becomes GALLERY by one rename, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fct_infer.errors import OutputError
from fct_infer.storage import Staging, check_place, check_replaceable, remove_tree

_GALLERY_FOLDERS = {"embeddings", "side_information", "ids", "model.json"}


@contextmanager
def new_gallery(dest: str | Path, inputs: Iterable[str | Path], *, force: bool = False) -> Iterator[Path]:
    """Yield a folder to fill; publish it as ``dest`` when the block ends, or remove it if the block raises.

    GALLERY.partial/lock      held meanwhile
    GALLERY.partial/gallery/  becomes GALLERY by one rename

    What a killed run left there is replaced; unfinished work of an upgrade is not.

    Args:
        dest: the gallery to make.
        inputs: what it is made from, which must not be replaced by it.
        force: let ``dest`` replace a gallery that is there, in one step.

    Raises:
        OutputError: ``dest`` exists and is not to be replaced or is more than a gallery; another process makes it.
        UsageError: no folder can have this name, or an input would be replaced or written into.
        ResourceError: disk full or another I/O error.
    """
    target = check_place(dest, {f"input {number}": path for number, path in enumerate(inputs, 1)})
    check_replaceable(target, _foreign, force=force)
    foreign = "exists and is not what a killed run leaves behind; remove it, or choose another output"
    with Staging(target, "gallery", foreign=foreign) as staging:
        try:
            remove_tree(staging.folder)
            yield staging.folder
            staging.publish(replace=force)
        finally:
            remove_tree(staging.folder)


def _foreign(folder: Path) -> str | None:
    others = sorted(_names(folder) - _GALLERY_FOLDERS)
    return f"it holds more than a gallery ({others[0]})" if others else None


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise OutputError(f"{folder}: exists and cannot be read as a folder: {error.strerror}") from error
