"""Collections of Qdrant: at a server, as shards of Qdrant Edge, or in the folder of the client's own local mode."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.collection_target import BOOKS, DIGEST, CollectionTarget, refuse_normalised
from fct_infer.connectors.engine_url import EngineUrl, parse_engine_url
from fct_infer.connectors.keyed_destination import KeyedDestination
from fct_infer.connectors.keyed_source import KeyedSource
from fct_infer.connectors.keyed_store import (
    Keys,
    Page,
    Store,
    Target,
    find_keyed_columns,
    make_field,
    page_of,
    with_target,
)
from fct_infer.connectors.options import SourceOptions, optional
from fct_infer.connectors.qdrant_shard import ShardStore, ShardTarget, is_shard, read_shard_books
from fct_infer.errors import FctError, GalleryError, ResourceError
from fct_infer.gallery.source import Rows
from fct_infer.storage.closing import closed_if_refused

UNNAMED = "vector"  # what a vector without a name is called here
_DISTANCES = {"l2": "Euclid", "ip": "Dot", "cosine": "Cosine"}
_AT_ONCE = 1000
_IDS_AT_ONCE = 10_000
_TIMEOUT = 120  # seconds


def parse(url: str) -> EngineUrl:
    """Take a URL apart."""
    return parse_engine_url(url, ("normalised", "https"), has_servers=True)


def open_table(url: str, options: SourceOptions) -> KeyedSource:
    """Open a collection for reading."""
    parsed = parse(url)
    return KeyedSource(ShardStore(parsed, options) if is_shard(parsed) else QdrantStore(parsed, options), options)


def open_destination(url: str) -> KeyedDestination:
    """Return a collection as a destination."""
    return KeyedDestination(parse(url), open_target)


def open_target(url: EngineUrl, options: SourceOptions) -> tuple[Store, Target]:
    """Open a collection, and the version that a URL names."""
    if is_shard(url):
        return with_target(ShardStore(url, options), ShardTarget)
    return with_target(QdrantStore(url, options), QdrantTarget)


def books_of(url: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a collection's versions; empty without."""
    parsed = parse(url)
    if is_shard(parsed):
        return read_shard_books(parsed)
    client = _connect(parsed)
    try:
        with qdrant_errors(parsed):
            return _books(client, parsed.table)
    finally:
        client.close()


@contextmanager
def qdrant_errors(url: EngineUrl) -> Iterator[None]:
    """Turn what the client raises into an error that says what to do."""
    exceptions = optional("qdrant_client.http.exceptions", "qdrant")
    try:
        yield
    except FctError:
        raise
    except (exceptions.ResponseHandlingException, OSError) as error:
        raise ResourceError(f"{url.name}: {_words(error)}; if work was begun, the same command goes on") from error
    except (exceptions.ApiException, RuntimeError, ValueError) as error:
        raise GalleryError(f"{url.name}: {_words(error)}") from error


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _connect(url: EngineUrl) -> Any:
    client = optional("qdrant_client", "qdrant").QdrantClient
    if url.path is not None and not (url.path / "meta.json").is_file():
        raise GalleryError(f"{url.name}: there is no database of Qdrant in {url.path}")
    with qdrant_errors(url):
        if url.path is not None:
            return client(path=str(url.path))
        is_safe = url.more.get("https") == "yes"
        return client(
            url=f"{'https' if is_safe else 'http'}://{url.server}",
            api_key=os.environ.get("QDRANT_API_KEY"),
            timeout=_TIMEOUT,
            check_compatibility=False,
        )


def _books(client: Any, table: str) -> dict[str, dict[str, Any]]:
    if not client.collection_exists(BOOKS):
        return {}
    found, _ = client.scroll(BOOKS, limit=1000, with_payload=True, with_vectors=False)
    books = [json.loads(record.payload["book"]) for record in found]
    mine = sorted((book for book in books if book["table"] == table), key=lambda book: str(book["begun"]))
    return {book["version"]: book for book in mine}


class QdrantStore(Store):
    """A collection.

    Raises:
        GalleryError: there is none, or it has no dense vectors.
        UsageError: its vectors come back normalised, and nobody has said that this is meant.
    """

    page_rows = _AT_ONCE

    def __init__(self, url: EngineUrl, options: SourceOptions) -> None:
        self.url, self.client = url, _connect(url)
        with closed_if_refused(self.client):
            self._open(options)

    def _open(self, options: SourceOptions) -> None:
        url = self.url
        with qdrant_errors(url):
            if not self.client.collection_exists(url.table):
                raise GalleryError(f"{url.name}: there is no collection {url.table!r}")
            self.info = self.client.get_collection(url.table)
        params = self.info.config.params
        self.is_named = isinstance(params.vectors, dict)
        vectors = params.vectors if isinstance(params.vectors, dict) else {UNNAMED: params.vectors}
        self.params = {name: each for name, each in (vectors or {}).items() if each is not None}
        dense = [name for name, each in self.params.items() if each.multivector_config is None]
        self.columns = find_keyed_columns(url, dense, ["id"], options)
        self.fields = {}
        for role, name in (("embedding", self.columns.embedding), ("side", self.columns.side)):
            if name is None:
                continue
            if str(self.params[name].distance.value) == "Cosine":
                refuse_normalised(url, f"the vector {name!r}")
            dim = int(self.params[name].size)
            self.fields[role] = make_field(name, dim, np.dtype("f4"), url.name, options.allow_cast)

    def keys(self) -> Keys:
        """See :class:`Store`."""
        return np.sort(self.keys_of(self.url.table)[0])

    def keys_of(self, name: str, *, with_digest: bool = False) -> tuple[NDArray[Any], list[int]]:
        """Return the ids of a collection: integers, or text if one of them is a UUID; and the digests."""
        found: list[Any] = []
        digests: list[int] = []
        place = None
        with qdrant_errors(self.url):
            while True:
                records, place = self.client.scroll(
                    name,
                    limit=_IDS_AT_ONCE,
                    offset=place,
                    with_payload=[DIGEST] if with_digest else False,
                    with_vectors=False,
                )
                found += [record.id for record in records]
                if with_digest:
                    digests += [(record.payload or {}).get(DIGEST, 0) for record in records]
                if place is None:
                    break
        if all(isinstance(key, int) and key < 1 << 63 for key in found):
            return np.array(found, np.int64), digests
        return text_ids(list(map(str, found)), "U", self.url.name, 0), digests

    def page(self, keys: Keys, *, with_side: bool, with_payload: bool = False) -> Page:
        """See :class:`Store`."""
        fields = [self.fields["embedding"], *([self.fields["side"]] if with_side and "side" in self.fields else [])]
        names = True if with_payload or not self.is_named else [field.name for field in fields]
        with qdrant_errors(self.url):
            records = self.client.retrieve(
                self.url.table, point_ids(keys), with_payload=with_payload, with_vectors=names
            )
        vectors = [self.vectors_of(record) for record in records]
        outs = []
        for field in fields:
            missing = next((place for place, each in enumerate(vectors) if field.name not in each), None)
            if missing is not None:
                raise GalleryError(f"{self.where(records[missing].id)}: has no vector {field.name!r}")
            found = np.array([each[field.name] for each in vectors], np.float32)
            outs.append(found.reshape(len(records), field.dim))
        payload = [
            {"payload": record.payload or {}, "vectors": _others(each, self.columns.embedding)}
            for record, each in zip(records, vectors, strict=True)
        ] if with_payload else []  # fmt: skip
        ids = [str(record.id) if keys.dtype.kind == "U" else record.id for record in records]
        return page_of(keys, ids, outs[0], outs[1] if len(outs) > 1 else None, payload)

    def vectors_of(self, record: Any) -> dict[str, Any]:
        """Return the vectors of a record by name."""
        if isinstance(record.vector, dict):
            return dict(record.vector)
        return {} if record.vector is None else {UNNAMED: record.vector}

    def close(self) -> None:
        """See :class:`Store`."""
        self.client.close()


def point_ids(keys: Keys) -> list[int | str]:
    """Return keys as Qdrant has them; text that is a number was one."""
    return [int(key) if isinstance(key, str) and key.isdigit() else key for key in keys.tolist()]


def _others(vectors: dict[str, Any], embedding: str) -> dict[str, Any]:
    """Return what is carried of the other vectors, as JSON; a sparse one is an object."""
    return {
        name: vector.model_dump() if hasattr(vector, "model_dump") else vector
        for name, vector in vectors.items()
        if name != embedding
    }


class QdrantTarget(CollectionTarget):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    def __init__(self, url: EngineUrl, store: QdrantStore) -> None:
        super().__init__(url, store)
        self._store, self._client = store, store.client
        self._models = optional("qdrant_client.models", "qdrant")

    def books(self) -> dict[str, dict[str, Any]]:
        """See :class:`Target`."""
        with qdrant_errors(self.url):
            return _books(self._client, self.url.table)

    @property
    def _book_id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.url.table}/{self.version}"))

    def write_book(self, book: dict[str, Any]) -> None:
        """See :class:`Target`."""
        models = self._models
        text = json.dumps(book | {"table": self.url.table, "version": self.version}, allow_nan=False)
        with qdrant_errors(self.url):
            if not self._client.collection_exists(BOOKS):
                self._client.create_collection(BOOKS, vectors_config=models.VectorParams(size=1, distance="Dot"))
            point = models.PointStruct(id=self._book_id, vector=[0.0], payload={"book": text})
            self._client.upsert(BOOKS, [point], wait=True)

    def forget(self) -> None:
        """See :class:`CollectionTarget`."""
        with qdrant_errors(self.url):
            self._client.delete(BOOKS, [self._book_id], wait=True)

    def has(self, name: str) -> bool:
        """See :class:`CollectionTarget`."""
        with qdrant_errors(self.url):
            return name in [each.name for each in self._client.get_collections().collections]

    def make(self, dim: int, metric: str) -> None:
        """See :class:`CollectionTarget`."""
        store, models = self._store, self._models
        params = dict(store.params)
        embedding = store.columns.embedding
        params[embedding] = params[embedding].model_copy(
            update={"size": dim, "distance": models.Distance(_DISTANCES[metric])}
        )
        with qdrant_errors(self.url):
            self._client.create_collection(
                self.side,
                vectors_config=params if store.is_named else params[UNNAMED],
                sparse_vectors_config=store.info.config.params.sparse_vectors,
            )
            for name, index in (store.info.payload_schema or {}).items():
                self._client.create_payload_index(self.side, name, index.params or index.data_type, wait=True)

    def remove(self, name: str) -> None:
        """See :class:`CollectionTarget`."""
        with qdrant_errors(self.url):
            self._client.delete_collection(name)

    def alias(self) -> str | None:
        """See :class:`CollectionTarget`."""
        with qdrant_errors(self.url):
            known = {each.alias_name: each.collection_name for each in self._client.get_aliases().aliases}
        return known.get(self.view)

    def set_alias(self, name: str) -> None:
        """See :class:`CollectionTarget`; both are one step of the server."""
        models, steps = self._models, []
        if self.alias() is not None:
            steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self.view)))
        create = models.CreateAlias(collection_name=name, alias_name=self.view)
        with qdrant_errors(self.url):
            self._client.update_collection_aliases([*steps, models.CreateAliasOperation(create_alias=create)])

    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """See :class:`Target`."""
        keys, digests = self._store.keys_of(self.side, with_digest=True)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.array(digests, np.int64)[order]

    def upsert(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """See :class:`Target`."""
        embedding, ids = self._store.columns.embedding, point_ids(page.keys)
        points = []
        for key, carried, vector, digest in zip(ids, page.payload, new.tolist(), digests.tolist(), strict=True):
            others = {
                name: self._models.SparseVector(**other) if isinstance(other, dict) else other
                for name, other in carried["vectors"].items()
            }
            vectors = {**others, embedding: vector} if self._store.is_named else vector
            points.append(
                self._models.PointStruct(id=key, vector=vectors, payload={**carried["payload"], DIGEST: digest})
            )
        with qdrant_errors(self.url):
            for start in range(0, len(points), _AT_ONCE):
                self._client.upsert(self.side, points[start : start + _AT_ONCE], wait=True)

    def delete(self, keys: Keys) -> None:
        """See :class:`Target`."""
        with qdrant_errors(self.url):
            self._client.delete(self.side, point_ids(keys), wait=True)

    def vectors(self, keys: Keys) -> Page:
        """See :class:`Target`."""
        embedding = self._store.columns.embedding
        with qdrant_errors(self.url):
            records = self._client.retrieve(self.side, point_ids(keys), with_payload=False, with_vectors=True)
        new = np.array([self._store.vectors_of(record)[embedding] for record in records], np.float32)
        return page_of(keys, [str(each.id) if keys.dtype.kind == "U" else each.id for each in records], new, None)

    def close(self) -> None:
        """See :class:`Target`."""
        self._client.close()
