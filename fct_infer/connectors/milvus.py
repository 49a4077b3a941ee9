"""Collections of Milvus, a server or Milvus Lite (a file)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.collection_target import BOOKS, DIGEST, CollectionTarget
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
from fct_infer.errors import FctError, GalleryError, ResourceError
from fct_infer.gallery.source import Rows
from fct_infer.storage.closing import closed_if_refused

_METRICS = {"l2": "L2", "ip": "IP", "cosine": "COSINE"}
_MAX_BOOK = 65_000  # characters of a VARCHAR
_AT_ONCE = 1000  # rows of a request; a message of gRPC has a limit
_STRONG = "Strong"


def parse(url: str) -> EngineUrl:
    """Take a URL apart."""
    return parse_engine_url(url, has_servers=True)


def open_table(url: str, options: SourceOptions) -> KeyedSource:
    """Open a collection for reading."""
    return KeyedSource(MilvusStore(parse(url), options), options)


def open_destination(url: str) -> KeyedDestination:
    """Return a collection as a destination."""
    return KeyedDestination(parse(url), open_target)


def open_target(url: EngineUrl, options: SourceOptions) -> tuple[Store, Target]:
    """Open a collection, and the version that a URL names."""
    return with_target(MilvusStore(url, options), MilvusTarget)


def books_of(url: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a collection's versions; empty without."""
    parsed = parse(url)
    client = _connect(parsed)
    try:
        with milvus_errors(parsed):
            return _books(client, parsed.table)
    finally:
        client.close()


@contextmanager
def milvus_errors(url: EngineUrl) -> Iterator[None]:
    """Turn what Milvus raises into an error that says what to do."""
    library = optional("pymilvus", "milvus")
    try:
        yield
    except FctError:
        raise
    except library.MilvusException as error:
        words = str(error).splitlines()[0][:300]
        kind = ResourceError if "connect" in words.lower() or "timeout" in words.lower() else GalleryError
        raise kind(f"{url.name}: {words}") from error


def _connect(url: EngineUrl) -> Any:
    library = optional("pymilvus", "milvus")
    if url.path is not None and not url.path.exists():
        raise GalleryError(f"{url.name}: there is no file {url.path}")
    where = str(url.path) if url.path is not None else f"http://{url.server}"
    with milvus_errors(url):
        return library.MilvusClient(where, token=os.environ.get("MILVUS_TOKEN", ""))


def _books(client: Any, table: str) -> dict[str, dict[str, Any]]:
    if not client.has_collection(BOOKS):
        return {}
    client.load_collection(BOOKS)
    found = client.query(BOOKS, filter='key != ""', output_fields=["book"], limit=1000, consistency_level=_STRONG)
    books = [json.loads(row["book"]) for row in found]
    mine = sorted((book for book in books if book["table"] == table), key=lambda book: str(book["begun"]))
    return {book["version"]: book for book in mine}


class MilvusStore(Store):
    """A collection with a float vector field.

    Raises:
        GalleryError: there is none, or it has no vectors.
    """

    page_rows = _AT_ONCE

    def __init__(self, url: EngineUrl, options: SourceOptions) -> None:
        self.url, self.client = url, _connect(url)
        with closed_if_refused(self.client):
            self._open(options)

    def _open(self, options: SourceOptions) -> None:
        url, kinds = self.url, optional("pymilvus", "milvus").DataType
        with milvus_errors(url):
            if not self.client.has_collection(url.table):
                raise GalleryError(f"{url.name}: there is no collection {url.table!r}")
            self.described = self.client.describe_collection(url.table)
            self.client.load_collection(url.table)
        fields = {field["name"]: field for field in self.described["fields"]}
        vectors = [name for name, field in fields.items() if field["type"] == kinds.FLOAT_VECTOR]
        (key,) = (name for name, field in fields.items() if field.get("is_primary"))
        self.is_text = fields[key]["type"] == kinds.VARCHAR
        named = SourceOptions(options.embedding_column, options.side_column, key, ids=options.ids)
        self.columns = find_keyed_columns(url, vectors, [name for name in fields if name not in vectors], named)
        self.fields = {
            role: make_field(name, int(fields[name]["params"]["dim"]), np.dtype("f4"), url.name, options.allow_cast)
            for role, name in (("embedding", self.columns.embedding), ("side", self.columns.side))
            if name is not None
        }

    @property
    def files(self) -> dict[str, Path]:
        """None: what Milvus Lite writes beside is its own."""
        return {}

    def keys(self) -> Keys:
        """See :class:`Store`."""
        return np.sort(self.keys_of(self.url.table)[0])

    def keys_of(self, name: str, *more: str) -> tuple[NDArray[Any], list[list[Any]]]:
        """Return the keys of a collection in the engine's order, and some other fields."""
        key, found, others = str(self.columns.id), [], [[] for _ in more]  # type: ignore[var-annotated]
        with milvus_errors(self.url):
            self.client.load_collection(name)
            rows = self.client.query_iterator(
                name, batch_size=10_000, output_fields=[key, *more], consistency_level=_STRONG
            )
            try:
                while batch := rows.next():
                    found += [row[key] for row in batch]
                    for other, field in zip(others, more, strict=True):
                        other += [row[field] for row in batch]
            finally:
                rows.close()
        keys = text_ids(found, "U", self.url.name, 0) if self.is_text else np.array(found, np.int64)
        return keys, others

    def page(self, keys: Keys, *, with_side: bool, with_payload: bool = False) -> Page:
        """See :class:`Store`."""
        fields = [self.fields["embedding"], *([self.fields["side"]] if with_side and "side" in self.fields else [])]
        names = ["*"] if with_payload else [str(self.columns.id), *(field.name for field in fields)]
        rows = self.get(self.url.table, keys, names)
        outs = [
            np.array([row[field.name] for row in rows], np.float32).reshape(len(rows), field.dim) for field in fields
        ]
        left_out = (self.columns.id, self.columns.embedding, DIGEST)
        payload = [
            {name: _plain(value) for name, value in row.items() if name not in left_out} if with_payload else {}
            for row in rows
        ]
        found = [row[str(self.columns.id)] for row in rows]
        return page_of(keys, found, outs[0], outs[1] if len(outs) > 1 else None, payload if with_payload else [])

    def get(self, name: str, keys: Keys, fields: list[str]) -> list[Mapping[str, Any]]:
        """Return rows of some keys."""
        with milvus_errors(self.url):
            return list(
                self.client.query(
                    name,
                    # not as a parameter of the filter, which Milvus Lite does not know
                    filter=f"{self.columns.id} in {json.dumps(keys.tolist(), ensure_ascii=False)}",
                    output_fields=fields,
                    consistency_level=_STRONG,
                )
            )

    def close(self) -> None:
        """See :class:`Store`."""
        self.client.close()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        raise GalleryError("a field of bytes is no JSON, so that rows cannot be copied whole")
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


class MilvusTarget(CollectionTarget):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    def __init__(self, url: EngineUrl, store: MilvusStore) -> None:
        super().__init__(url, store)
        self._store, self._client, self._key = store, store.client, str(store.columns.id)

    def books(self) -> dict[str, dict[str, Any]]:
        """See :class:`Target`."""
        with milvus_errors(self.url):
            return _books(self._client, self.url.table)

    def write_book(self, book: dict[str, Any]) -> None:
        """See :class:`Target`."""
        library = optional("pymilvus", "milvus")
        text = json.dumps(book | {"table": self.url.table, "version": self.version}, allow_nan=False)
        if len(text) > _MAX_BOOK:  # what was done is the least of it
            text = json.dumps(json.loads(text) | {"infos": {}})
        with milvus_errors(self.url):
            if not self._client.has_collection(BOOKS):
                schema = self._client.create_schema(auto_id=False)
                schema.add_field("key", library.DataType.VARCHAR, is_primary=True, max_length=512)
                schema.add_field("book", library.DataType.VARCHAR, max_length=65_535)
                schema.add_field("none", library.DataType.FLOAT_VECTOR, dim=2)  # no collection is without one
                index = self._client.prepare_index_params()
                index.add_index("none", index_type="FLAT", metric_type="L2")
                self._client.create_collection(BOOKS, schema=schema, index_params=index)
            self._client.upsert(BOOKS, [{"key": self._book_key, "book": text, "none": [0.0, 0.0]}])
            self._client.flush(BOOKS)

    @property
    def _book_key(self) -> str:
        return f"{self.url.table}/{self.version}"

    def forget(self) -> None:
        """See :class:`CollectionTarget`."""
        with milvus_errors(self.url):
            self._client.delete(BOOKS, ids=[self._book_key])

    def has(self, name: str) -> bool:
        """See :class:`CollectionTarget`."""
        with milvus_errors(self.url):
            return name in self._client.list_collections()

    def make(self, dim: int, metric: str) -> None:
        """See :class:`CollectionTarget`."""
        library, described = optional("pymilvus", "milvus"), self._store.described
        with milvus_errors(self.url):
            schema = self._client.create_schema(
                auto_id=False, enable_dynamic_field=described.get("enable_dynamic_field", False)
            )
            index = self._client.prepare_index_params()
            for field in described["fields"]:
                params = dict(field["params"])
                if field["name"] == self._store.columns.embedding:
                    params["dim"] = dim
                if element := field.get("element_type"):
                    params["element_type"] = element
                schema.add_field(
                    field["name"], field["type"], is_primary=bool(field.get("is_primary")),
                    nullable=bool(field.get("nullable")), **params,
                )  # fmt: skip
                if field["type"] == library.DataType.FLOAT_VECTOR:
                    is_new = field["name"] == self._store.columns.embedding
                    kind = _METRICS[metric] if is_new else self._metric_of(field["name"])
                    index.add_index(field["name"], index_type="AUTOINDEX", metric_type=kind)
            schema.add_field(DIGEST, library.DataType.INT64)
            self._client.create_collection(self.side, schema=schema, index_params=index, consistency_level=_STRONG)

    def _metric_of(self, name: str) -> str:
        for each in self._client.list_indexes(self.url.table, name):
            found = self._client.describe_index(self.url.table, each)
            if found and found.get("field_name") == name:
                return str(found.get("metric_type", "L2"))
        return "L2"

    def remove(self, name: str) -> None:
        """See :class:`CollectionTarget`."""
        with milvus_errors(self.url):
            self._client.drop_collection(name)

    def alias(self) -> str | None:
        """See :class:`CollectionTarget`."""
        with milvus_errors(self.url):
            if self.view not in self._client.list_aliases()["aliases"]:
                return None
            return str(self._client.describe_alias(self.view)["collection_name"])

    def set_alias(self, name: str) -> None:
        """See :class:`CollectionTarget`."""
        is_there = self.alias() is not None
        with milvus_errors(self.url):
            if is_there:
                self._client.alter_alias(name, self.view)
            else:
                self._client.create_alias(name, self.view)

    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """See :class:`Target`."""
        keys, (digests,) = self._store.keys_of(self.side, DIGEST)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.array(digests, np.int64)[order]

    def upsert(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """See :class:`Target`."""
        embedding = self._store.columns.embedding
        rows = [
            {**payload, self._key: key, embedding: vector, DIGEST: digest}
            for key, payload, vector, digest in zip(
                page.keys.tolist(), page.payload, new.tolist(), digests.tolist(), strict=True
            )
        ]
        with milvus_errors(self.url):
            for start in range(0, len(rows), _AT_ONCE):
                self._client.upsert(self.side, rows[start : start + _AT_ONCE])
            self._client.flush(self.side)

    def delete(self, keys: Keys) -> None:
        """See :class:`Target`."""
        with milvus_errors(self.url):
            self._client.delete(self.side, ids=keys.tolist())

    def vectors(self, keys: Keys) -> Page:
        """See :class:`Target`."""
        embedding = self._store.columns.embedding
        rows = self._store.get(self.side, keys, [self._key, embedding])
        return page_of(keys, [row[self._key] for row in rows], np.array([row[embedding] for row in rows], "f4"), None)

    def close(self) -> None:
        """See :class:`Target`."""
        self._client.close()
