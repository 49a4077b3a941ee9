"""Collections of vector databases that run in this process, made and changed by their own clients."""

from __future__ import annotations

from contextlib import closing, contextmanager
from types import SimpleNamespace

import numpy as np
import pytest


class Collections:
    """A collection ``items`` of id, embedding, side where the engine has it, and a title."""

    scheme: str
    has_side = True
    has_alias = True

    def __init__(self, folder):
        self.path = folder / f"shop_{self.scheme}.db"

    def url(self, **more):
        extra = "".join(f"&{key}={value}" for key, value in more.items())
        return f"{self.scheme}://{self.path}?collection=items{extra}"

    def release(self):
        """Let another process open it."""


class Milvus(Collections):
    """Milvus Lite, which stands in for a server: Python of its own behind the same client."""

    scheme = "milvus"

    def release(self):
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(str(self.path))

    def __init__(self, folder):
        super().__init__(folder)
        pytest.importorskip("milvus_lite")
        self.library = pytest.importorskip("pymilvus")

    @contextmanager
    def client(self):
        with closing(self.library.MilvusClient(str(self.path))) as client:
            yield client

    def create(self, old_dim, side_dim, metric="l2", is_text=False):
        kinds = self.library.DataType
        with self.client() as client:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
            key = {"datatype": kinds.VARCHAR, "max_length": 40} if is_text else {"datatype": kinds.INT64}
            schema.add_field("id", is_primary=True, **key)
            schema.add_field("embedding", kinds.FLOAT_VECTOR, dim=old_dim)
            schema.add_field("side", kinds.FLOAT_VECTOR, dim=side_dim)
            schema.add_field("title", kinds.VARCHAR, max_length=100)
            index = client.prepare_index_params()
            for name in ("embedding", "side"):
                index.add_index(name, index_type="FLAT", metric_type=metric.upper())
            client.create_collection("items", schema=schema, index_params=index)

    def insert(self, ids, old, side):
        rows = [
            {"id": key, "embedding": o.tolist(), "side": s.tolist(), "title": f"title {key}", "more": {"n": [1, "é"]}}
            for key, o, s in zip(ids, old, side, strict=True)
        ]
        with self.client() as client:
            client.upsert("items", rows)

    def delete(self, key):
        with self.client() as client:
            client.delete("items", ids=[key])

    def rows(self, name="items"):
        with self.client() as client:
            client.load_collection(name)
            found = client.query(name, filter='title != ""', output_fields=["*"], limit=5000)
        return {
            row["id"]: SimpleNamespace(
                embedding=np.array(row["embedding"], np.float32),
                side=np.array(row["side"], np.float32),
                carried={"title": row["title"], "more": row.get("more")},
            )
            for row in found
        }

    def shown(self):
        with self.client() as client:
            return client.describe_alias("items_current")["collection_name"]


class Qdrant(Collections):
    """The client's local mode, which stands in for a server."""

    scheme = "qdrant"

    def __init__(self, folder):
        super().__init__(folder)
        self.library = pytest.importorskip("qdrant_client")

    @contextmanager
    def client(self):
        with closing(self.library.QdrantClient(path=str(self.path))) as client:
            yield client

    def create(self, old_dim, side_dim, metric="l2", is_text=False):
        models = self.library.models
        kind = {"l2": "Euclid", "cosine": "Cosine"}[metric]
        vectors = {
            "embedding": models.VectorParams(size=old_dim, distance=kind),
            "side": models.VectorParams(size=side_dim, distance="Dot"),
        }
        with self.client() as client:
            client.create_collection(
                "items", vectors_config=vectors, sparse_vectors_config={"words": models.SparseVectorParams()}
            )

    def insert(self, ids, old, side):
        models = self.library.models
        words = models.SparseVector(indices=[3, 7], values=[0.5, 2.0])
        points = [
            models.PointStruct(
                id=key,
                vector={"embedding": o.tolist(), "side": s.tolist(), "words": words},
                payload={"title": f"title {key}", "more": {"n": [1, "é"]}},
            )
            for key, o, s in zip(ids, old, side, strict=True)
        ]
        with self.client() as client:
            client.upsert("items", points)

    def delete(self, key):
        with self.client() as client:
            client.delete("items", [key])

    def rows(self, name="items"):
        with self.client() as client:
            found, _ = client.scroll(name, limit=5000, with_payload=True, with_vectors=True)
        for record in found:
            assert record.vector["words"].indices == [3, 7]
        return {
            record.id: SimpleNamespace(
                embedding=np.array(record.vector["embedding"], np.float32),
                side=np.array(record.vector["side"], np.float32),
                carried={name: record.payload[name] for name in ("title", "more")},
            )
            for record in found
        }

    def shown(self):
        with self.client() as client:
            return {each.alias_name: each.collection_name for each in client.get_aliases().aliases}["items_current"]


class Edge(Collections):
    """A shard of Qdrant Edge: the engine itself; a version is one more named vector of the same points."""

    scheme = "qdrant"
    has_alias = False

    def __init__(self, folder):
        super().__init__(folder)
        self.library = pytest.importorskip("qdrant_edge")

    @contextmanager
    def shard(self):
        with closing(self.library.EdgeShard.load(str(self.path / "items"))) as shard:
            yield shard
            shard.flush()

    def create(self, old_dim, side_dim, metric="l2"):
        edge = self.library
        distance = {"l2": edge.Distance.Euclid, "cosine": edge.Distance.Cosine}[metric]
        vectors = {"embedding": (old_dim, distance), "side": (side_dim, edge.Distance.Dot)}
        (self.path / "items").mkdir(parents=True)
        config = edge.EdgeConfig(
            vectors={
                name: edge.EdgeVectorParams(size=size, distance=distance) for name, (size, distance) in vectors.items()
            }
        )
        edge.EdgeShard.create(str(self.path / "items"), config).close()

    def insert(self, ids, old, side):
        points = [
            self.library.Point(key, {"embedding": o.tolist(), "side": s.tolist()}, {"title": f"title {key}"})
            for key, o, s in zip(ids, old, side, strict=True)
        ]
        with self.shard() as shard:
            shard.update(self.library.UpdateOperation.upsert_points(points))

    def delete(self, key):
        with self.shard() as shard:
            shard.update(self.library.UpdateOperation.delete_points([key]))

    def rows(self, name="items"):
        vector = name.removeprefix("items_") if name != "items" else "embedding"
        with self.shard() as shard:
            found, _ = shard.scroll(self.library.ScrollRequest(limit=5000, with_payload=True, with_vector=True))
        return {
            record.id: SimpleNamespace(
                embedding=np.array(record.vector[vector], np.float32),
                side=np.array(record.vector["side"], np.float32),
                carried={"title": record.payload["title"]},
            )
            for record in found
            if vector in record.vector
        }


class Chroma(Collections):
    scheme = "chroma"
    has_side = False
    has_alias = False

    def __init__(self, folder):
        super().__init__(folder)
        self.library = pytest.importorskip("chromadb")

    @contextmanager
    def client(self):
        yield self.library.PersistentClient(str(self.path), self.library.Settings(anonymized_telemetry=False))

    def create(self, old_dim, side_dim, metric="l2", is_text=True):
        with self.client() as client:
            client.create_collection("items", configuration={"hnsw": {"space": metric}}, embedding_function=None)

    def insert(self, ids, old, side):
        ids = list(map(str, ids))
        with self.client() as client:
            client.get_collection("items").upsert(
                ids=ids,
                embeddings=old,
                metadatas=[{"title": f"title {key}", "n": 2**40} for key in ids],
                documents=[f"document {key}" for key in ids],
            )

    def delete(self, key):
        with self.client() as client:
            client.get_collection("items").delete(ids=[str(key)])

    def rows(self, name="items"):
        with self.client() as client:
            found = client.get_collection(name).get(include=["embeddings", "metadatas", "documents"])
        return {
            key: SimpleNamespace(
                embedding=np.array(embedding, np.float32),
                side=None,
                carried={"title": metadata["title"], "n": metadata["n"], "document": document},
            )
            for key, embedding, metadata, document in zip(
                found["ids"], found["embeddings"], found["metadatas"], found["documents"], strict=True
            )
        }


COLLECTIONS = {"milvus": Milvus, "qdrant": Qdrant, "edge": Edge, "chroma": Chroma}
