"""Collections of Chroma, in a folder or at a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.arrow_arrays import text_ids
from fct_infer.connectors.collection_target import DIGEST, CollectionTarget, refuse_normalised
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
from fct_infer.errors import FctError, GalleryError, ResourceError, UsageError
from fct_infer.gallery.source import Rows

_BOOK = "fct_book"  # in a collection's metadata
_PARTIAL = "_partial"
_AT_ONCE = 1000
_IDS_AT_ONCE = 10_000


def parse(url: str) -> EngineUrl:
    """Take a URL apart."""
    return parse_engine_url(url, ("normalised",), has_servers=True)


def open_table(url: str, options: SourceOptions) -> KeyedSource:
    """Open a collection for reading."""
    return KeyedSource(ChromaStore(parse(url), options), options)


def open_destination(url: str) -> KeyedDestination:
    """Return a collection as a destination."""
    return KeyedDestination(parse(url), open_target)


def open_target(url: EngineUrl, options: SourceOptions) -> tuple[Store, Target]:
    """Open a collection, and the version that a URL names."""
    return with_target(ChromaStore(url, options), ChromaTarget)


def books_of(url: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded of a collection's versions; empty without."""
    parsed = parse(url)
    with chroma_errors(parsed):
        return _books(_connect(parsed), parsed.table)


@contextmanager
def chroma_errors(url: EngineUrl) -> Iterator[None]:
    """Turn what Chroma raises into an error that says what to do."""
    errors = optional("chromadb.errors", "chroma")
    try:
        yield
    except FctError:
        raise
    except (errors.ChromaError, ValueError) as error:
        raise GalleryError(f"{url.name}: {str(error).splitlines()[0][:300]}") from error
    except OSError as error:
        raise ResourceError(f"{url.name}: {error}") from error


def _connect(url: EngineUrl) -> Any:
    chroma = optional("chromadb", "chroma")
    settings = chroma.Settings(anonymized_telemetry=False)
    if url.path is not None:
        if not (url.path / "chroma.sqlite3").is_file():
            raise GalleryError(f"{url.name}: there is no database of Chroma in {url.path}")
        return chroma.PersistentClient(str(url.path), settings)
    host, _, port = url.server.partition(":")
    return chroma.HttpClient(host, int(port or 8000), settings=settings)


def _books(client: Any, table: str) -> dict[str, dict[str, Any]]:
    books = [json.loads(each.metadata[_BOOK]) for each in client.list_collections() if _BOOK in (each.metadata or {})]
    mine = sorted((book for book in books if book["table"] == table), key=lambda book: str(book["begun"]))
    return {book["version"]: book for book in mine}


class ChromaStore(Store):
    """A collection. Chroma has one vector a row, so there is no side-information."""

    page_rows = _AT_ONCE

    def __init__(self, url: EngineUrl, options: SourceOptions) -> None:
        self.url = url
        with chroma_errors(url):
            self.client = _connect(url)
            if url.table not in [each.name for each in self.client.list_collections()]:
                raise GalleryError(f"{url.name}: there is no collection {url.table!r}")
            self.collection = self.client.get_collection(url.table, embedding_function=None)
            first = self.collection.get(limit=1, include=["embeddings"])["embeddings"]
        if not len(first):
            raise GalleryError(f"{url.name}: is empty, it holds no rows")
        if self.space == "cosine":
            refuse_normalised(url, "this collection")
        self.columns = find_keyed_columns(url, ["embedding"], ["id"], options)
        dim = len(first[0])
        self.fields = {"embedding": make_field("embedding", dim, np.dtype("f4"), url.name, options.allow_cast)}

    @property
    def space(self) -> str:
        """What the collection compares by."""
        return str((self.collection.configuration.get("hnsw") or {}).get("space") or "l2")

    def keys(self) -> Keys:
        """See :class:`Store`."""
        found: list[str] = []
        with chroma_errors(self.url):
            while some := self.collection.get(limit=_IDS_AT_ONCE, offset=len(found), include=[])["ids"]:
                found += some
        return np.sort(text_ids(found, "U", self.url.name, 0))

    def page(self, keys: Keys, *, with_side: bool, with_payload: bool = False) -> Page:
        """See :class:`Store`."""
        wanted = ["embeddings", *(["metadatas", "documents", "uris"] if with_payload else [])]
        with chroma_errors(self.url):
            found = self.collection.get(ids=keys.tolist(), include=wanted)
        payload = [
            {
                "metadata": {name: value for name, value in (metadata or {}).items() if name != DIGEST},
                "document": document,
                "uri": uri,
            }
            for metadata, document, uri in zip(
                *((found[name] or [None] * len(found["ids"])) for name in wanted[1:]), strict=True
            )
        ] if with_payload else []  # fmt: skip
        field = self.fields["embedding"]
        old = np.asarray(found["embeddings"], np.float32).reshape(len(found["ids"]), field.dim)
        return page_of(keys, found["ids"], old, None, payload)

    def close(self) -> None:
        """Nothing: Chroma shares what is open within the process."""


class ChromaTarget(CollectionTarget):
    """See :class:`~fct_infer.connectors.keyed_store.Target`."""

    has_alias = False

    def __init__(self, url: EngineUrl, store: ChromaStore) -> None:
        super().__init__(url, store)
        self._store, self._client = store, store.client

    def promises(self) -> dict[str, str]:
        """See :class:`Target`."""
        alone = {"alone": "Chroma gives a folder to one process: nobody else may have it open"}
        return super().promises() | (alone if self.url.path is not None else {})

    def _name(self) -> str:
        """Return what the new collection is called now."""
        return self.side if self.has(self.side) else self.side + _PARTIAL

    def _collection(self) -> Any:
        return self._client.get_collection(self._name(), embedding_function=None)

    def books(self) -> dict[str, dict[str, Any]]:
        """See :class:`Target`."""
        with chroma_errors(self.url):
            return _books(self._client, self.url.table)

    def write_book(self, book: dict[str, Any]) -> None:
        """See :class:`Target`."""
        text = json.dumps(book | {"table": self.url.table, "version": self.version}, allow_nan=False)
        if not self.has(self._name()):  # it has no place for a record yet; one without is made again
            return
        with chroma_errors(self.url):
            self._collection().modify(metadata={_BOOK: text})

    def forget(self) -> None:
        """Its record went with it."""
        if self.has(self.side + _PARTIAL):
            self.remove(self.side + _PARTIAL)

    def has(self, name: str) -> bool:
        """See :class:`CollectionTarget`."""
        with chroma_errors(self.url):
            return name in [each.name for each in self._client.list_collections()]

    def create(self, dim: int, dtype: np.dtype[Any], metric: str) -> None:
        """See :class:`Target`."""
        self.forget()
        super().create(dim, dtype, metric)

    def make(self, dim: int, metric: str) -> None:
        """See :class:`CollectionTarget`."""
        with chroma_errors(self.url):
            self._client.create_collection(
                self.side + _PARTIAL, configuration={"hnsw": {"space": metric}}, embedding_function=None
            )

    def remove(self, name: str) -> None:
        """See :class:`CollectionTarget`."""
        with chroma_errors(self.url):
            self._client.delete_collection(name)

    def alias(self) -> str | None:
        """Return None: there are none."""
        return None

    def set_alias(self, name: str) -> None:
        """Give the finished collection its name.

        Raises:
            UsageError: it is not the version that a run of an upgrade publishes.
        """
        if name != self.side:
            raise UsageError(f"{self.url.name}: Chroma has no alias; ask the collection {name!r} by its name")
        if self._name() != self.side:
            with chroma_errors(self.url):
                self._collection().modify(name=self.side)

    def inputs(self) -> tuple[Keys, NDArray[np.int64]]:
        """See :class:`Target`."""
        keys: list[str] = []
        digests: list[int] = []
        with chroma_errors(self.url):
            collection = self._collection()
            while (some := collection.get(limit=_IDS_AT_ONCE, offset=len(keys), include=["metadatas"]))["ids"]:
                keys += some["ids"]
                digests += [(each or {}).get(DIGEST, 0) for each in some["metadatas"]]
        found = text_ids(keys, "U", self.url.name, 0)
        order = np.argsort(found, kind="stable")
        return found[order], np.array(digests, np.int64)[order]

    def upsert(self, page: Page, digests: NDArray[np.int64], new: Rows) -> None:
        """Delete and add: an upsert keeps what the metadata had before."""
        metadatas = [
            {**payload["metadata"], DIGEST: digest}
            for payload, digest in zip(page.payload, digests.tolist(), strict=True)
        ]
        with chroma_errors(self.url):
            collection = self._collection()
            for start in range(0, len(page.keys), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                ids = page.keys[some].tolist()
                collection.delete(ids=ids)
                collection.add(
                    ids=ids,
                    embeddings=np.asarray(new[some], np.float32),
                    metadatas=metadatas[some],
                    **_carried(page.payload[some], ids),
                )

    def delete(self, keys: Keys) -> None:
        """See :class:`Target`."""
        with chroma_errors(self.url):
            self._collection().delete(ids=keys.tolist())

    def vectors(self, keys: Keys) -> Page:
        """See :class:`Target`."""
        with chroma_errors(self.url):
            found = self._collection().get(ids=keys.tolist(), include=["embeddings"])
        return page_of(keys, found["ids"], np.asarray(found["embeddings"], np.float32), None)

    def close(self) -> None:
        """Nothing is open."""


def _carried(payload: Any, ids: list[str]) -> dict[str, Any]:
    """Return documents and URIs as Chroma takes them: of all rows that are written together, or of none."""
    found: dict[str, Any] = {}
    for name in ("document", "uri"):
        values = [row[name] for row in payload]
        if any(value is not None for value in values):
            found[f"{name}s"] = [value or "" for value in values]
    return found
