"""An index published in shards is searched as one, and anything damaged is named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fct_infer import load_index, open_gallery
from fct_infer.errors import ArtifactError
from fct_infer.gallery import GalleryManifest, GalleryWriter
from fct_infer.index import IndexBuilder, gallery_index, load_index_file
from fct_infer.index.parts import GatheredBuilder, PartBuilder
from fct_infer.index.sharded import write_sharded
from fct_infer.index.verify import verify_gallery
from fct_infer.storage import DigestedFile, sha256_of_file

ROWS, DIM = 300, 8
DATA = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = np.array([f"item-{number * 7}" for number in range(ROWS)])


def write_manifest(path, **changes):
    files = {
        file.relative_to(path).as_posix(): DigestedFile(file.stat().st_size, sha256_of_file(file))
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    fields = {"rows": ROWS, "dim": DIM, "dtype": "float32", "metric": "l2", "transformation": "0" * 64}
    fields |= {"ids": "text", "indexed_rows": ROWS, "files": files} | changes
    (path / "manifest.json").write_bytes(GalleryManifest(**fields).to_bytes())


def publish(path, factory="IVF16,SQ8"):
    """Return the folder, as an upgrade leaves it, and the same index in one."""
    with GalleryWriter(path, 120) as writer:
        writer.append(DATA, None, IDS)
    whole = IndexBuilder(factory, DIM, "l2", threads=1)
    if whole.needs_training:
        whole.train(DATA)
    trained = whole.save(path / "index_trained.faiss")
    builder, parts = PartBuilder(factory, DIM, "l2", threads=1), []
    builder.load_trained(path / "index_trained.faiss", trained.sha256)
    for number, start in enumerate(range(0, ROWS, 120)):
        builder.begin()
        rows = np.arange(start, min(start + 120, ROWS))
        builder.add(DATA[rows], rows)
        whole.add(DATA[rows], rows)
        file = path / "index" / f"{number:06d}.faiss"
        parts.append((file, builder.end(file)))
    empty = IndexBuilder(factory, DIM, "l2", threads=1)
    empty.index = load_index_file(path / "index_trained.faiss")
    gathered = GatheredBuilder(empty, parts)
    if whole.nprobe is not None:
        gathered.nprobe = whole.nprobe = 4
    write_sharded(path, gathered)
    write_manifest(path)
    return whole


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "PCA6,IVF16,Flat", "Flat"])
def test_shards_are_searched_as_one(tmp_path, factory):
    whole = publish(tmp_path / "g", factory)
    assert open_gallery(tmp_path / "g").has_index
    index = load_index(tmp_path / "g")
    distances, rows = whole.search(DATA[:50], 5)
    shutil.move(tmp_path / "g", tmp_path / "elsewhere")  # it goes on answering, and the folder opens anywhere
    for each in (index, load_index(tmp_path / "elsewhere")):
        found = each.search(DATA[:50], 5)
        np.testing.assert_array_equal(found[0], distances)
        np.testing.assert_array_equal(found[1], IDS[rows])


def test_verify_reads_every_shard(tmp_path):
    publish(tmp_path / "g")
    check = verify_gallery(tmp_path / "g")
    assert check.index_opened and not check.damaged and not check.surplus
    shutil.copy(tmp_path / "g" / "index" / "000000.faiss", tmp_path / "g" / "index" / "000009.faiss")
    assert verify_gallery(tmp_path / "g").surplus == ("index/000009.faiss",)


@pytest.mark.parametrize("name", ["index.json", "index_trained.faiss", "index/000001.faiss"])
def test_damage_is_named(tmp_path, name):
    publish(tmp_path / "g")
    path = tmp_path / "g" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name}: is damaged"):
        load_index(tmp_path / "g")
    assert list(verify_gallery(tmp_path / "g").damaged) == [name]
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name}: is damaged: is missing"):
        load_index(tmp_path / "g")


HOSTILE = {
    "unknown schema": (lambda document: document.update(schema=9), "has schema 9"),
    "no shards": (lambda document: document.update(shards=[]), "shards is empty"),
    "a shard fewer": (lambda document: document["shards"].pop(), "holds 240 rows of 8, manifest.json says 300"),
    "a shard twice": (lambda document: document["shards"].append(document["shards"][0]), "holds 420 rows"),
    "outside": (lambda document: document["shards"][0].update(file="../x.faiss"), "does not list"),
    "no shard": (lambda document: document["shards"][0].update(file="embeddings/000000.npy"), "does not list"),
    "other rows": (lambda document: document["shards"][0].update(rows=7), "holds 120 rows, wanted 7"),
    "negative": (lambda document: document["shards"][0].update(rows=-7), "-7 rows"),
    "no number": (lambda document: document["shards"][0].update(ids="٣"), "wanted a number"),
    "too large": (lambda document: document["shards"][0].update(ids="9" * 20), "wanted a number"),
    "no lists": (lambda document: document.update(nprobe=0), "nprobe is 0"),
    "surprise": (lambda document: document.update(code="x"), "unknown 'code'"),
    "a list": (lambda document: document.update(shards=[1]), "is int, wanted dict"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_index_json(tmp_path, case):
    change, message = HOSTILE[case]
    publish(tmp_path / "g")
    path = tmp_path / "g" / "index.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    write_manifest(tmp_path / "g")
    with pytest.raises(ArtifactError, match=message):
        load_index(tmp_path / "g")


def test_an_index_that_memory_cannot_hold_is_read_where_it_lies(tmp_path, monkeypatch):
    whole = publish(tmp_path / "g")
    shutil.rmtree(tmp_path / "g" / "index")
    for name in ("index.json", "index_trained.faiss"):
        (tmp_path / "g" / name).unlink()
    whole.save(tmp_path / "g" / "index.faiss")
    write_manifest(tmp_path / "g")
    monkeypatch.setattr(gallery_index, "usable_memory", lambda: 1000)
    monkeypatch.setattr(gallery_index, "load_index_file", None)
    index = load_index(tmp_path / "g")
    (tmp_path / "g" / "index.faiss").unlink()
    np.testing.assert_array_equal(index.search(DATA[:50], 5)[1], IDS[whole.search(DATA[:50], 5)[1]])
