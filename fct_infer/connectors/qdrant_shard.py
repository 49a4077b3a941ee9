"""A shard of Qdrant Edge, the engine in this process: the new version is one more named vector of the same points."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.collection_target import refuse_normalised
from fct_infer.connectors.engine_url import EngineUrl
from fct_infer.connectors.keyed_store import Keys, Page, Store, Target, find_keyed_columns, make_field, page_of
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.errors import FctError, GalleryError, OutputError, ResourceError, UsageError
from fct_infer.gallery.destination import Atomicity
from fct_infer.gallery.source import Rows
from fct_infer.storage import write_json
from fct_infer.storage.closing import closed_if_refused

CONFIG = "edge_config.json"
_BOOKS = "fct_upgrades.json"
_DISTANCES = {"l2": "Euclid", "ip": "Dot", "cosine": "Cosine"}
_AT_ONCE = 1000
_IDS_AT_ONCE = 10_000


def folder_of(url: EngineUrl) -> Path:
    """Return where a shard lies."""
    assert url.path is not None
    return url.path / url.table


def is_shard(url: EngineUrl) -> bool:
    """Whether a URL names a shard of Qdrant Edge."""
    return url.path is not None and "/" not in url.table and (folder_of(url) / CONFIG).is_file()


def read_shard_books(url: EngineUrl) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a shard's versions; empty without."""
    path = folder_of(url) / _BOOKS
    if not path.exists():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise GalleryError(f"{path}: cannot be read: {error}") from error
    return found


@contextmanager
def edge_errors(url: EngineUrl) -> Iterator[None]:
    """Turn what the engine raises, which is of no class of its own, into an error that names the shard."""
    try:
        yield
    except FctError:
        raise
    except Exception as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:300]
        if "WouldBlock" in words:
            raise OutputError(f"{url.name}: the shard is open elsewhere") from error
        if "space" in words or "os error" in words:
            raise ResourceError(f"{url.name}: {words}; the same command goes on") from error
        raise GalleryError(f"{url.name}: {words}") from error


class ShardStore(Store):
    """See :class:`~fct_infer.connectors.keyed_store.Store`."""

    page_rows = _AT_ONCE

    def __init__(self, url: EngineUrl, options: SourceOptions) -> None:
        self.url = url
        self.edge = optional("qdrant_edge", "qdrant")
        with edge_errors(url):
            self.shard = self.edge.EdgeShard.load(str(folder_of(url)))
        with closed_if_refused(self):
            self._open(options)

    def _open(self, options: SourceOptions) -> None:
        url = self.url
        try:
            vectors = json.loads((folder_of(url) / CONFIG).read_text())["vectors"]
        except (OSError, ValueError, KeyError) as error:
            raise GalleryError(f"{folder_of(url) / CONFIG}: cannot be read: {error}") from error
        dense = [name for name, each in vectors.items() if name and not each.get("multivector_config")]
        made = read_shard_books(url)
        self.names = list(vectors)
        self.columns = find_keyed_columns(url, [name for name in dense if name not in made], ["id"], options)
        self.fields = {}
        for role, name in (("embedding", self.columns.embedding), ("side", self.columns.side)):
            if name is None:
                continue
            if vectors[name]["distance"] == "Cosine":
                refuse_normalised(url, f"the vector {name!r}")
            dim = int(vectors[name]["size"])
            self.fields[role] = make_field(name, dim, np.dtype("f4"), url.name, options.allow_cast)

    def keys(self) -> Keys:
        """See :class:`Store`."""
        return np.sort(self.scrolled(None, None)[0])

    def scrolled(self, having: str | None, payload: str | None) -> tuple[NDArray[Any], list[Any]]:
        """Return the ids of all points, or of those that have a vector, with a value of their payload."""
        edge, found, values, place = self.edge, [], [], None
        condition = None if having is None else edge.Filter(must=[edge.HasVectorCondition(having)])
        with edge_errors(self.url):
            while True:
                request = edge.ScrollRequest(
                    offset=place,
                    limit=_IDS_AT_ONCE,
                    filter=condition,
                    with_payload=[payload] if payload else False,
                    with_vector=False,
                )
                records, place = self.shard.scroll(request)
                found += [record.id for record in records]
                values += [(record.payload or {}).get(payload, 0) for record in records] if payload else []
                if place is None:
                    break
        if all(isinstance(key, int) and key < 1 << 63 for key in found):
            return np.array(found, np.int64), values
        return text_ids(list(map(str, found)), "U", self.url.name, 0), values

    def page(self, keys: Keys, *, with_side: bool, with_payload: bool = False) -> Page:
        """See :class:`Store`."""
        fields = [self.fields["embedding"], *([self.fields["side"]] if with_side and "side" in self.fields else [])]
        records = self.get(keys, [field.name for field in fields])
        outs = []
        for field in fields:
            missing = next((each.id for each in records if field.name not in (each.vector or {})), None)
            if missing is not None:
                raise GalleryError(f"{self.where(missing)}: has no vector {field.name!r}")
            found = np.array([record.vector[field.name] for record in records], np.float32)
            outs.append(found.reshape(len(records), field.dim))
        return page_of(keys, _ids(records, keys), outs[0], outs[1] if len(outs) > 1 else None)

    def get(self, keys: Keys, names: list[str]) -> list[Any]:
        """Return points of some keys with some of their vectors."""
        with edge_errors(self.url):
            return list(self.shard.retrieve(self.points(keys), False, names))

    def points(self, keys: Keys) -> list[Any]:
        """Return keys as the engine has them."""
        from fct_infer.connectors.qdrant import point_ids

        return point_ids(keys)

    def close(self) -> None:
        """See :class:`Store`."""
        with suppress(Exception):
            self.shard.close()


def _ids(records: list[Any], keys: Keys) -> list[Any]:
    return [str(each.id) if keys.dtype.kind == "U" else each.id for each in records]


class ShardTarget(Target):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    atomicity: Atomicity = "none"

    def __init__(self, url: EngineUrl, store: ShardStore) -> None:
        self.url, self._store, self.version = url, store, url.column or ""

    @property
    def original(self) -> str:
        """The old vector."""
        return self._store.columns.embedding

    @property
    def _digest(self) -> str:
        return f"fct_input_{self.version}"

    def check(self, dim: int, dtype: np.dtype[Any], index: str, metric: str) -> None:
        """See :class:`Target`."""
        if dtype != np.float32 or index not in ("auto", "none"):
            raise UsageError(f"{self.url.name}: wanted --dtype float32, and --index auto or none")

    def check_free(self) -> None:
        """See :class:`Target`."""
        if self.version in self._store.names and self.book() is None:
            raise OutputError(f"{self.url.name}: has a vector {self.version!r} that no upgrade made")

    def promises(self) -> dict[str, str]:
        """See :class:`Target`."""
        return {
            "makes": f"the named vector {self.version!r} of the same points, and {self._digest!r} in their payload",
            "readers": f"choose a vector by its name; who asks for {self.version!r} before the end finds a part of it",
            "writers": "none: Qdrant Edge gives a shard to one process",
            "resumes": "points are written by key, so that writing them twice changes nothing",
        }

    def books(self) -> dict[str, dict[str, Any]]:
        """See :class:`Target`."""
        return read_shard_books(self.url)

    def book(self) -> dict[str, Any] | None:
        """See :class:`Target`."""
        return self.books().get(self.version)

    def write_book(self, book: dict[str, Any]) -> None:
        """See :class:`Target`; what it says is flushed before."""
        with edge_errors(self.url):
            self._store.shard.flush()
        write_json(folder_of(self.url) / _BOOKS, self.books() | {self.version: book})

    def create(self, dim: int, dtype: np.dtype[Any], metric: str) -> None:
        """See :class:`Target`."""
        edge = self._store.edge
        self._remove()
        with edge_errors(self.url):
            distance = getattr(edge.Distance, _DISTANCES[metric])
            self._store.shard.update(edge.UpdateOperation.create_dense_vector(self.version, dim, distance))

    def _remove(self) -> None:
        edge, shard = self._store.edge, self._store.shard
        names = json.loads((folder_of(self.url) / CONFIG).read_text())["vectors"]
        if self.version in names:
            with edge_errors(self.url):
                shard.update(edge.UpdateOperation.delete_vector_name(self.version))
                ids = self._store.points(self._store.keys())
                shard.update(edge.UpdateOperation.delete_payload(ids, [self._digest]))

    def drop(self) -> None:
        """See :class:`Target`."""
        self._remove()
        books = self.books()
        books.pop(self.version, None)
        write_json(folder_of(self.url) / _BOOKS, books)

    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """See :class:`Target`."""
        keys, digests = self._store.scrolled(self.version, self._digest)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.array(digests, np.int64)[order]

    def upsert(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """See :class:`Target`; the digest goes last, so that there is none without its vector."""
        edge, shard = self._store.edge, self._store.shard
        with edge_errors(self.url):
            for start in range(0, len(page.keys), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                ids = self._store.points(page.keys[some])
                vectors = [
                    edge.PointVectors(key, {self.version: row})
                    for key, row in zip(ids, new[some].tolist(), strict=True)
                ]
                shard.update(edge.UpdateOperation.update_vectors(vectors))
                for key, digest in zip(ids, digests[some].tolist(), strict=True):
                    shard.update(edge.UpdateOperation.set_payload([key], {self._digest: digest}))

    def delete(self, keys: Keys) -> None:
        """Nothing: a vector goes with its point."""

    def vectors(self, keys: Keys) -> Page:
        """See :class:`Target`."""
        records = self._store.get(keys, [self.version])
        found = np.array([record.vector[self.version] for record in records], np.float32)
        return page_of(keys, _ids(records, keys), found, None)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nothing: there are none."""
        yield

    def show(self, version: str) -> None:
        """Make all durable; readers choose by name.

        Raises:
            UsageError: it is not the version that a run of an upgrade publishes.
        """
        if version != self.version:
            raise UsageError(f"{self.url.name}: readers choose a vector by its name, {version!r}; nothing is switched")
        with edge_errors(self.url):
            self._store.shard.flush()

    def shown(self) -> str | None:
        """Nothing says so."""
        return None

    def close(self) -> None:
        """See :class:`Target`."""
        self._store.close()
