import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from support.embeddings import upgrade

from fct_infer import storage
from fct_infer.errors import ResourceError
from fct_infer.evaluation import Settings, StudyInputs, study, write_report
from fct_infer.pages.charts import curves_chart, heat_map, histogram, line_chart

QUERIES, GALLERY, NEW_GALLERY, QUERY_LABELS, LABELS = upgrade(1)
SMALL = StudyInputs(QUERIES, GALLERY, QUERY_LABELS, LABELS)
WHOLE = StudyInputs(
    QUERIES,
    GALLERY,
    QUERY_LABELS,
    LABELS,
    old_queries=QUERIES[:, :3].copy(),
    old_gallery=NEW_GALLERY[:, :3].copy(),
    new_gallery=NEW_GALLERY,
    uncertainty=np.arange(len(LABELS)),
)
FOUND = study(SMALL, Settings(ks=(1, 2)))


class Checker(HTMLParser):
    """Fails on tags left open, on anything loaded from elsewhere, and on signs apart from their figures."""

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
        assert " %" not in data  # a figure and its sign stay on one line
        self.text.append(data.replace("\xa0", " "))


def test_page_is_self_contained_and_holds_the_figures(tmp_path):
    path = tmp_path / "out" / "report.html"
    write_report(path, FOUND, {"gallery": "<script>alert(1)</script>"})
    page = path.read_text()
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.text)
    assert checker.open == []
    assert "url(" not in page and "@import" not in page
    metrics = FOUND.ranks.metrics()
    shown = [f"{100 * share:.2f} %" for share in (metrics.cmc[1], metrics.cmc[2], metrics.mean_average_precision)]
    left_out = f"{metrics.skipped_queries} (nothing relevant in the gallery)"
    assert metrics.skipped_queries > 0
    for figure in (*shown, left_out, "<script>alert(1)</script>"):
        assert figure in text
    assert not {"Flips", "Backfilling", "Is it worth it?", "Query model against gallery"} & set(checker.text)
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'name="viewport"' in page


def test_page_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, FOUND, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_page_of_a_whole_study_begins_with_the_verdict(tmp_path):
    found = study(WHOLE, Settings(figures=("cmc", "map", "recall", "r-precision"), per_class=True))
    write_report(tmp_path / "report.html", found, {}, retrieved="<p>pictures</p>")
    checker = Checker()
    checker.feed((tmp_path / "report.html").read_text())
    assert checker.open == []
    text = [part for part in checker.text if part.strip()]
    shown = [part.replace("\xa0", " ") for part in text]
    heading = len(shown) - 1 - shown[::-1].index("Retrieval evaluation")  # after the title
    assert shown[heading + 1] == f"Is it worth it? {found.verdict.sentence}"
    for part in ("Flips", "Backfilling", "By label, the worst first", "Queries and what they find", "pictures"):
        assert part in text
    for name, curve in found.curves.items():
        assert name in text and any(figure.startswith(f"{100 * curve.area:.2f} %") for figure in text)
    assert {"recall@5 %", "R-precision %", "CMC-1 %"} <= set(text)


def test_curves_are_drawn_to_one_scale_with_a_legend():
    curves = {"a <b>": [0.5, 0.6, 0.7], "c": [0.7, 0.7, 0.7]}
    svg = ElementTree.fromstring(curves_chart([0, 0.5, 1], curves, "x", "y", "two curves"))
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in svg.iter("polyline")
    ]
    assert lines[0][2] == lines[1][2]
    assert lines[0][0][1] - lines[0][1][1] == pytest.approx(lines[0][1][1] - lines[0][2][1], abs=0.2)
    assert lines[0][1][0] == pytest.approx((lines[0][0][0] + lines[0][2][0]) / 2, abs=0.2)
    assert {"a <b>", "c"} <= {text.text for text in svg.iter("text")}
    width, height = (float(side) for side in svg.get("viewBox").split()[2:])
    assert all(0 < x < width and 0 < y < height for line in lines for x, y in line)


def test_a_flat_curve_can_be_drawn():
    svg = ElementTree.fromstring(curves_chart([0, 1], {"a": [1.0, 1.0]}, "x", "y", "flat"))
    assert "nan" not in ElementTree.tostring(svg, "unicode")


def test_heat_map_cells_are_darker_for_more():
    svg = ElementTree.fromstring(heat_map([[0.1, None], [0.5, 0.9]], ["old", "new"], ["a", "b"], "map"))
    shades = [float(cell.get("fill-opacity")) for cell in svg.iter("rect")]
    assert shades[1] == 0 < shades[0] < shades[2] < shades[3]
    assert [text.text for text in svg.iter("text")] == ["a", "b", "old", "10.0", "–", "new", "50.0", "90.0"]


def test_a_full_disk_leaves_the_earlier_report_as_it_was(tmp_path):
    class FullDisk(storage.FileSystem):
        def write(self, fd, data):
            raise OSError(28, os.strerror(28))

    path = tmp_path / "report.html"
    path.write_text("earlier")
    with storage.use_filesystem(FullDisk()), pytest.raises(ResourceError, match=r"report\.html: .*full"):
        write_report(path, FOUND, {})
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
