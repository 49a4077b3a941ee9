import json
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from fct_infer.errors import UsageError
from fct_infer.evaluation import (
    CompatibilityRow,
    CompatibilityTable,
    RetrievalMetrics,
    criterion,
    gap_closed,
)


def metrics(top_1, top_5, mean_average_precision):
    return RetrievalMetrics({1: top_1, 5: top_5}, mean_average_precision, {}, 0.5, 100, 0, 100, "l2")


# FCT's table for ImageNet (arXiv 2112.02805)
OLD = CompatibilityRow("old", "old", metrics(0.464, 0.651, 0.283))
BEFORE = CompatibilityRow("new", "old", metrics(0.001, 0.005, 0.002), "before")
AFTER = CompatibilityRow("new", "old", metrics(0.651, 0.827, 0.440), "after")
NEW = CompatibilityRow("new", "new", metrics(0.684, 0.847, 0.456))


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.rows[-1].append(data)


def test_criterion_is_strict():
    assert criterion(0.44, 0.283)
    assert not criterion(0.283, 0.283)
    assert not criterion(0.25, 0.336)  # BCT's own re-run on CIFAR-100


def test_gain_and_gap():
    assert gap_closed(0.44, 0.283, 0.456) == pytest.approx(0.157 / 0.173)
    assert gap_closed(0.283, 0.283, 0.456) == 0
    assert gap_closed(0.456, 0.283, 0.456) == 1
    assert gap_closed(0.1, 0.283, 0.456) < 0
    assert gap_closed(0.5, 0.456, 0.456) is None
    assert gap_closed(42.2, 39.5, 66.3) == pytest.approx(2.7 / 26.8)  # BCT on ImageNet


def test_rows_are_judged_by_old_old_and_new_new():
    table = CompatibilityTable((OLD, BEFORE, AFTER, NEW)).as_dict()
    json.dumps(table, allow_nan=False)
    judged = {f"{row['query_model']}/{row['gallery_model']} {row['note']}": row for row in table["rows"]}
    assert judged["new/old before"]["meets_criterion"] is False
    assert judged["new/old after"]["meets_criterion"] is True
    assert judged["new/old after"]["gap_closed"] == pytest.approx(0.9075, abs=1e-4)
    assert judged["old/old "]["gap_closed"] is None
    assert judged["new/new "]["cmc"] == {"1": 0.684, "5": 0.847}


def test_html_holds_the_figures_and_escapes_names():
    cells = Cells()
    cells.feed(CompatibilityTable((OLD, AFTER, NEW, CompatibilityRow("<b>", "old", OLD.metrics))).html())
    assert cells.open == []
    assert cells.rows[0] == ["query/gallery", "CMC-1 %", "CMC-5 %", "mAP %", "criterion", "gap closed %"]
    assert cells.rows[1] == ["old/old", "46.4", "65.1", "28.3", "–", "–"]
    assert cells.rows[2] == ["new/old after", "65.1", "82.7", "44.0", "yes", "90.8"]
    assert cells.rows[4] == ["<b>/old", "46.4", "65.1", "28.3", "no", "0.0"]


def test_terminal_table_holds_the_same():
    console = Console(width=120, file=StringIO())
    console.print(CompatibilityTable((OLD, BEFORE, AFTER, NEW)).rich("Models"))
    text = console.file.getvalue()
    assert "Models" in text
    line = next(line for line in text.splitlines() if "new/old after" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "new/old after",
        "65.1",
        "82.7",
        "44.0",
        "yes",
        "90.8",
    ]


def test_without_references_nothing_is_judged():
    table = CompatibilityTable((AFTER, NEW))
    assert [row["gap_closed"] for row in table.as_dict()["rows"]] == [None, None]
    assert "criterion" not in table.html()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "rows of different names"),
        ((OLD, OLD), "rows of different names"),
        ((OLD, CompatibilityRow("new", "new", RetrievalMetrics({1: 0.5}, 0.5, {}, 0.5, 1, 0, 1, "l2"))), "same k"),
    ],
)
def test_bad_tables_are_refused(rows, message):
    with pytest.raises(UsageError, match=message):
        CompatibilityTable(rows)
