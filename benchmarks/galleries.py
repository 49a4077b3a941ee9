"""Synthetic galleries on disk: rows near a low-dimensional surface, as embeddings are, so that an index has a task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fct_infer.transformation import Float32Array

SHARD_ROWS = 100_000
LATENT_DIM = 24
NOISE = 0.1
KINDS = ("embeddings", "side_information")
SEED = 3


def write_gallery(path: Path, rows: int, dims: dict[str, int], dtype: type[np.floating] = np.float32) -> None:
    """Write ``embeddings/`` and ``side_information/`` shards; ``dims`` are those of a Program."""
    rng = np.random.default_rng(SEED)
    maps = [rng.standard_normal((LATENT_DIM, dim), np.float32) / np.sqrt(LATENT_DIM) for dim in dims.values()]
    for shard, start in enumerate(range(0, rows, SHARD_ROWS)):
        latent = rng.standard_normal((min(SHARD_ROWS, rows - start), LATENT_DIM), np.float32)
        for kind, projection in zip(KINDS, maps, strict=True):
            noise = rng.standard_normal((len(latent), projection.shape[1]), np.float32)
            folder = path / kind
            folder.mkdir(parents=True, exist_ok=True)
            values = latent @ projection.astype(np.float32) + np.float32(NOISE) * noise
            np.save(folder / f"{shard:06}.npy", values.astype(dtype))


def repeat_gallery(source: Path, path: Path, times: int) -> None:
    """Make a gallery of another one's shards, several times over, that takes no more storage."""
    for kind in KINDS:
        (path / kind).mkdir(parents=True)
        for number, shard in enumerate(shards(source, kind) * times):
            (path / kind / f"{number:06}.npy").hardlink_to(shard)


def shards(path: Path, kind: str = "embeddings") -> list[Path]:
    """Return the files of one kind in order."""
    return sorted((path / kind).glob("*.npy"))


def read_shards(path: Path, kind: str = "embeddings") -> Iterator[Float32Array]:
    """Yield the arrays of one kind in order."""
    for file in shards(path, kind):
        yield np.load(file)


def warm_page_cache(path: Path) -> None:
    """Read every byte once, so that each contestant finds the gallery in the same state."""
    if path.is_file():
        path.read_bytes()
        return
    files = {file.stat().st_ino: file for kind in KINDS for file in shards(path, kind)}
    for file in files.values():
        np.load(file)
