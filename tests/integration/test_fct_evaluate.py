"""``fct-evaluate`` as a user runs it."""

import json

import numpy as np
import pytest
from support.commands import run_command
from support.elsewhere import Elsewhere
from support.retrieval_reference import first_ranks_and_precisions

ROWS, CLASSES = 120, 6


def run(folder, *arguments):
    return run_command("evaluate", *arguments, cwd=folder)


def call(**changes):
    flags = {"queries": "q.npy", "gallery": "g.npy", "query-labels": "ql.npy", "gallery-labels": "gl.npy"} | changes
    return [part for name, value in flags.items() for part in (f"--{name}", value)]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    gallery_labels, query_labels = rng.integers(0, CLASSES, ROWS), rng.integers(0, CLASSES + 1, 50)
    centers = rng.standard_normal((CLASSES + 1, 16))
    for name, labels in (("q", query_labels), ("g", gallery_labels)):
        embeddings = centers[labels] + rng.standard_normal((len(labels), 16))
        np.save(tmp_path / f"{name}.npy", embeddings.astype(np.float32))
        np.save(tmp_path / f"{name}l.npy", labels)
    return tmp_path


def expected(folder, queries="q.npy", gallery="g.npy", query_labels="ql.npy", gallery_labels="gl.npy", **options):
    arrays = [np.load(folder / name) for name in (queries, gallery, query_labels, gallery_labels)]
    first, precision = first_ranks_and_precisions(*arrays, **options)
    found = first > 0
    return {
        "cmc": {k: float((first[found] <= int(k)).mean()) for k in ("1", "5")},
        "mean_average_precision": pytest.approx(precision[found].mean(), rel=1e-12),
        "queries": int(found.sum()),
        "skipped_queries": int((~found).sum()),
    }


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_json_is_the_whole_of_stdout_and_right(folder, metric):
    result = run(folder, *call(metric=metric), "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    wanted = expected(folder, metric=metric)
    assert {name: document[name] for name in wanted} == wanted
    assert document["skipped_queries"] > 0
    assert document["metric"] == metric
    assert document["inputs"]["gallery"] == "g.npy"
    assert "new/old: " in result.stderr  # progress


def test_one_set_in_itself_with_text_output(folder):
    flags = call(queries="g.npy", **{"query-labels": "gl.npy"})
    result = run(folder, *flags, "--exclude-self", "--k", "1,10", "--threads", "2")
    assert result.returncode == 0, result.stderr
    wanted = expected(folder, queries="g.npy", query_labels="gl.npy", exclude_self=True)
    assert f"{100 * wanted['cmc']['1']:.2f} %" in result.stdout
    assert "CMC-10" in result.stdout and "CMC-5" not in result.stdout
    assert "own row is left out" in result.stderr and "own row" not in result.stdout


def test_sharded_gallery_and_labels_give_what_one_file_gives(folder):
    gallery, labels = np.load(folder / "g.npy"), np.load(folder / "gl.npy")
    for name in ("G/embeddings", "G/ids", "L"):
        (folder / name).mkdir(parents=True)
    for number, part in enumerate((slice(0, 50), slice(50, 51), slice(51, ROWS))):
        np.save(folder / f"G/embeddings/{number:06d}.npy", gallery[part])
        np.save(folder / f"G/ids/{number:06d}.npy", np.arange(ROWS)[part])
        np.save(folder / f"L/{number:06d}.npy", labels[part])
    (folder / "G/upgrade_infos.json").write_text("{}")  # what an upgrade publishes beside the embeddings
    (folder / "G/index.faiss").write_bytes(b"")
    one, other = run(folder, *call(), "--json"), run(folder, *call(gallery="G", **{"gallery-labels": "L"}), "--json")
    assert other.returncode == 0, other.stderr
    documents = [json.loads(result.stdout) for result in (one, other)]
    for document in documents:
        del document["inputs"]
    assert documents[0] == documents[1]


def test_report_is_written_and_replaced_whole(folder):
    for flags, figure in ((["--metric", "l2"], "l2"), (["--metric", "cosine"], "cosine")):
        result = run(folder, *call(), *flags, "--report", "out/report.html")
        assert result.returncode == 0, result.stderr
        page = (folder / "out/report.html").read_text()
        assert page.endswith("</html>\n")
        assert f"<td>{figure}</td>" in page
    assert [file.name for file in (folder / "out").iterdir()] == ["report.html"]


@pytest.fixture
def persons(tmp_path):
    """One query of person 1 in camera 1; its nearest is the same camera's, then junk, then another person."""
    arrays = {"q": np.zeros((1, 1)), "g": [[0.1], [0.15], [0.2], [0.3]]}
    for name, rows in arrays.items():
        np.save(tmp_path / f"{name}.npy", np.array(rows, np.float32))
    for name, values in {"ql": [1], "qc": [1], "gl": [1, -1, 2, 1], "gc": [1, 3, 1, 2], "gg": [0, 0, 9, 0]}.items():
        np.save(tmp_path / f"{name}.npy", np.array(values))
    return tmp_path


MARKET = ["--query-cameras", "qc.npy", "--gallery-cameras", "gc.npy", "--ignore-labels", "-1"]


def test_re_identification_leaves_out_junk_and_the_querys_own_camera(persons):
    result = run(persons, *call(), *MARKET, "--distractor-labels", "0", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["cmc"]["1"] == 0 and document["mean_average_precision"] == 0.5
    assert document["ignored_labels"] == [-1] and document["distractor_labels"] == [0]
    assert document["inputs"]["query_cameras"] == "qc.npy"
    assert "--ignore-labels: 1 gallery rows have the label -1" in result.stderr
    assert "--distractor-labels: 0 gallery rows have the label 0" in result.stderr


def test_re_identification_holds_for_old_and_new_galleries_too(persons):
    upgrade = ["--old-queries", "q.npy", "--new-gallery", "g.npy"]
    result = run(persons, *call(), *MARKET, *upgrade, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["matrix"]["mean_average_precision"] == [[0.5, 0.5], [0.5, 0.5]]
    assert set(document["backfilling"]["random"]["mean_average_precision"]) == {0.5}


def test_rows_of_the_querys_group_are_left_out(persons):
    np.save(persons / "qg.npy", np.array([9]))
    groups = ["--query-groups", "qg.npy", "--gallery-groups", "gg.npy"]
    result = run(persons, *call(), *MARKET, *groups, "--json")
    assert json.loads(result.stdout)["mean_average_precision"] == 1.0, result.stderr


def test_ties_are_told(persons):
    np.save(persons / "g.npy", np.array([[0.1], [0.1], [0.2], [0.3]], np.float32))
    result = run(persons, *call())
    assert "decided by a tie  1 queries" in result.stdout, result.stdout
    assert "tie" not in run(persons, *call(), "--ignore-labels", "-1").stdout


TRUTH = ["--queries", "q.npy", "--gallery", "g.npy", "--truth", "t.npy"]


@pytest.mark.parametrize("ids", ["row numbers", "a file", "the gallery's"])
def test_recall_against_truth_ids(persons, ids):
    """The second and the fourth row are right: ranks 2 and 4."""
    names = np.array(["a", "b", "c", "d"])
    np.save(persons / "t.npy", np.array([[1, 3]]) if ids == "row numbers" else np.array([["b", "d"]]))
    flags = list(TRUTH)
    if ids == "a file":
        np.save(persons / "names.npy", names)
        flags += ["--gallery-ids", "names.npy"]
    if ids == "the gallery's":
        for name, rows in (("embeddings", np.load(persons / "g.npy")), ("ids", names)):
            (persons / "G" / name).mkdir(parents=True)
            np.save(persons / "G" / name / "0.npy", rows)
        flags[3] = "G"
    result = run(persons, *flags, "--k", "1,2,4", "--metrics", "cmc,recall,map", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["recall"] == {"1": 0.0, "2": 0.5, "4": 1.0} and document["cmc"] == {"1": 0.0, "2": 1.0, "4": 1.0}
    assert document["mean_average_precision"] == 0.5


def test_truth_that_no_row_has_is_said(persons):
    np.save(persons / "t.npy", np.array([[1, 99]]))
    result = run(persons, *TRUTH, "--metrics", "recall", "--k", "2", "--json")
    assert json.loads(result.stdout)["recall"] == {"2": 1.0}
    assert "--truth: 1 ids are of no gallery row, such as 99" in result.stderr
    np.save(persons / "t.npy", np.array(["b"]))
    stderr = run(persons, *TRUTH).stderr
    assert "t.npy: names rows by <U1, ids of the gallery are int64; they cannot be compared" in stderr
    assert "of no gallery row" not in stderr
    np.save(persons / "t.npy", np.array([1.0]))
    result = run(persons, *TRUTH)
    assert result.returncode == 4 and "t.npy: is float64 (1,), wanted (queries,) or (queries, n) ids" in result.stderr


def test_without_labels_neighbours_of_two_galleries_are_compared(upgraded):
    folder, _ = upgraded
    flags = ["--gallery", "g-old.npy", "--new-gallery", "g.npy", "--k", "1,10"]
    result = run(folder, *flags, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert 0 < document["overlap"]["10"] < 1 and document["queries"] == ROWS
    by_queries = run(folder, *flags, "--queries", "q.npy", "--old-queries", "q-old.npy")
    assert by_queries.returncode == 0, by_queries.stderr
    assert "overlap@10" in by_queries.stdout and "50" in by_queries.stdout
    same = run(folder, "--gallery", "g.npy", "--new-gallery", "g.npy", "--json")
    assert json.loads(same.stdout)["overlap"] == {"1": 1.0, "5": 1.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gallery", "g.npy"], "--new-gallery"),
        (["--gallery", "g.npy", "--queries", "q.npy", "--query-labels", "ql.npy"], "go together"),
        (["--gallery", "g.npy", "--query-labels", "ql.npy", "--gallery-labels", "gl.npy"], "--queries is missing"),
        ([*TRUTH, "--gallery-labels", "gl.npy"], "leave out --gallery-labels"),
        ([*TRUTH, "--per-class"], "--per-class wants labels"),
        (["--gallery", "g.npy", "--new-gallery", "g.npy", "--gallery-ids", "gl.npy"], "--gallery-ids wants --truth"),
        (["--gallery", "g.npy", "--new-gallery", "g.npy", "--report", "r.html"], "--report wants labels"),
        (["--gallery", "g.npy", "--new-gallery", "g.npy", "--old-queries", "q.npy"], "--old-queries wants --queries"),
        (["--gallery", "g.npy", "--new-gallery", "g.npy", "--uncertainty", "gl.npy"], "--uncertainty wants labels"),
    ],
)
def test_what_is_missing_to_measure_is_said(folder, flags, message):
    result = run(folder, *flags)
    assert result.returncode == 2 and message in result.stderr, result.stderr


def nan_row(folder):
    queries = np.load(folder / "q.npy")
    queries[7, 3] = np.nan
    np.save(folder / "bad.npy", queries)
    return call(queries="bad.npy"), "bad.npy: row 7"


def wrong_dims(folder):
    np.save(folder / "bad.npy", np.ones((ROWS, 17), np.float32))
    return call(gallery="bad.npy"), "queries have 16 dims, gallery has 17"


def wrong_dtype(folder):
    np.save(folder / "bad.npy", np.ones((ROWS, 16)))
    return call(gallery="bad.npy"), "bad.npy: is float64"


def truncated(folder):
    (folder / "bad.npy").write_bytes((folder / "g.npy").read_bytes()[:-100])
    return call(gallery="bad.npy"), "bad.npy"


def missing(_folder):
    return call(gallery="none.npy"), "none.npy"


def pickled_labels(folder):
    np.save(folder / "bad.npy", np.array([{}] * ROWS, object))
    return call(**{"gallery-labels": "bad.npy"}), "bad.npy"


def short_labels(folder):
    np.save(folder / "bad.npy", np.zeros(3, int))
    return call(**{"gallery-labels": "bad.npy"}), "gallery_labels has 3 entries for 120 embeddings"


def foreign_labels(folder):
    np.save(folder / "bad.npy", np.full(ROWS, "cat"))
    return call(**{"gallery-labels": "bad.npy"}), "cannot be compared"


def not_one_set(_folder):
    return [*call(), "--exclude-self"], "there are 50 queries and 120 gallery rows"


@pytest.mark.parametrize(
    "prepare",
    [nan_row, wrong_dims, wrong_dtype, truncated, missing, pickled_labels, short_labels, foreign_labels, not_one_set],
)
def test_bad_input_is_one_line_exit_4_and_no_report(folder, prepare):
    flags, message = prepare(folder)
    result = run(folder, *flags, "--report", "report.html", "--json")
    assert result.returncode == 4
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if "each query's own row is left out" not in line]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
    assert not list(folder.glob("report.html*"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--k", "0"],
        ["--k", "one"],
        ["--metric", "l1"],
        ["--metrics", "cmc,f1"],
        ["--threads", "0"],
        ["--threads", "2", "--executor", "ray"],
        ["--workers", "2"],
        ["--report", "."],
        ["--images", "images.npy"],
        ["--query-images", "images.npy", "--report", "report.html"],
        ["--uncertainty", "u.npy"],
        ["--query-cameras", "ql.npy"],
        ["--gallery-groups", "gl.npy"],
        ["--ignore-labels", "junk"],
    ],
)
def test_wrong_usage_exits_2_before_any_work(folder, flags):
    result = run(folder, *call(), *flags)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr and "new/old: " not in result.stderr


def test_a_report_that_cannot_be_written_exits_5(folder):
    (folder / "file").write_text("in the way")
    result = run(folder, *call(), "--report", "file/report.html")
    assert result.returncode == 5
    assert "file/report.html" in result.stderr and "Traceback" not in result.stderr
    assert "new/old: " not in result.stderr  # noticed before the work


@pytest.fixture
def upgraded(folder):
    """The gallery upgraded from an old model, and re-embedded."""
    rng = np.random.default_rng(2)
    gallery = np.load(folder / "g.npy")
    noise = rng.random(ROWS)
    np.save(folder / "u.npy", noise)
    np.save(folder / "t.npy", (gallery + noise[:, None] * rng.standard_normal(gallery.shape)).astype(np.float32))
    for name in ("q", "g"):
        np.save(folder / f"{name}-old.npy", np.load(folder / f"{name}.npy")[:, :5].copy())
    for name, rows in (("gi", ROWS), ("qi", 50)):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (rows, 8, 8, 3)).astype(np.uint8))
    flags = {"gallery": "t.npy", "old-queries": "q-old.npy", "old-gallery": "g-old.npy", "new-gallery": "g.npy"}
    return folder, call(**flags, uncertainty="u.npy")


def test_an_upgrade_is_judged_whole(upgraded):
    folder, flags = upgraded
    images = ["--report", "out.html", "--images", "gi.npy", "--query-images", "qi.npy"]
    result = run(folder, *flags, *images, "--per-class", "--metrics", "map,recall", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    for name, arrays in {"old": {"queries": "q-old.npy", "gallery": "g-old.npy"}, "new": {}}.items():
        (row,) = [
            row for row in document["compatibility"] if (row["query_model"], row["gallery_model"]) == (name, name)
        ]
        wanted = expected(folder, **arrays)
        assert {figure: row[figure] for figure in wanted} == wanted
    wanted = expected(folder, gallery="t.npy")
    assert {figure: document[figure] for figure in wanted} == wanted
    assert len(document["backfilling"]["most uncertain first"]["shares"]) == 22
    assert document["per_class"] and document["retrieved"] and document["flips"]["queries"] == document["queries"]
    page = (folder / "out.html").read_text()
    assert document["verdict"]["sentence"] in page.replace("&#x27;", "'").replace("&nbsp;", " ")
    assert page.count("data:image/png;base64,") == sum(
        1 + sum(map(len, row["found"].values())) for row in document["retrieved"]
    )
    assert 'src="http' not in page


def test_workers_elsewhere_say_the_same_with_pictures_too(upgraded, monkeypatch):
    folder, flags = upgraded
    workers = Elsewhere()
    monkeypatch.setattr("fct_infer.distributed.ray_executor.RayExecutor", lambda *given: workers)
    images = ["--images", "gi.npy", "--query-images", "qi.npy", "--per-class", "--report"]
    compared = ["--gallery", "t.npy", "--new-gallery", "g.npy"]
    for line, page in (([*flags, *images, "page.html"], "page.html"), (compared, None)):
        pages, said = [], []
        for executor in ("threads", "ray"):
            result = run(folder, *line, "--json", "--executor", executor)
            assert result.returncode == 0, result.stderr
            said.append(result.stdout)
            pages.append(page and (folder / page).read_text())
        assert said[0] == said[1] and pages[0] == pages[1]
    assert workers.parts >= 9


def test_an_upgrade_is_judged_in_words(upgraded):
    folder, flags = upgraded
    result = run(folder, *flags, "--per-class")
    assert result.returncode == 0, result.stderr
    for part in ("new/old, transformed", "flips: ", "most uncertain first", "By label, the worst first"):
        assert part in result.stdout
    assert "Is it worth it? " in result.stdout.splitlines()[-1]


def test_old_queries_in_an_upgraded_gallery_want_the_old_one(folder):
    (folder / "G/embeddings").mkdir(parents=True)
    (folder / "G/upgrade_infos.json").write_text("{}")
    np.save(folder / "G/embeddings/0.npy", np.load(folder / "g.npy"))
    result = run(folder, *call(gallery="G", **{"old-queries": "q.npy"}))
    assert result.returncode == 2
    assert "--old-gallery" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flag", "array", "message"),
    [
        ("new-gallery", np.ones((3, 16), np.float32), "new_gallery has 3 rows, gallery has 120"),
        ("old-queries", np.ones((50, 4), np.float32), "old_queries have 4 dims, gallery has 16"),
        ("uncertainty", np.full(ROWS, np.nan), "bad.npy: row 0 holds a NaN"),
        ("images", np.zeros((3, 4, 4, 3), np.uint8), "bad.npy: holds 3 images for 120 embeddings"),
    ],
)
def test_what_does_not_fit_an_upgrade_is_exit_4(folder, flag, array, message):
    np.save(folder / "bad.npy", array)
    flags = {"new-gallery": "g.npy", "report": "report.html"} | {flag: "bad.npy"}
    result = run(folder, *call(**flags))
    assert result.returncode == 4
    assert message in result.stderr and result.stdout == ""
    assert not list(folder.glob("report.html*"))
