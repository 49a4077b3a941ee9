"""The examples do what they say, with the libraries' own classes and no network."""

from __future__ import annotations

import shutil
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.bundles import core_bundle
from support.programs import linear_map, random_rows

from fct_infer import Transformation, open_gallery, open_source, upgrade_gallery
from fct_infer.errors import ArtifactError
from fct_infer.upgrade.settings import Settings

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["row numbers", "text ids"])
def test_langchain_finds_the_text_of_the_nearest_rows(tmp_path, kind):
    pytest.importorskip("langchain_core")
    from langchain_core.embeddings import Embeddings

    old, h = random_rows(60, 8), Transformation(linear_map(8, 6), "fp32", threads=1)
    (tmp_path / "g" / "embeddings").mkdir(parents=True)
    np.save(tmp_path / "g" / "embeddings" / "000000.npy", old)
    names = list(range(60)) if kind == "row numbers" else [f"item-{row}" for row in range(60)]
    if kind == "text ids":
        (tmp_path / "g" / "ids").mkdir()
        np.save(tmp_path / "g" / "ids" / "000000.npy", np.array(names))
    upgrade_gallery(tmp_path / "g", h, tmp_path / "out")

    class NewModel(Embeddings):
        def embed_query(self, text):
            return h(old)[int(text)].tolist()

        def embed_documents(self, texts):
            return [self.embed_query(text) for text in texts]

    texts = {name: f"text {row}" for row, name in enumerate(names) if row != 5}
    retriever = load("langchain_retriever").GalleryRetriever(
        gallery=open_gallery(tmp_path / "out"), embeddings=NewModel(), texts=texts, k=3
    )
    found = retriever.invoke("41")
    assert found[0].page_content == "text 41" and found[0].id == str(names[41]) and len(found) == 3
    assert found[0].metadata["distance"] == pytest.approx(0, abs=1e-4)
    assert all(document.page_content != "text 5" for document in retriever.invoke("5"))  # deleted since


def test_a_bundle_goes_to_the_hub_and_comes_back(tmp_path, monkeypatch):
    """The Hub is a folder here: what is called, and with what, is checked against huggingface_hub's own signatures."""
    pytest.importorskip("huggingface_hub")
    from inspect import signature

    from huggingface_hub import HfApi, snapshot_download

    example, hub = load("hub_bundle"), tmp_path / "hub"

    class Api:
        def create_repo(self, *given, **options):
            signature(HfApi.create_repo).bind(self, *given, **options)

        def upload_folder(self, **options):
            signature(HfApi.upload_folder).bind(self, **options)
            shutil.copytree(options["folder_path"], hub)
            return SimpleNamespace(oid="0" * 40)

    def download(*given, **options):
        bound = signature(snapshot_download).bind(*given, **options)
        shutil.copytree(hub, bound.arguments["local_dir"])

    monkeypatch.setattr(example, "snapshot_download", download)
    core_bundle(linear_map(8, 6), tmp_path / "h")
    assert example.push(tmp_path / "h", "you/h", Api()) == "0" * 40
    rows = random_rows(5, 8)
    pulled = example.pull("you/h", tmp_path / "pulled", "0" * 40)
    assert np.array_equal(pulled(rows), Transformation(linear_map(8, 6), "fp32")(rows))
    weights = next(path for path in hub.iterdir() if path.suffix == ".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=weights.name):
        example.pull("you/h", tmp_path / "damaged")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ArtifactError):
        example.push(tmp_path / "nothing", "you/h", Api())


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_llamaindex_finds_the_text_of_the_nearest_rows(tmp_path, metric):
    pytest.importorskip("llama_index.core")
    from llama_index.core.embeddings import MockEmbedding

    old, h = random_rows(60, 8), Transformation(linear_map(8, 6), "fp32", threads=1)
    np.save(tmp_path / "old.npy", old)
    upgrade_gallery(tmp_path / "old.npy", h, tmp_path / "out", settings=Settings(metric=metric))

    class NewModel(MockEmbedding):
        def _get_query_embedding(self, query):
            return h(old)[int(query)].tolist()

    texts = {row: f"text {row}" for row in range(60) if row != 5}
    gallery, model = open_gallery(tmp_path / "out"), NewModel(embed_dim=6)
    retriever = load("llamaindex_retriever").GalleryRetriever(gallery, model, texts, k=3)
    found = retriever.retrieve("41")
    assert found[0].node.node_id == "41" and found[0].text == "text 41" and len(found) == 3
    assert found[0].score == pytest.approx(0 if metric == "l2" else 1, abs=1e-4)
    assert found[0].score > found[1].score > found[2].score  # as post-processors take it
    assert all(each.text != "text 5" for each in retriever.retrieve("5"))  # deleted since


def test_a_table_of_pgvector_is_searched_by_the_model_whose_vectors_it_shows(postgres):
    pytest.importorskip("psycopg")
    from support.postgres import fill

    from fct_infer.connectors import open_destination
    from fct_infer.connectors.table_versions import rollback

    example, rows = load("pgvector_search"), random_rows(40, 8)
    h = Transformation(linear_map(8, 6), "fp32", threads=1)
    postgres.create("example")
    try:
        with postgres.connect("example") as connection:
            fill(connection, range(40), rows)
            url, asked = postgres.url("example"), []

            def upgrade():
                upgrade_gallery(open_source(url), h, open_destination(url + "&column=embedding_v2"))

            upgrade()
            rollback(url)

            def old_model(text):
                asked.append("old")
                return rows[int(text)].tolist()

            def new_model(text):
                asked.append("new")
                return h(rows)[int(text)].tolist()  # 6 wide: the other model's query cannot even be compared

            items = example.ItemSearch(connection, {"embedding": old_model, "embedding_v2": new_model})
            assert items.search("7", 3)[0] == (7, pytest.approx(0, abs=1e-5)) and asked == ["old"]
            upgrade()
            assert items.search("7", 3)[0] == (7, pytest.approx(0, abs=1e-5)) and asked == ["old", "old", "new"]
            assert len(items.search("8", 3)) == 3 and asked[3:] == ["new"]
            connection.execute("DELETE FROM items")
            assert items.search("8", 3) == []
    finally:
        postgres.drop("example")
