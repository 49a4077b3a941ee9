"""Where images come from: files, folders of files, or one array; found first, read one by one from many threads."""

from __future__ import annotations

import math
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.backends.embedder import Embedder
from fct_infer.embedding.preprocessing import preprocess
from fct_infer.errors import ArrayError, ArtifactError, InputError, UsageError
from fct_infer.images import IMAGE_SUFFIXES, find_images, pillow, read_image
from fct_infer.storage import ReadFile, read_npy_header
from fct_infer.storage.closing import closed_if_refused
from fct_infer.transformation import Float32Array

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageSource(ABC):
    """Images in a fixed order, numbered from 0. Use as a context manager; :meth:`load` works from many threads.

    Attributes:
        ids: of each image, unique; None if they have none but their number.
        other_files: files found beside the images that are none, by their suffix.
    """

    ids: Sequence[str] | None = None
    other_files: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def name(self, number: int) -> str:
        """Return what to call an image in a message."""

    @abstractmethod
    def recipe(self, model: Embedder) -> Preprocessing | None:
        """Return what the images go through for ``model``; None if they have been through it already.

        Raises:
            UsageError: the model does not tell how images are prepared, or does not take RGB images.
            ArtifactError: what it tells contradicts the images it takes.
            ArrayError: the images are prepared already, for another model.
        """

    @abstractmethod
    def load(self, number: int, recipes: Sequence[Preprocessing | None]) -> tuple[Float32Array, ...]:
        """Read one image, once, and prepare it by each recipe: (channels, height, width) float32.

        Raises:
            InputError: the image cannot be read or decoded; names it.
        """

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Let go of open files."""

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_images(paths: Sequence[str | Path]) -> ImageSource:
    """Find the images that a user named: image files and folders of them, or one ``.npy`` file.

    Folders are walked to the bottom and taken in the order of their paths; hidden files and folders are left out. An id
    is the path inside the folder named, or a file's path as it was typed.

    Raises:
        InputError: a path does not exist or cannot be read; a folder holds no images; two images have one id.
        ArrayError: an array of another dtype or shape than :class:`ArrayFile` takes.
        MissingExtraError: Pillow is not installed and would be needed.
    """
    if not paths:
        raise UsageError("no images named; give image files, folders, or one .npy file")
    arrays = [path for path in map(Path, paths) if path.suffix.lower() == ".npy"]
    if not arrays:
        return ImageFiles(paths)
    if len(paths) > 1:
        raise UsageError(f"{arrays[0]}: an array of images is embedded alone, {len(paths)} inputs are named")
    return ArrayFile(arrays[0])


class ImageFiles(ImageSource):
    """Image files by their path. Raises as :func:`open_images`."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        pillow()
        self._paths: list[str] = []
        self.ids: list[str] = []
        for path in map(Path, paths):
            try:
                is_folder = stat.S_ISDIR(path.stat().st_mode)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: {getattr(error, 'strerror', error)}") from error
            if is_folder:
                self._add_folder(path)
            else:
                self._paths.append(str(path))
                self.ids.append(path.as_posix())
        self._check_ids()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, number: int) -> str:
        """Return the path."""
        return self._paths[number]

    def recipe(self, model: Embedder) -> Preprocessing:
        """See :class:`ImageSource`."""
        return _recipe_for_rgb(model)

    def load(self, number: int, recipes: Sequence[Preprocessing | None]) -> tuple[Float32Array, ...]:
        """See :class:`ImageSource`."""
        path = self._paths[number]
        return _preprocess_all(read_image(path), recipes, path)

    def _add_folder(self, folder: Path) -> None:
        images, others = find_images(folder)
        if not images:
            raise InputError(f"{folder}: holds no images, {others:,} other files; wanted {', '.join(IMAGE_SUFFIXES)}")
        self.other_files += others
        self._paths += images
        self.ids += [os.path.relpath(path, folder) for path in images]

    def _check_ids(self) -> None:
        paths: dict[str, str] = {}
        for image_id, path in zip(self.ids, self._paths, strict=True):
            if image_id in paths:
                raise InputError(f"{paths[image_id]} and {path} would both have the id {image_id!r}")
            if not image_id.isascii() and image_id.encode(errors="replace").decode() != image_id:
                raise InputError(f"{path!r}: the name is not UTF-8, so it cannot be an id; rename the file")
            paths[image_id] = path


class ArrayFile(ImageSource):
    """One ``.npy`` file: uint8 (n, h, w, 3) RGB, or float32 (n, c, h, w) as the model takes them.

    Images of uint8 that have the model's size already are not scaled.

    Raises:
        GalleryError: not a readable ``.npy`` file.
        ArrayError: another dtype or shape, or no images.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = ReadFile(path)
        with closed_if_refused(self._file):
            self._header = read_npy_header(self._file)
            shape, dtype = self._header.shape, self._header.dtype
            self._is_prepared = dtype == np.float32
            if len(shape) != 4 or dtype not in (np.uint8, np.float32) or (dtype == np.uint8 and shape[3] != 3):
                wanted = "uint8 (n, height, width, 3) in RGB, or float32 (n, channels, height, width) preprocessed"
                raise ArrayError(f"{path}: holds {dtype} {shape}, wanted {wanted}")
            if not math.prod(shape):
                raise ArrayError(f"{path}: holds no images, shape {shape}")
            if not self._is_prepared:
                pillow()

    def __len__(self) -> int:
        return self._header.shape[0]

    def name(self, number: int) -> str:
        """Return the file and the row."""
        return f"{self._path}: row {number}"

    def recipe(self, model: Embedder) -> Preprocessing | None:
        """See :class:`ImageSource`."""
        shape = self._header.shape[1:]
        if self._is_prepared:
            if shape != model.image_shape:
                raise ArrayError(
                    f"{self._path}: images of {_times(shape)}, {_title(model)} takes {_times(model.image_shape)}"
                )
            return None
        recipe = _recipe_for_rgb(model)
        return replace(recipe, resize=None) if shape[:2] == recipe.size else recipe

    def load(self, number: int, recipes: Sequence[Preprocessing | None]) -> tuple[Float32Array, ...]:
        """See :class:`ImageSource`."""
        image = np.empty(self._header.shape[1:], self._header.dtype)
        self._file.read_into(image, self._header.data_offset + number * self._header.row_bytes)
        if not self._is_prepared:
            return _preprocess_all(pillow().fromarray(image), recipes, self.name(number))
        if not np.isfinite(image).all():
            raise InputError(f"{self.name(number)} holds NaN or infinity")
        return tuple(image for _ in recipes)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _recipe_for_rgb(model: Embedder) -> Preprocessing:
    recipe, (channels, *size) = model.preprocessing, model.image_shape
    if recipe is None:
        raise UsageError(
            f"{_title(model)} does not tell how its images are prepared; export it again with --image-mean and "
            "--image-std, or give one .npy file of float32 images that are preprocessed already"
        )
    if channels != 3 or len(recipe.mean) != 3:
        raise UsageError(f"{_title(model)} takes {channels} channels; only a float32 array can give other than RGB")
    if recipe.size != tuple(size):
        raise ArtifactError(f"{_title(model)} takes {_times(size)}, its preprocessing makes {_times(recipe.size)}")
    return recipe


def _preprocess_all(image: Image, recipes: Sequence[Preprocessing | None], name: str) -> tuple[Float32Array, ...]:
    return tuple(preprocess(image, recipe, name) for recipe in recipes if recipe is not None)


def _title(model: Embedder) -> str:
    return f"{model.kind} model {model.model_version}"


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
