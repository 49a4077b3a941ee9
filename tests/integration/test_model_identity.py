"""Galleries, bundles and indexes say whose vectors they are, and refuse those of another model."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support.probes import least_squares, write_items
from support.vector_files import fixed_size

from fct_infer import SourceOptions, load_index, load_transformation, open_source, upgrade_gallery
from fct_infer.artifacts.manifest import read_manifest
from fct_infer.cli.export import command as export_command
from fct_infer.cli.gallery import command as gallery_command
from fct_infer.cli.upgrade_gallery import command as upgrade_command
from fct_infer.connectors.convert import convert
from fct_infer.errors import ArtifactError, ModelMismatchError, UsageError
from fct_infer.export import Options, export_file, export_transformation
from fct_infer.gallery.manifest import GalleryManifest
from fct_infer.gallery.manifest import read_manifest as read_gallery_manifest
from fct_infer.identity import ModelId
from fct_infer.upgrade.settings import Settings

INDEX = Settings(index="Flat")


@pytest.fixture
def items(tmp_path):
    """A gallery that says nothing, one that says it is of model ``v1``, and a transformation from v1 to v2."""
    old, new, _ = write_items(tmp_path / "g")
    convert(tmp_path / "g", tmp_path / "v1", SourceOptions(model="v1"))
    export_transformation(
        least_squares(old, new).program, tmp_path / "h", Options(("core",), old_model="v1", new_model="v2")
    )
    np.save(tmp_path / "new.npy", new)
    return tmp_path


def test_what_is_published_says_whose_vectors_it_was_and_is(items):
    report = upgrade_gallery(items / "v1", load_transformation(items / "h"), items / "out", settings=INDEX)
    manifest = read_gallery_manifest(items / "out")
    assert (manifest.old_model, manifest.model) == (ModelId("v1"), ModelId("v2"))
    assert report.models == {"old": {"name": "v1"}, "new": {"name": "v2"}}
    assert json.loads((items / "out" / "upgrade_infos.json").read_text())["models"] == report.models
    assert open_source(items / "out").model == ModelId("v2")
    checked = CliRunner().invoke(gallery_command, ["verify", str(items / "out")])
    assert checked.exit_code == 0, checked.output


def test_a_search_with_another_models_queries_is_refused(items):
    upgrade_gallery(items / "g", load_transformation(items / "h"), items / "out", settings=INDEX)
    index, queries = load_index(items / "out", model="v2"), np.load(items / "new.npy")[:3]
    assert index.model == ModelId("v2")
    for model in (None, "v2", ModelId("v2"), f"sha256:{'a' * 64}"):  # a digest alone cannot be compared with a name
        assert index.search(queries, 2, model=model)[1].shape == (3, 2)
    with pytest.raises(ModelMismatchError, match="queries of model 'v1', the gallery of model 'v2'"):
        index.search(queries, 2, model="v1")
    with pytest.raises(ModelMismatchError):
        load_index(items / "out", model="v1")


def test_a_gallery_of_another_model_is_refused_unless_the_user_knows_better(items):
    convert(items / "g", items / "other", SourceOptions(model="v0"))
    line = ["--transformation", str(items / "h"), "--index", "none", "-o", str(items / "out")]
    refused = CliRunner().invoke(upgrade_command, [str(items / "other"), *line])
    assert isinstance(refused.exception, ModelMismatchError)
    assert "'v0'" in str(refused.exception) and "'v1'" in str(refused.exception)
    assert not (items / "out").exists() and not (items / "out.partial").exists()
    said = CliRunner().invoke(upgrade_command, [str(items / "other"), *line, "--model", "v1"])
    assert said.exit_code == 0, said.output
    assert "'v1' -> 'v2'" in said.output


def test_upgrading_twice_is_noticed(items):
    h = load_transformation(items / "h")
    upgrade_gallery(items / "v1", h, items / "once", settings=Settings(index="none"))
    again = least_squares(np.load(items / "new.npy"), np.load(items / "new.npy"))
    again.old_model = ModelId("v1")
    with pytest.raises(ModelMismatchError, match=r"model 'v2', .* of model 'v1'"):
        upgrade_gallery(items / "once", again, items / "twice", settings=Settings(index="none"))


def test_what_says_nothing_passes_and_is_said_to_be_unknown(items):
    bundle = load_transformation(items / "h").program
    export_transformation(bundle, items / "silent", Options(("core",)))
    h = load_transformation(items / "silent")
    assert (h.old_model, h.new_model) == (None, None)
    report = upgrade_gallery(items / "v1", h, items / "out", settings=INDEX)
    assert report.models == {"old": {"name": "v1"}}
    assert load_index(items / "out", model="whatever").model is None
    assert "model" not in json.loads((items / "out" / "manifest.json").read_text())
    assert "models" not in json.loads((items / "silent" / "manifest.json").read_text())
    line = [str(items / "v1"), "--transformation", str(items / "silent"), "-o", str(items / "b"), "--dry-run"]
    shown = CliRunner().invoke(upgrade_command, line)
    assert "'v1' -> unknown" in shown.output


def test_a_transformation_keeps_its_models_wherever_it_goes(items):
    h = load_transformation(items / "h", precision="fp32", threads=1)
    for other in (h.normalized(), pickle.loads(pickle.dumps(h)), h.in_precision("fp32")):
        assert (other.old_model, other.new_model) == (ModelId("v1"), ModelId("v2"))
    upgrade_gallery(items / "v1", h, items / "out", settings=Settings(index="none", normalize=True))
    assert read_gallery_manifest(items / "out").model == ModelId("v2", unit_length=True)


def test_a_bundle_that_is_exported_onward_keeps_its_models(items):
    report = export_file(items / "h", items / "h2", Options(("core",), new_model="v3"))
    assert report.manifest.models == {"old": ModelId("v1"), "new": ModelId("v3")}
    assert read_manifest(items / "h2").models == report.manifest.models


def test_a_probe_of_another_model_is_refused(items):
    convert(items / "new.npy", items / "probe", SourceOptions(model="v1"))
    with pytest.raises(ModelMismatchError, match=r"--probe .*'v1', the transformation makes vectors of model 'v2'"):
        settings = Settings(index="none", probe=items / "probe")
        upgrade_gallery(items / "g", load_transformation(items / "h"), items / "out", settings=settings)


def test_parquet_says_it_in_its_schema_and_new_vectors_say_their_own(items):
    rows = np.concatenate([np.load(file) for file in sorted((items / "g" / "embeddings").iterdir())])
    table = pa.table({"id": np.arange(len(rows)), "vector": fixed_size(rows)})
    said = {"fct_infer.model": json.dumps({"name": "v1"}), "theirs": "kept"}
    pq.write_table(table.replace_schema_metadata(said), items / "items.parquet")
    assert open_source(items / "items.parquet").model == ModelId("v1")
    h = load_transformation(items / "h")
    upgrade_gallery(items / "items.parquet", h, items / "out", settings=Settings(index="none", format="parquet"))
    assert open_source(items / "out").model == ModelId("v2")
    (part,) = (items / "out" / "embeddings").iterdir()
    metadata = pq.read_schema(part).metadata
    assert metadata[b"theirs"] == b"kept" and json.loads(metadata[b"fct_infer.model"]) == {"name": "v2"}
    assert open_source(part).model == ModelId("v2")  # wherever it is copied to
    h.new_model = None
    upgrade_gallery(items / "items.parquet", h, items / "b", settings=Settings(index="none", format="parquet"))
    assert b"fct_infer.model" not in pq.read_schema(next((items / "b" / "embeddings").iterdir())).metadata
    pq.write_table(table.replace_schema_metadata({"fct_infer.model": "{"}), items / "bad.parquet")
    with pytest.raises(ArtifactError, match=r"bad\.parquet"):
        _ = open_source(items / "bad.parquet").model


def test_a_converted_gallery_says_it_can_be_replaced_and_is_sealed(items):
    inspected = CliRunner().invoke(gallery_command, ["inspect", str(items / "v1")])
    assert "model" in inspected.output and "'v1'" in inspected.output
    convert(items / "v1", items / "copy")
    assert open_source(items / "copy").model == ModelId("v1")
    convert(items / "g", items / "copy", SourceOptions(model="v7"), force=True)
    assert open_source(items / "copy").model == ModelId("v7")
    file = items / "copy" / "model.json"
    file.write_bytes(file.read_bytes().replace(b"v7", b"v8"))
    with pytest.raises(ArtifactError, match=r"model\.json: does not match its own sha256"):
        _ = open_source(items / "copy").model


def test_image_models_have_no_old_and_new_one(items):
    torch = pytest.importorskip("torch")
    from fct_infer.export import export_backbone

    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).eval()
    with pytest.raises(UsageError, match="model_version names an image model"):
        export_backbone(module, items / "b", Options(("torchscript",), old_model="v1"), image_shape=(3, 4, 4))


@pytest.mark.parametrize("models", [{}, {"model": ModelId("v2", "a" * 64)}, {"old_model": ModelId("v1")}])
def test_a_manifest_with_and_without_models(tmp_path, models):
    manifest = GalleryManifest(1, 2, "float32", "l2", "digest", "rows", None, {}, **models)
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    assert read_gallery_manifest(tmp_path) == manifest
    assert set(json.loads(manifest.to_bytes())) & {"model", "old_model"} == set(models)


def test_the_command_that_exports_names_models(items):
    line = [str(items / "h"), "-o", str(items / "h3"), "--targets", "core", "--old-model", "v0"]
    done = CliRunner().invoke(export_command, line)
    assert done.exit_code == 0, done.output
    assert read_manifest(items / "h3").models == {"old": ModelId("v0"), "new": ModelId("v2")}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b'{"schema": 1}', b'{"schema": 9, "kind": "model"}', b"[" * 100_000, None],
    ids=["empty", "no text", "a list", "half", "of the future", "deep", "a folder"],
)
def test_a_hostile_model_file_is_one_typed_error(items, content):
    file = items / "g" / "model.json"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    line = [str(items / "g"), "--transformation", str(items / "h"), "--index", "none", "-o", str(items / "out")]
    refused = CliRunner().invoke(upgrade_command, line)
    assert isinstance(refused.exception, ArtifactError) and "model.json" in str(refused.exception)
    assert not (items / "out.partial").exists()
