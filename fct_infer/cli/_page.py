"""Where ``--report`` may write its page."""

from __future__ import annotations

from pathlib import Path

from fct_infer.errors import OutputError, UsageError

_BEGINS = b"<!doctype html"  # of every page, in small letters


def check_page(page: Path, dest: Path | str | None = None) -> None:
    """Say before the work what would be wrong with a page there; leaves no file.

    Args:
        page: where it is to be written.
        dest: what the command publishes, which holds nothing else.

    Raises:
        OutputError: a file that is no page, such as one of the inputs, would be replaced.
        UsageError: it would lie in ``dest``, or in what belongs to it.
        ResourceError: it cannot be written.
    """
    from fct_infer.storage import DurableWriter, RemotePath
    from fct_infer.storage.destination import versions_folder, work_folder

    if isinstance(dest, Path) and not isinstance(dest, RemotePath):
        for folder in (dest, work_folder(dest), versions_folder(dest)):
            if page.resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"--report {page}: lies in {folder}, which holds the gallery alone; name another place"
                )
    if page.is_file() and not _is_page(page):
        raise OutputError(f"--report {page}: exists and is no HTML page, so it is not replaced; name another file")
    DurableWriter(page).abort()


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            found = file.read(len(_BEGINS))
    except OSError:
        return False
    return not found or found.lower() == _BEGINS
