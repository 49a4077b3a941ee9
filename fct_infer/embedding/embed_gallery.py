"""``embed_gallery``: load images ahead of the models, embed them batch by batch, write a gallery, publish it."""

from __future__ import annotations

import shlex
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from fct_infer.backends.embedder import Embedder
from fct_infer.embedding.images import ImageSource, open_images
from fct_infer.errors import InputError, NonFiniteError, UsageError
from fct_infer.gallery import GalleryWriter
from fct_infer.gallery.model_file import write_model
from fct_infer.gallery.output import new_gallery
from fct_infer.machine import usable_cpus
from fct_infer.notebook import shows_progress
from fct_infer.transformation import Float32Array

OnError: TypeAlias = Literal["fail", "skip"]
Ids: TypeAlias = Literal["path", "row"]
Progress: TypeAlias = Callable[[str, int, int], None]
_T = TypeVar("_T")

DEFAULT_BATCH_SIZE = 64
BATCHES_AHEAD = 2  # decoded while a batch is embedded
SHARD_BYTES = 128 << 20  # of a shard by default: it is put together in memory


@dataclass(frozen=True)
class ModelUsed:
    """A model of an :class:`EmbedReport`: which it is, and what ran it."""

    kind: str
    model_version: str
    dim: int
    backend: str
    device: str
    precision: str


@dataclass(frozen=True)
class EmbedReport:
    """Result of :func:`embed_gallery`.

    Attributes:
        gallery: the published folder.
        rows, shards: its size.
        skipped: images left out because they could not be read.
        other_files: files in the folders named that are no images by their suffix.
        embedding_dim, side_dim: widths; ``side_dim`` is None without side-information.
        dtype: of both.
        ids: ``path``; ``row`` if the rows have only their number.
        seconds, images_per_second: of reading, embedding and writing.
        models: the model, then those of the side-information, in the order of their columns.
    """

    gallery: Path
    rows: int
    shards: int
    skipped: int
    other_files: int
    embedding_dim: int
    side_dim: int | None
    dtype: str
    ids: Ids
    seconds: float
    images_per_second: float
    models: tuple[ModelUsed, ...]

    @property
    def next_command(self) -> str:
        """What to type next."""
        return f"fct-upgrade-gallery {shlex.quote(str(self.gallery))} --transformation BUNDLE -o DEST"

    def as_dict(self) -> dict[str, Any]:
        """Return the report as strict JSON."""
        return asdict(self) | {"gallery": str(self.gallery), "next_command": self.next_command}


@shows_progress
def embed_gallery(
    images: str | Path | Sequence[str | Path],
    dest: str | Path,
    model: Embedder,
    side_information: Sequence[Embedder] = (),
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    rows_per_shard: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    ids: Ids | None = None,
    on_error: OnError = "fail",
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> EmbedReport:
    """Embed images and publish the gallery as ``dest`` in one step; memory does not grow with their number.

    Work happens in ``<dest>.partial``, which a later call replaces if this one is killed.

    Args:
        images: what :func:`~fct_infer.embedding.open_images` takes.
        dest: folder to create.
        model: makes ``embeddings/``.
        side_information: models that make ``side_information/`` from the same images; their columns follow each other.
        batch_size: images a model gets at once, the last batch excepted.
        rows_per_shard: rows of a file of the gallery; by default about 128 MiB.
        dtype: of embeddings and side-information.
        ids: ``path`` or ``row``; by default ``path`` for files, and an array has no other than ``row``. ``row`` writes
            no ids, unless images may be left out: then the image's number is its id, as rows no longer tell it.
        on_error: ``skip`` leaves out an image that cannot be read instead of stopping there.
        threads: that read and decode; by default as many as there are CPUs.
        force: replace a gallery at ``dest`` once the new one is complete.
        progress: called as ``progress(stage, images_done, images)``.
        on_skip: called with the reason for each image left out.

    Raises:
        UsageError: the call makes no sense, or a model does not tell how its images are prepared.
        InputError: an image cannot be read, or its embedding holds NaN or infinity or does not fit ``dtype``; names it.
        OutputError: ``dest`` exists or is in use.
        ResourceError: not enough memory or disk.
    """
    paths = [images] if isinstance(images, str | Path) else list(images)
    models = (model, *side_information)
    for each in models:
        if not isinstance(each, Embedder):
            raise UsageError(f"a model is a {type(each).__name__}, wanted an Embedder: fct_infer.load_embedder(...)")
    threads = usable_cpus() if threads is None else threads
    _check_at_least_one(batch_size=batch_size, threads=threads, rows_per_shard=rows_per_shard)
    _check_choices(dtype=dtype, on_error=on_error, ids=ids)
    if model.kind == "side-information":
        raise UsageError(f"model {model.model_version} makes side-information; it does not make a gallery's embeddings")
    with open_images(paths) as source, new_gallery(dest, paths, force=force) as folder:
        ids = _choose_ids(ids, source)
        dims = [each.embedding_dim for each in models]
        rows_per_shard = rows_per_shard or max(1, SHARD_BYTES // (sum(dims) * np.dtype(dtype).itemsize))
        writer = GalleryWriter(folder, rows_per_shard, dtype)
        run = _Run(source, models, writer, ids, on_error, progress, on_skip)
        started = time.perf_counter()
        run.to_the_end(batch_size, threads)
        if model.model is not None:
            write_model(folder, model.model)
        seconds = time.perf_counter() - started
    return EmbedReport(
        gallery=Path(dest),
        rows=writer.rows,
        shards=-(-writer.rows // rows_per_shard),
        skipped=run.skipped,
        other_files=source.other_files,
        embedding_dim=dims[0],
        side_dim=sum(dims[1:]) or None,
        dtype=dtype,
        ids=ids,
        seconds=seconds,
        images_per_second=writer.rows / seconds,
        models=tuple(_used(each) for each in models),
    )


class _Run:
    """One pass over the images."""

    def __init__(
        self,
        source: ImageSource,
        models: Sequence[Embedder],
        writer: GalleryWriter,
        ids: Ids,
        on_error: OnError,
        progress: Progress | None,
        on_skip: Callable[[str], None] | None,
    ) -> None:
        self.source, self.models, self.writer, self.on_error = source, models, writer, on_error
        self.progress, self.on_skip = progress, on_skip
        self.skipped, self._last_reason = 0, ""
        recipes = [source.recipe(model) for model in models]
        self._recipes = list(dict.fromkeys(recipes))  # models that want the same images share them
        self._input_of = [self._recipes.index(recipe) for recipe in recipes]
        self._ids: Sequence[str] | None = source.ids if ids == "path" else None
        self._id_dtype = f"U{max(map(len, self._ids))}" if self._ids else None  # the same width in every shard

    def to_the_end(self, batch_size: int, threads: int) -> None:
        count, done = len(self.source), 0
        self._report(0)
        ahead = max(BATCHES_AHEAD * batch_size, 2 * threads)
        with closing(load_ahead(self._load, count, threads, ahead)) as loaded, self.writer:
            numbers: list[int] = []
            inputs: list[tuple[Float32Array, ...]] = []
            for number, result in enumerate(loaded):
                if isinstance(result, InputError):
                    self._skip(result)
                else:
                    numbers.append(number)
                    inputs.append(result)
                if len(numbers) == batch_size or (numbers and number == count - 1):
                    self._embed(numbers, inputs)
                    numbers, inputs, done = [], [], number + 1
                    self._report(done)
        if not self.writer.rows:
            raise InputError(f"none of the {count:,} images could be read; the last: {self._last_reason}")
        if done < count:
            self._report(count)

    def _load(self, number: int) -> tuple[Float32Array, ...] | InputError:
        try:
            return self.source.load(number, self._recipes)
        except InputError as error:
            return error

    def _skip(self, error: InputError) -> None:
        if self.on_error == "fail":
            raise error
        self.skipped += 1
        self._last_reason = str(error)
        if self.on_skip:
            self.on_skip(self._last_reason)

    def _embed(self, numbers: list[int], inputs: list[tuple[Float32Array, ...]]) -> None:
        batches = [np.stack(images) for images in zip(*inputs, strict=True)]
        vectors = [
            self._vectors(model, batches[which], numbers)
            for model, which in zip(self.models, self._input_of, strict=True)
        ]
        side = np.concatenate(vectors[1:], axis=1) if len(vectors) > 1 else None
        self.writer.append(vectors[0], side, self._ids_of(numbers))

    def _vectors(self, model: Embedder, batch: Float32Array, numbers: list[int]) -> NDArray[Any]:
        """Return the embeddings of a batch in the gallery's dtype."""
        of = f"its embedding by {model.kind} model {model.model_version}"
        try:
            embeddings = model(batch)
        except NonFiniteError as error:
            raise InputError(f"{self.source.name(numbers[error.row])}: {of} holds NaN or infinity") from error
        with np.errstate(over="ignore"):
            narrowed = embeddings.astype(self.writer.dtype, copy=False)
        fits = np.isfinite(narrowed).all(axis=1)
        if not fits.all():
            row = int(np.argmin(fits))
            largest, limit = np.abs(embeddings[row]).max(), np.finfo(self.writer.dtype).max
            name = self.source.name(numbers[row])
            raise InputError(f"{name}: {of} reaches {largest:g}, {narrowed.dtype} ends at {limit:g}; use float32")
        return narrowed

    def _ids_of(self, numbers: list[int]) -> NDArray[Any] | None:
        if self._ids is not None:
            return np.array([self._ids[number] for number in numbers], self._id_dtype)
        return np.array(numbers, np.int64) if self.on_error == "skip" else None

    def _report(self, done: int) -> None:
        if self.progress:
            self.progress("embed", done, len(self.source))


def load_ahead(load: Callable[[int], _T], count: int, threads: int, ahead: int) -> Generator[_T, None, None]:
    """Yield ``load(0)`` to ``load(count - 1)`` in order, computed on ``threads`` threads.

    At most ``ahead`` results are begun or wait at any time. Close the iterator to stop early: what has not begun is
    dropped, and no thread is left behind.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fct-load")
    waiting: deque[Future[_T]] = deque()
    try:
        for number in range(count):
            if len(waiting) == ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(load, number))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, wanted at least 1")


def _check_choices(**choices: str | None) -> None:
    allowed = {"dtype": ("float32", "float16"), "on_error": get_args(OnError), "ids": (None, *get_args(Ids))}
    for name, choice in choices.items():
        if choice not in allowed[name]:
            wanted = ", ".join(each for each in allowed[name] if each)
            raise UsageError(f"{name} is {choice!r}, wanted one of {wanted}")


def _choose_ids(ids: Ids | None, source: ImageSource) -> Ids:
    if ids == "path" and source.ids is None:
        raise UsageError("ids is 'path', but the images of an array have no paths; wanted 'row'")
    return ids or ("row" if source.ids is None else "path")


def _used(model: Embedder) -> ModelUsed:
    return ModelUsed(model.kind, model.model_version, model.embedding_dim, model.backend, model.device, model.precision)
