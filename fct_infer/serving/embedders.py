"""Where new embeddings of rows come from: a function, an endpoint, or vectors that were computed elsewhere."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors import open_source
from fct_infer.errors import ArrayError, FctError, StoppedError, UsageError
from fct_infer.serving.loading import all_ids
from fct_infer.serving.rows import Ids, find
from fct_infer.transformation import Float32Array

Embed: TypeAlias = Callable[[Ids], NDArray[Any]]
"""ids (n,) -> (n, dim) numbers; a row of NaN where the item cannot be embedded: it stays as it is."""

MAX_ANSWER_BYTES = 1 << 30
_TRIES = 5
_FIRST_WAIT = 0.5  # seconds; doubled with each try
_TIMEOUT = 300.0
_CLIENT_ERRORS = range(400, 500)
_PASSING = (408, 425, 429)  # of these, what another try may not meet


def open_embedder(spec: str) -> Embed:
    """Return what gives new embeddings.

    Args:
        spec: ``module:function``, which is imported and called; ``http://...`` or ``https://...``, see
            :class:`HttpEmbedder`; or a file or gallery of new vectors, matched by id.

    Raises:
        UsageError: it is none of these, or the function cannot be imported.
        FctError: the file cannot be opened.
    """
    if spec.startswith(("http://", "https://")):
        return HttpEmbedder(spec)
    if Path(spec).exists():
        return StoredEmbedder(spec)
    module, colon, name = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UsageError(f"{spec}: is neither a file, nor an address, nor module:function")
    sys.path.insert(0, "")  # as python -m has it
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{spec}: cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise UsageError(f"{spec}: is a {type(found).__name__}, wanted a function of ids")
    embed: Embed = found
    return embed


class StoredEmbedder:
    """Vectors that lie in a file or gallery, by id.

    Raises:
        GalleryError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self._source = open_source(path)
        ids = all_ids(self._source)
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]

    def __call__(self, ids: Ids) -> Float32Array:
        """Return rows (n, dim); NaN for ids that are not there."""
        rows = np.full((len(ids), self._source.schema.old_dim), np.nan, np.float32)
        if ids.dtype.kind != self._ids.dtype.kind:
            raise UsageError(f"{self._source.path}: ids are {self._ids.dtype}, the gallery's {ids.dtype}")
        places = find(ids, self._ids)
        here = np.flatnonzero(places >= 0)
        numbers = self._order[places[here]]
        sorted_places = np.argsort(numbers)
        rows[here[sorted_places]] = self._source.read_rows(numbers[sorted_places], with_side=False)[0]
        return rows


class HttpEmbedder:
    """An endpoint: ``POST {"ids": [...]}``, answered by ``{"embeddings": [[...], null, ...]}`` or a ``.npy`` array.

    A row that cannot be embedded is null, or NaN. What fails is tried again a few times, with growing pauses.

    Args:
        url: of the endpoint.
        tries: at most.
        wait: seconds before the second try.
    """

    def __init__(self, url: str, tries: int = _TRIES, wait: float = _FIRST_WAIT) -> None:
        self._url, self._tries, self._wait = url, tries, wait

    def __call__(self, ids: Ids) -> NDArray[Any]:
        """Return rows (n, dim).

        Raises:
            StoppedError: it does not answer.
            ArrayError: it answers something else than rows.
        """
        body = json.dumps({"ids": ids.tolist()}).encode()
        for number in range(self._tries):
            if number:
                time.sleep(self._wait * 2 ** (number - 1))
            request = Request(self._url, body, {"Content-Type": "application/json"})
            try:
                with urlopen(request, timeout=_TIMEOUT) as answer:
                    return self._rows(answer.read(MAX_ANSWER_BYTES), len(ids))
            except (OSError, HTTPException) as error:
                failure = error
                if isinstance(error, HTTPError):
                    error.close()
                    if error.code in _CLIENT_ERRORS and error.code not in _PASSING:
                        break
        raise StoppedError(f"{self._url}: gives no embeddings: {failure}; what is done is kept") from failure

    def _rows(self, data: bytes, count: int) -> NDArray[Any]:
        if data.startswith(b"\x93NUMPY"):
            return self._array(data)
        try:
            rows = json.loads(data)["embeddings"]
            dim = max((len(row) for row in rows if row is not None), default=0)
            return np.array([[np.nan] * dim if row is None else row for row in rows], np.float32).reshape(-1, dim)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArrayError(f"{self._url}: answers neither a .npy array nor embeddings in JSON") from error

    def _array(self, data: bytes) -> NDArray[Any]:
        file = io.BytesIO(data)
        try:
            np.lib.format.read_magic(file)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if is_fortran or dtype.hasobject:
                raise ValueError(f"is {dtype} in Fortran order or of objects")
            return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
        except ValueError as error:
            raise ArrayError(f"{self._url}: answers a .npy array that cannot be read: {str(error)[:200]}") from error


def embedded(embed: Embed, ids: Ids, dim: int) -> tuple[Float32Array, NDArray[np.bool_]]:
    """Return rows (n, dim) float32 and which of them there are.

    Raises:
        StoppedError: what embeds failed.
        ArrayError: it gave something else than (n, dim) numbers, or a row holds infinity.
    """
    try:
        given = np.asarray(embed(ids))
    except FctError:
        raise
    except Exception as error:
        raise StoppedError(
            f"the embedder raised {type(error).__name__}: {str(error)[:500]}; what is done is kept"
        ) from error
    if not given.size and len(given) == len(ids):  # all of them null, in JSON
        given = np.full((len(ids), dim), np.nan, np.float32)
    if given.shape != (len(ids), dim) or given.dtype.kind not in "fiu":
        raise ArrayError(f"the embedder gave {given.dtype} {given.shape}, wanted numbers ({len(ids)}, {dim})")
    rows = given.astype(np.float32)
    is_there = np.asarray(~np.isnan(rows).any(axis=1))
    finite = np.isfinite(rows).all(axis=1) | ~is_there
    if not finite.all():
        raise ArrayError(f"the embedder gave infinity for id {ids[np.argmin(finite)].item()!r}")
    return np.ascontiguousarray(rows[is_there]), is_there
