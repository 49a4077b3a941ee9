"""A bundle: a folder with one model as the files production runs, published whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fct_infer.artifacts.files import digest_file, file_size
from fct_infer.artifacts.manifest import MANIFEST_NAME, BundleFile, Manifest, read_manifest
from fct_infer.artifacts.precisions import PRECISIONS
from fct_infer.errors import ArtifactError
from fct_infer.storage import Staging, check_place, check_replaceable, remove_tree, write_bytes


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte has been checked against its manifest."""

    path: Path
    manifest: Manifest

    def file(self, target: str, precision: str = "auto") -> BundleFile:
        """Return what the manifest says of the file for ``target`` in ``precision``; ``auto`` is the most exact.

        Raises:
            ArtifactError: the bundle has none.
        """
        files = {file.precision: file for file in self.manifest.files if file.target == target}
        if not files:
            targets = ", ".join(dict.fromkeys(file.target for file in self.manifest.files))
            raise ArtifactError(f"{self.path}: has no file for {target!r}, only for {targets}")
        if precision == "auto":
            return min(files.values(), key=lambda file: PRECISIONS.index(file.precision))
        if precision not in files:
            raise ArtifactError(
                f"{self.path}: has {target!r} in {', '.join(files)}, not in {precision}; ask for one of them, or auto"
            )
        return files[precision]

    def has(self, target: str, precision: str = "auto") -> bool:
        """Whether there is a file for ``target``, in ``precision`` or in any."""
        return any(file.target == target and precision in ("auto", file.precision) for file in self.manifest.files)


def open_bundle(path: str | Path) -> Bundle:
    """Read the manifest and check size and SHA-256 of every file it lists.

    Raises:
        ArtifactError: the manifest is malformed, or a file is missing, damaged or no regular file; names the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: not a bundle (a folder that fct-export writes)")
    bundle = Bundle(folder, read_manifest(folder))
    for file in bundle.manifest.files:
        _check(folder / file.name, file)
    return bundle


def _check(path: Path, file: BundleFile) -> None:
    size = file_size(path, follow_symlinks=False)
    if size != file.size:
        raise ArtifactError(f"{path}: {size:,} bytes, the manifest says {file.size:,}; it is damaged or was replaced")
    if digest_file(path) != file.sha256:
        raise ArtifactError(f"{path}: does not match the sha256 in the manifest; it is damaged or was replaced")


def write_bundle(path: str | Path, fill: Callable[[Path], Manifest], *, force: bool = False) -> Manifest:
    """Publish a bundle: ``fill`` writes the model files into a working folder and returns the manifest.

    The manifest is written last and the folder gets its name by one rename, so ``path`` never holds half a bundle.
    What ``fill`` raises is passed on, and nothing stays behind. ``fill`` writes through ``storage``, which makes the
    folder.

    Args:
        path: where the bundle will be; parents are made.
        fill: gets the working folder, ``bundle`` in a sibling of ``path``.
        force: replace a bundle at ``path``, in one step, once the new one is complete.

    Raises:
        OutputError: ``path`` exists and ``force`` is not set, or another process is writing it.
        ResourceError: the disk is full, or another I/O error.
    """
    target = refuse_existing(path, force=force)
    with Staging(target, "bundle") as staging:
        staging.clear()  # of a run that was killed
        try:
            manifest = fill(staging.folder)
            write_bytes(staging.folder / MANIFEST_NAME, manifest.to_bytes())
            staging.publish(replace=force)
        finally:
            remove_tree(staging.folder)
    return manifest


def refuse_existing(path: str | Path, inputs: Mapping[str, str | Path] | None = None, *, force: bool = False) -> Path:
    """Say before any work is done that :func:`write_bundle` would refuse ``path``; return it as an absolute path.

    Args:
        path: where the bundle will be.
        inputs: what it is made from, by what each is called in a message; none of it may be replaced.
        force: replace a bundle that is there.

    Raises:
        UsageError: no folder can have this name, or an input would be replaced or written into.
        OutputError: something is there, and ``force`` is not set or it is no bundle.
    """
    target = check_place(path, inputs or {})
    check_replaceable(target, _foreign, force=force)
    return target


def _foreign(folder: Path) -> str | None:
    try:
        known = {MANIFEST_NAME, *(file.name for file in read_manifest(folder).files)}
    except ArtifactError:
        return "it is not a bundle"
    others = sorted(path.name for path in folder.iterdir() if path.name not in known)
    return f"it holds {others[0]} beside a bundle" if others else None
