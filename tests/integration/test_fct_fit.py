"""From two files to an upgraded gallery, as a user types it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import run_command
from support.openmp import spins_read
from support.pairs import clustered, curved, shuffled_rows

from fct_infer import load_transformation


@pytest.fixture
def files(tmp_path):
    old, new, labels = clustered(400)
    for name, array in (("old", old), ("new", new), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def fit(folder, *arguments):
    given = "--old", folder / "old.npy", "--new", folder / "new.npy", "-o", folder / "h", "--no-network"
    return run_command("fit", *given, *arguments)


def test_two_files_and_nothing_else_do(files):
    done = fit(files)
    assert done.returncode == 0, done.stderr
    assert "400 items are in both" in done.stderr
    assert "Is it worth it?" in done.stdout and f"next: fct-upgrade-gallery GALLERY --transformation {files / 'h'}" in (
        done.stdout
    )
    assert max(len(line) for line in done.stdout.splitlines() if "Procrustes" in line) <= 80
    assert f" -o DEST --probe {files / 'new.npy'}\n(the probe tells a wrong gallery; " in done.stdout
    assert "(NEW has no ids: a gallery of other rows than OLD's wants them, with --probe-ids)" in done.stdout
    h = load_transformation(files / "h")
    old, new = np.load(files / "old.npy"), np.load(files / "new.npy")
    assert np.mean((h(old) - new) ** 2) < np.mean((new - new.mean(0)) ** 2)


def test_parquet_with_text_ids_to_an_upgraded_gallery(files):
    """Rows in another order, written by pyarrow, and only some of them by the new model."""
    old, new = np.load(files / "old.npy"), np.load(files / "new.npy")
    names, some = [f"item-{row}" for row in range(400)], np.random.default_rng(0).permutation(400)[:250]
    for name, rows, ids in (("old", old, names), ("new", new[some], [names[row] for row in some])):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        table = pa.table({"item_id": ids, "vector": vectors})
        if name == "old":  # NEW's model is named on the command line
            table = table.replace_schema_metadata({"fct_infer.model": '{"name": "v1"}'})
        pq.write_table(table, files / f"{name}.parquet")
    done = run_command(
        "fit",
        "--old",
        files / "old.parquet",
        "--new",
        files / "new.parquet",
        "-o",
        files / "h",
        "--no-network",
        "--json",
        "--new-model",
        "v2",
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["pairs"] == 250 and document["forecast"]["agreement"]["mean"] > 0.4
    assert "250 items are in both (only in OLD 150, only in NEW 0)" in done.stderr
    assert run_command("gallery", "convert", files / "old.parquet", files / "gallery").returncode == 0
    line = "upgrade_gallery", files / "gallery", "--transformation", files / "h", "--index", "none"
    upgraded = run_command(*line, "-o", files / "up", "--probe", files / "new.parquet", "--min-probe", "0.2")
    assert upgraded.returncode == 0, upgraded.stderr
    assert "models     'v1' -> 'v2'" in upgraded.stdout and "250 pairs: nearer to their item's row" in upgraded.stdout
    refused = run_command(*line, "-o", files / "no", "--model", "v0")
    assert refused.returncode == 4 and "model 'v0'" in refused.stderr and "model 'v1'" in refused.stderr


def test_what_comes_next_is_a_command_that_runs(files):
    """Ids in a column of no usual name, beside a number of the row, which is called "id" in both files."""
    old, new = np.load(files / "old.npy"), np.load(files / "new.npy")
    some = np.random.default_rng(0).permutation(400)[:250]
    for name, numbers, rows in (("old", np.arange(400), old), ("new", some, new[some])):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        columns = {"id": range(len(rows)), "sku": [f"sku-{number}" for number in numbers], "vector": vectors}
        pq.write_table(pa.table(columns), files / f"{name}.parquet")
    given = "--old", files / "old.parquet", "--new", files / "new.parquet", "-o", files / "h", "--id-column", "sku"
    done = run_command("fit", *given, "--no-network", "--json")
    assert done.returncode == 0, done.stderr
    command, *arguments = shlex.split(json.loads(done.stdout)["next_command"])
    arguments[arguments.index("DEST")] = files / "up"
    upgraded = run_command(command.removeprefix("fct-").replace("-", "_"), *arguments)
    assert upgraded.returncode == 0, upgraded.stderr
    assert "250 pairs: nearer to their item's row" in upgraded.stdout


def test_labels_and_queries(files):
    assert "mAP" in fit(files, "--labels", files / "labels.npy").stdout
    new = np.load(files / "new.npy")
    np.save(files / "queries.npy", new[:100] + np.float32(0.05))
    np.save(files / "truth.npy", np.arange(100))
    done = fit(files, "--queries", files / "queries.npy", "--truth", files / "truth.npy", "--force")
    assert done.returncode == 0 and "recall@10" in done.stdout and "new/new" in done.stdout
    done = fit(files, "--queries", files / "queries.npy", "--force")
    assert (done.returncode, done.stderr) == (2, "error: --queries and --truth go together\n")


def test_a_map_for_queries_goes_the_other_way(files):
    done = fit(files, "--direction", "new-to-old")
    assert done.returncode == 0 and "then search the old gallery" in done.stdout
    assert "mapped new queries find" in done.stdout
    assert load_transformation(files / "h")(np.load(files / "new.npy")).shape == (400, 12)


def test_what_small_maps_may_learn_from_is_read_and_the_budget_kept(files):
    """Of too little time it is said what would do; what is learnt and chosen is tested where maps are compressed."""
    given = "--old", files / "old.npy", "--new", files / "new.npy", "-o", files / "h", "--compress", "--budget", "1s"
    done = run_command("fit", *given, "--gallery", files / "old.npy")
    assert done.returncode == 0, done.stderr
    assert "note: nothing was compressed" in done.stdout or "Smaller, learnt from it on" in done.stdout
    for wrong in (["--gallery", files / "new.npy"], ["--no-network"], ["--direction", "new-to-old"]):
        assert run_command("fit", *given, "--force", *wrong).returncode == 2
    assert fit(files, "--gallery", files / "old.npy", "--force").returncode == 2


def test_what_was_chosen_is_a_configuration_that_trains(files):
    """With ids in another order, so that the pairs are written beside the configuration."""
    rows = np.random.default_rng(0).permutation(400)
    np.save(files / "new.npy", np.load(files / "new.npy")[rows])
    for name, ids in (("old_ids", np.arange(400)), ("new_ids", rows)):
        np.save(files / f"{name}.npy", ids)
    given = "--old-ids", files / "old_ids.npy", "--new-ids", files / "new_ids.npy", "--config", files / "h.yaml"
    done = fit(files, *given)
    assert done.returncode == 0, done.stderr
    trained = run_command("train", "transformation", files / "h.yaml", "-o", files / "run")
    assert trained.returncode == 0, trained.stderr
    found = json.loads((files / "run" / "result.json").read_text())
    assert found["validation_rows"] == 100 and found["validation_cosine"] > 0.8 and "warning" not in found
    again = fit(files, *given, "--force", "-o", files / "other")
    assert again.returncode == 0
    assert fit(files, *given, "-o", files / "third").returncode == 6


def test_pairs_of_different_items_are_refused(files):
    np.save(files / "new.npy", shuffled_rows(np.load(files / "new.npy"), 1.0))
    done = fit(files)
    assert done.returncode == 3 and done.stderr.splitlines()[-1].startswith("error: the pairs do not belong together")
    assert not (files / "h").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--budget", "soon"], 2, "wanted for instance 90s, 5m or 1h"),
        (["--labels", "old.npy"], 4, "old.npy"),
        (["--side", "missing.npy"], 4, "missing.npy"),
        (["--new-ids", "labels.npy"], 4, "occurs twice"),
        (["--old-ids", "labels.npy"], 2, "NEW has no ids, the other has; name them with --new-ids"),
        (["--old-ids", "labels.npy", "--new-ids", "labels.npy"], 4, "occurs twice"),
    ],
)
def test_bad_input_is_one_line(files, arguments, code, message):
    done = fit(files, *(files / each if each.endswith(".npy") else each for each in arguments))
    assert done.returncode == code, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert not (files / "h").exists()


def test_a_bundle_that_exists_is_refused_before_any_work(files):
    (files / "h").mkdir()
    (files / "h" / "mine").write_text("")
    done = fit(files, "--force")
    assert done.returncode == 6 and "items are in both" not in done.stderr and (files / "h" / "mine").exists()


def test_closed_forms_need_neither_torch_nor_onnx(files):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; sys.argv[0] = 'fct-fit'\n"
        "from fct_infer.cli.fit import main; main()"
    )
    line = [sys.executable, "-c", code, "--old", files / "old.npy", "--new", files / "new.npy", "-o", files / "h"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "note: no network was tried" in done.stdout


def test_on_busy_cores_threads_wait_briefly(tmp_path):
    """Else trainings, and what is said of them, take a hundred times as long there."""
    pairs = curved(1000)
    for name in ("old", "new"):
        np.save(tmp_path / f"{name}.npy", getattr(pairs, name))
    given = "--old", tmp_path / "old.npy", "--new", tmp_path / "new.npy", "-o", tmp_path / "h"
    line = [sys.executable, "-m", "fct_infer.cli.fit", *given, "--json", "--budget", "0.01s"]
    assert spins_read(line) == {"1000"}
