import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from fct_infer import storage
from fct_infer.errors import ResourceError
from fct_infer.evaluation import QueryRanks, write_report
from fct_infer.evaluation.charts import histogram, line_chart

RANKS = QueryRanks(np.array([1, 3, 0, 2]), np.array([1.0, 0.25, np.nan, 0.5]), 40, "l2")


class Checker(HTMLParser):
    """Fails on tags left open and on anything that would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "object")
        assert not {"src", "href", "onload"} & {name for name, _ in attributes}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_self_contained_and_holds_the_figures(tmp_path):
    path = tmp_path / "out" / "report.html"
    write_report(path, RANKS, (1, 2), {"gallery": "<script>alert(1)</script>"})
    page = path.read_text()
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.text)
    assert checker.open == []
    assert "url(" not in page and "@import" not in page
    for figure in ("33.33 %", "66.67 %", "58.33 %", "1 (nothing relevant in the gallery)", "<script>alert(1)</script>"):
        assert figure in text
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'name="viewport"' in page


def test_page_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, RANKS, (1,), {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_full_disk_leaves_the_earlier_report_as_it_was(tmp_path):
    class FullDisk(storage.FileSystem):
        def write(self, fd, data):
            raise OSError(28, os.strerror(28))

    path = tmp_path / "report.html"
    path.write_text("earlier")
    with storage.use_filesystem(FullDisk()), pytest.raises(ResourceError, match=r"report\.html: .*full"):
        write_report(path, RANKS, (1,), {})
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "earlier"


def test_line_chart_puts_each_value_at_its_height():
    svg = ElementTree.fromstring(line_chart([0.0, 0.5, 1.0], "k", "queries", "three points"))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.iter("circle")]
    heights = [y for _, y in dots]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[0] > heights[2] > 0
    assert [title.text for title in svg.iter("title")] == ["1: 0.00 %", "2: 50.00 %", "3: 100.00 %"]
    points = re.findall(r"([\d.]+),([\d.]+)", svg.find("polyline").get("points"))
    assert [(float(x), float(y)) for x, y in points] == dots


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_line_chart_stays_inside_its_frame(count):
    svg = ElementTree.fromstring(line_chart([1.0] * count, "k", "queries", "flat"))
    width, height = (float(side) for side in svg.get("viewBox").split()[2:])
    for dot in svg.iter("circle"):
        assert 0 < float(dot.get("cx")) < width and 0 < float(dot.get("cy")) < height


def test_histogram_bars_are_as_high_as_their_shares():
    svg = ElementTree.fromstring(histogram([0.1, 0.0, 0.3, 0.6], "x", "y", "bars"))
    heights = [float(bar.get("height")) for bar in svg.iter("rect")]
    assert heights[0] == pytest.approx(heights[3] / 6, abs=0.1)
    assert heights[1] == 0
    assert heights[2] == pytest.approx(heights[3] / 2, abs=0.1)
