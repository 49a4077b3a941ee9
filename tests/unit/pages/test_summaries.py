"""What notebooks show of objects: their facts, as text and as HTML that takes no name for markup."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from support.pairs import clustered

import fct_infer
from fct_infer.evaluation import Settings, StudyInputs, study
from fct_infer.fitting import Settings as FitSettings
from fct_infer.pages import html_summary


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("<i>x")
    old, new, labels = clustered(400)
    np.save(folder / "old.npy", old)
    found = fct_infer.fit(old, new, settings=FitSettings(network=False))
    h = fct_infer.Transformation(found.program, "fp32", threads=1)
    report = fct_infer.upgrade_gallery(folder / "old.npy", h, folder / "out")
    gallery = fct_infer.open_gallery(folder / "out")
    studied = study(StudyInputs(new, new, labels, labels), Settings(exclude_self=True))
    return {
        "Fit": found, "Transformation": h, "UpgradeReport": report, "PublishedGallery": gallery,
        "GalleryIndex": gallery.index, "Study": studied,
    }  # fmt: skip


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open, self.seen, self.text = [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


@pytest.mark.parametrize(
    "name", ["Fit", "Transformation", "UpgradeReport", "PublishedGallery", "GalleryIndex", "Study"]
)
def test_objects_show_what_they_are(objects, name):
    page = objects[name]._repr_html_()
    tags = Tags()
    tags.feed(page)
    assert not tags.open and tags.seen == {"div", "strong", "table", "tbody", "tr", "th", "td"}
    assert tags.text.startswith(name)
    assert repr(objects[name]).startswith(f"{name}(") and "object at 0x" not in repr(objects[name])
    known = {"UpgradeReport": "400 rows in 1 shard", "PublishedGallery": "400 of 16", "GalleryIndex": "400 of 16"}
    assert known.get(name, "") in tags.text


def test_values_are_text():
    assert "<script>" not in html_summary("a", {"<script>": "<script>"})
