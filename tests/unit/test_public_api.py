"""What `fct_infer` offers at the top: every name documented and typed, errors too, arrays and files alike."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.embeddings import upgrade
from support.galleries import write_gallery
from support.programs import linear_map

import fct_infer
from fct_infer import errors
from fct_infer.evaluation import Settings as EvaluationSettings
from fct_infer.evaluation import StudyInputs, study

PROMISED = (
    "Settings", "embed_gallery", "evaluate", "export_backbone", "export_transformation", "fit", "list_versions",
    "load_embedder", "load_index", "load_transformation", "open_gallery", "open_index", "open_source", "rollback",
    "upgrade_gallery",
)  # fmt: skip


def test_every_name_is_there_documented_and_typed() -> None:
    tree = ast.parse(Path(fct_infer.__file__).read_text())
    typed = {
        alias.asname
        for block in tree.body
        if isinstance(block, ast.If)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    names = set(fct_infer.__all__) - {"__version__"}
    assert set(PROMISED) <= names == typed
    for name in names:
        assert inspect.getdoc(getattr(fct_infer, name)), name


def test_every_error_is_at_the_top() -> None:
    classes = {
        name for name, each in vars(errors).items() if isinstance(each, type) and each.__module__ == errors.__name__
    }
    assert {name for name in classes if issubclass(getattr(errors, name), errors.FctError)} <= set(fct_infer.__all__)
    assert fct_infer.GalleryError is errors.GalleryError


def test_names_need_no_extra_before_they_are_used() -> None:
    missing = ("torch", "onnx", "onnxruntime", "faiss", "PIL", "pyarrow", "h5py")
    code = f"""
import sys
sys.modules |= dict.fromkeys({missing})
import fct_infer
for name in fct_infer.__all__:
    getattr(fct_infer, name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_gallery_from_the_upgrade_to_the_search(tmp_path) -> None:
    write_gallery(tmp_path / "g", (20, 5), old_dim=6, side_dim=None, ids="str")
    h = fct_infer.Transformation(linear_map(6, 4), precision="fp32")
    settings = fct_infer.Settings(index="Flat")
    report = fct_infer.upgrade_gallery(tmp_path / "g", h, tmp_path / "d", settings=settings)
    assert "25 rows in 2 shards" in repr(report) and "index Flat" in repr(report)
    gallery = fct_infer.open_gallery(tmp_path / "d")
    assert repr(gallery) == f"PublishedGallery({tmp_path / 'd'}, 25 rows of 4 float32, index)"
    assert repr(gallery.source()) == f"Gallery({tmp_path / 'd'}: 25 rows of 4 float32, ids str224, 2 parts)"
    _, ids = gallery.search([0.5, 1, 2, 3], 3)
    assert np.array_equal(ids, fct_infer.open_index(tmp_path / "d").search(np.array([[0.5, 1, 2, 3]], "f4"), 3)[1][0])
    assert not gallery.verify().damaged
    fct_infer.upgrade_gallery(tmp_path / "g", h, tmp_path / "d", settings=fct_infer.Settings(index="none"), force=True)
    before = fct_infer.open_gallery(tmp_path / "d")
    assert not before.has_index and [each.is_current for each in before.versions()] == [True, False]
    before.rollback()
    assert before.has_index and np.array_equal(before.search([0.5, 1, 2, 3], 3)[1], ids)


@pytest.mark.parametrize("index", ["Flat", "none"])
def test_queries_of_another_model_are_refused_with_and_without_an_index(tmp_path, index: str) -> None:
    write_gallery(tmp_path / "g", (20,), old_dim=6, side_dim=None, ids=None)
    h = fct_infer.Transformation(linear_map(6, 4), precision="fp32")
    h.new_model = fct_infer.ModelId(name="new")
    fct_infer.upgrade_gallery(tmp_path / "g", h, tmp_path / "d", settings=fct_infer.Settings(index=index))
    gallery = fct_infer.open_gallery(tmp_path / "d")
    assert gallery.search([0.5, 1, 2, 3], 3, model="new")[1].shape == (3,)
    with pytest.raises(fct_infer.ModelMismatchError, match=r"other.*new"):
        gallery.search([0.5, 1, 2, 3], 3, model="other")


def test_evaluate_takes_arrays_and_files(tmp_path) -> None:
    queries, gallery, new_gallery, query_labels, labels = upgrade(3, queries=10, rows=60)
    given = {"queries": queries, "gallery": gallery, "query_labels": query_labels, "gallery_labels": labels}
    settings = EvaluationSettings(metric="cosine")
    wanted = study(StudyInputs(**given, new_gallery=new_gallery), settings).as_dict()
    paths = {}
    for name, array in (given | {"new_gallery": new_gallery}).items():
        paths[name] = tmp_path / f"{name}.npy"
        np.save(paths[name], array)
    found = fct_infer.evaluate(**paths, settings=settings)
    assert found.as_dict() == wanted and repr(found).startswith("Study(new/old: 9 queries, CMC-1 ")
    mixed = fct_infer.evaluate(str(paths["queries"]), gallery, query_labels, labels, settings=settings)
    assert mixed.ranks.metrics().as_dict() == found.ranks.metrics().as_dict()
    with pytest.raises(fct_infer.UsageError, match="evaluate has no new_galery"):
        fct_infer.evaluate(queries, gallery, query_labels, labels, new_galery=new_gallery)
