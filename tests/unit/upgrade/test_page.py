"""The page of one upgrade: the verdict first, every figure as measured, nothing loaded, no text taken for HTML."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.commands import run_command
from support.pairs import clustered
from support.probes import least_squares
from support.programs import linear_map

from fct_infer import upgrade_gallery
from fct_infer.cli.upgrade_gallery import command
from fct_infer.errors import FctError
from fct_infer.upgrade.page import write_page
from fct_infer.upgrade.report import NORM_QUANTILES, UpgradeReport
from fct_infer.upgrade.settings import Settings


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory):
    """A report of an upgrade with a probe and an index with lists, as it is read back from its file."""
    folder = tmp_path_factory.mktemp("page")
    old, new, _ = clustered(2000)
    np.save(folder / "old.npy", 3 * old)
    np.save(folder / "new.npy", new)
    h = least_squares(3 * old, new)
    chosen = Settings(index="IVF64,Flat", min_recall=0.9, probe=folder / "new.npy")
    report = upgrade_gallery(folder / "old.npy", h, folder / "<b>out", settings=chosen)
    loaded = UpgradeReport.load(folder / "<b>out" / "upgrade_infos.json")
    assert loaded.verification == report.verification
    return folder, loaded, old, h


def text_of(page: str) -> str:
    return unescape(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2])).replace("\xa0", " ")


def test_lengths_and_recall_by_nprobe_are_those_measured(upgraded):
    folder, report, old, _ = upgraded
    checks = report.verification
    published = np.concatenate([np.load(shard) for shard in (folder / "<b>out" / "embeddings").iterdir()])
    for norms, rows in ((checks.norms_before, 3 * old), (checks.norms_after, published)):
        lengths = np.linalg.norm(rows, axis=1)
        assert list(norms) == sorted(norms) and len(norms) == len(NORM_QUANTILES)
        assert lengths.min() * 0.999 <= norms[0] and norms[-1] <= lengths.max() * 1.001
        assert norms[2] == pytest.approx(np.median(lengths), rel=0.05)
    tried = dict(checks.recall_by_nprobe)
    assert list(tried) == [2**power for power in range(len(tried))]
    assert tried[max(tried)] == checks.recall_at_10 >= 0.9
    assert f"nprobe={max(tried)}" == report.index["index_param"]


def test_the_page_begins_with_the_verdict_and_shows_every_figure(upgraded, tmp_path):
    _, report, *_ = upgraded
    write_page(tmp_path / "page.html", report)
    page = (tmp_path / "page.html").read_text()
    text = text_of(page)
    assert text.split()[:6] == ["A", "gallery", "upgraded", "2,000", "rows", "published;"]
    assert "<b>out" not in page and "<b>out" in text
    assert not re.search(r"<script|https?://|url\(|@import", page)
    checks, (meaning,) = report.verification, report.meaning
    for figure in (*checks.norms_before, *checks.norms_after):
        assert f"{figure:.4g}" in text
    for shown in (str(meaning.recall_at_1), str(meaning.order), f"{checks.min_cosine:.6f}"):
        assert shown in text
    for stage in report.timings:
        assert stage.replace("_", " ") in text
    for nprobe, recall in checks.recall_by_nprobe:
        assert f"{nprobe}: {100 * recall:.2f} %" in text


def test_what_an_earlier_version_wrote_is_shown_as_far_as_it_goes(upgraded, tmp_path):
    _, report, *_ = upgraded
    infos = json.loads(json.dumps(report.as_dict()))
    for name in ("norms_before", "norms_after", "recall_by_nprobe"):
        del infos["verification"][name]
    write_page(tmp_path / "page.html", replace(UpgradeReport.of(infos), meaning=(), index=None))
    text = text_of((tmp_path / "page.html").read_text())
    assert "Not measured" in text and "was not asked" in text


def test_the_command_writes_it_or_says_before_the_work_that_it_cannot(upgraded, tmp_path):
    folder, _, _, h = upgraded
    core_bundle(h.program, tmp_path / "h")
    line = [str(folder / "old.npy"), "--transformation", str(tmp_path / "h"), "--index", "Flat"]
    blocked = CliRunner().invoke(
        command, [*line, "-o", str(tmp_path / "a"), "--report", str(folder / "old.npy" / "p.html")]
    )
    assert blocked.exit_code and not (tmp_path / "a").exists() and not (tmp_path / "a.partial").exists()
    done = CliRunner().invoke(command, [*line, "-o", str(tmp_path / "b"), "--report", str(tmp_path / "p.html")])
    assert done.exit_code == 0, done.output
    assert "A gallery upgraded" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("items.npy", "is no HTML page"),
        ("h/manifest.json", "is no HTML page"),
        ("new/page.html", "lies in"),
        ("new.partial/page.html", "lies in"),
        ("new.versions/page.html", "lies in"),
    ],
)
def test_a_page_replaces_no_input_and_lies_in_no_gallery(upgraded, tmp_path, page, said):
    _, _, old, h = upgraded
    np.save(tmp_path / "items.npy", old)
    core_bundle(h.program, tmp_path / "h")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    line = ["items.npy", "--transformation", "h", "-o", "new", "--report", page]
    paths = [str(tmp_path / text) if text[0] != "-" else text for text in line]
    refused = CliRunner().invoke(command, paths)
    assert isinstance(refused.exception, FctError) and said in str(refused.exception), refused.output
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not (tmp_path / "new").exists()


def test_an_earlier_page_is_replaced(upgraded, tmp_path):
    folder, _, _, h = upgraded
    core_bundle(h.program, tmp_path / "h")
    (tmp_path / "p.html").write_text("<!doctype HTML><p>of long ago")
    line = [str(folder / "old.npy"), "--transformation", str(tmp_path / "h"), "--index", "none"]
    done = CliRunner().invoke(command, [*line, "-o", str(tmp_path / "new"), "--report", str(tmp_path / "p.html")])
    assert done.exit_code == 0, done.output
    assert "of long ago" not in (tmp_path / "p.html").read_text()


def test_an_index_that_finds_little_is_published_with_a_warning_and_the_way_out(upgraded, tmp_path):
    folder, _, _, h = upgraded
    core_bundle(h.program, tmp_path / "h")
    page = tmp_path / "p.html"
    line = [folder / "old.npy", "--transformation", tmp_path / "h", "-o", tmp_path / "new", "--report", page]
    done = run_command("upgrade_gallery", *line, "--index", "IVF8,PQ1x4")
    assert done.returncode == 0, done.stderr
    warning = done.stderr.splitlines()[-1]
    report = UpgradeReport.load(tmp_path / "new" / "upgrade_infos.json")
    assert report.verification.recall_at_10 < 0.8
    assert warning == f"warning: {report.verification.warning}" and "--min-recall" in warning and "SQ8" in warning
    assert report.verification.warning[1:] in text_of(page.read_text()) and "finds only" in report._repr_html_()
    assert replace(report.verification, recall_at_10=0.8).warning is None
    assert "--min-recall" not in replace(report.verification, recall_by_nprobe=()).warning


def test_a_dry_run_says_that_it_writes_no_page_and_counts_one_row(tmp_path):
    np.save(tmp_path / "old.npy", np.ones((1, 4), np.float32))
    core_bundle(linear_map(4, 3), tmp_path / "h")
    line = [tmp_path / "old.npy", "--transformation", tmp_path / "h", "-o", tmp_path / "new", "--index", "Flat"]
    dry = run_command("upgrade_gallery", *line, "--dry-run", "--report", tmp_path / "p.html")
    assert dry.returncode == 0 and "not by --dry-run" in dry.stderr and not (tmp_path / "p.html").exists()
    assert "1 row in 1 shard" in dry.stdout and "nothing to train" in dry.stdout
    done = run_command("upgrade_gallery", *line)
    assert "1 row in 1 shard" in done.stdout and "warning" not in done.stderr
