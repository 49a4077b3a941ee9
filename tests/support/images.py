"""Image files of every kind, and image models that are a few lines of NumPy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from fct_infer.artifacts.manifest import Kind, Preprocessing
from fct_infer.backends.embedder import Embedder
from fct_infer.backends.runner import Batch, Interface, Runner

PLAIN = Preprocessing((8, 12), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class NumpyRunner(Runner):
    """Means over columns of the image, by default the first ``dim`` of them: a row depends on its image only."""

    backend, device, runtime = "numpy", "cpu", "numpy"

    def __init__(self, dim: int, shape: tuple[int, int, int], compute: Callable[[np.ndarray], np.ndarray] | None):
        self.interface = Interface({"image": shape}, dim)
        self.batch_sizes: list[int] = []
        self._compute = compute or (lambda images: images.mean(axis=2).reshape(len(images), -1)[:, :dim])

    def run(self, batch: Batch) -> np.ndarray:
        self.batch_sizes.append(len(batch["image"]))
        return np.ascontiguousarray(self._compute(batch["image"]), np.float32)


def numpy_embedder(
    dim: int = 6,
    preprocessing: Preprocessing | None = PLAIN,
    *,
    shape: tuple[int, int, int] | None = None,
    compute: Callable[[np.ndarray], np.ndarray] | None = None,
    kind: Kind = "backbone",
    version: str = "m1",
) -> Embedder:
    """An embedder; ``batch_sizes`` of its runner (``embedder._runner``) records the calls."""
    shape = shape or (3, *(preprocessing.size if preprocessing else (8, 12)))
    runner = NumpyRunner(dim, shape, compute)
    return Embedder(runner, kind=kind, model_version=version, precision="fp32", preprocessing=preprocessing)


def random_pixels(seed: int, height: int = 10, width: int = 14, channels: int = 3) -> np.ndarray:
    """(height, width, channels) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def image_bytes(pixels: np.ndarray, image_format: str = "PNG", **options: object) -> bytes:
    """A file's bytes of any array Pillow makes an image of."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def write_images(folder: Path, count: int, names: str = "{:03d}.png") -> dict[str, np.ndarray]:
    """Write random images; return the pixels by file name, in the order of their names."""
    pixels = {names.format(number): random_pixels(number, 9 + number % 5, 13 - number % 4) for number in range(count)}
    for name, image in pixels.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_bytes(image))
    return dict(sorted(pixels.items()))


def load_threads() -> list[threading.Thread]:
    """The threads that read images now."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("fct-load")]
