"""``fct-backfill`` as a user runs it: upgrade, backfill, kill it, run it again, serve what it wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from support.commands import run_command
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, open_source, upgrade_gallery
from fct_infer.gallery import GalleryWriter
from fct_infer.serving import MixedGallery, read_backfilled
from fct_infer.upgrade.settings import Settings

ROWS, OLD, NEW = 400, 8, 6
MODEL = """
    import os, time
    import numpy as np
    known = dict(zip(np.load("model_ids.npy").tolist(), np.load("model_rows.npy")))
    def embed(ids):
        time.sleep(float(os.environ.get("PAUSE", 0)))
        return np.stack([known[each] for each in ids.tolist()])
"""


@pytest.fixture
def folder(tmp_path):
    """A published gallery DEST, and a module that embeds its items by the new model."""
    arrays = write_gallery(tmp_path / "old", (ROWS,), OLD, side_dim=None, ids="str")
    h = Transformation(linear_map(OLD, NEW))
    upgrade_gallery(tmp_path / "old", h, tmp_path / "dest", settings=Settings(metric="cosine"))
    new = h(arrays["old"]) + np.float32(0.3) * np.random.default_rng(1).standard_normal((ROWS, NEW), np.float32)
    np.save(tmp_path / "model_ids.npy", arrays["ids"])
    np.save(tmp_path / "model_rows.npy", new)
    np.save(tmp_path / "scores.npy", np.arange(ROWS, dtype=np.float32))
    with GalleryWriter(tmp_path / "elsewhere") as writer:
        writer.append(new[::2].copy(), ids=arrays["ids"][::2].copy())
    (tmp_path / "items.py").write_text(textwrap.dedent(MODEL))
    return tmp_path


def command(*arguments):
    return [sys.executable, "-m", "fct_infer.cli.backfill", *map(str, arguments)]


def run(folder, *arguments):
    sys.modules.pop("items", None)  # another folder's
    return run_command("backfill", *arguments, cwd=folder)


ARGUMENTS = ("dest", "-o", "new", "--embed", "items:embed", "--probe-rows", 60, "--part-rows", 20, "--batch-rows", 10)


def test_a_backfill_that_is_killed_goes_on_and_what_it_wrote_is_served(folder):
    slow = dict(os.environ, PAUSE="0.02")
    with subprocess.Popen(command(*ARGUMENTS), cwd=folder, env=slow, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 50
        while time.monotonic() < deadline and not (folder / "new" / "embeddings" / "00000005.npy").exists():
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    kept = sum(len(ids) for ids, _ in read_backfilled(folder / "new"))
    assert 100 <= kept < ROWS
    ended = run(folder, *ARGUMENTS, "--until", 75, "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["reason"] == "share reached" and report["new"] == 300 and report["embedded"] == 300 - kept
    assert report["curve"]["overlap"][-1] == 1 and "re-embed: " in ended.stderr
    served = MixedGallery.published(folder / "dest")
    for ids, rows in read_backfilled(folder / "new"):
        served.upsert(ids, rows, replacing="old")
    assert served.progress.as_dict() == {"rows": ROWS, "new": 300, "changed": 300, "share": 0.75}
    ids, rows = np.load(folder / "model_ids.npy"), np.load(folder / "model_rows.npy")
    is_new = served.model_of(ids) == "new"
    assert (served.search(rows[is_new], 1).ids[:, 0] == ids[is_new]).all()


def test_a_signal_stops_it_as_one_that_can_go_on(folder):
    slow = dict(os.environ, PAUSE="0.05")
    with subprocess.Popen(command(*ARGUMENTS), cwd=folder, env=slow, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 50
        while time.monotonic() < deadline and not (folder / "new" / "journal.jsonl").exists():
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=50)
    assert child.returncode == 75 and "the same command resumes" in said


def test_the_table_says_what_more_would_give(folder):
    ended = run(
        folder, *ARGUMENTS, "--until", 20, "--order", "uncertainty", "--uncertainty", "scores.npy", "--rate", 1e6
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for line in ("re-embedded   80 of 400 rows (20.0 %)", "ended: share reached", "another 10 %  would give +"):
        assert line in ended.stdout, ended.stdout
    found = np.concatenate([ids for ids, _ in read_backfilled(folder / "new")])
    known = np.load(folder / "model_ids.npy")
    probe = set(found[:60].tolist())
    assert found[60:].tolist() == [each for each in known[::-1].tolist() if each not in probe][:20]


def test_old_rows_with_h_and_vectors_computed_elsewhere(folder):
    from support.bundles import core_bundle

    core_bundle(linear_map(OLD, NEW), folder / "h.bundle")
    more = ("--transformation", "h.bundle", "--order", "distance", "--metric", "cosine", "--json")
    ended = run(folder, "old", "-o", "new", "--embed", "elsewhere", *more)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["new"], report["left_out"]) == (ROWS // 2, ROWS // 2)
    assert open_source(folder / "new").schema.old_dim == NEW


@pytest.mark.parametrize(
    "more, code, message",
    [
        (("--embed", "nothing"), 2, "neither a file"),
        (("--order", "uncertainty"), 2, "wants --uncertainty"),
        (("--labels", "scores.npy"), 2, "is for --order distance"),
        (("--probe-rows", 3), 2, "at least 50"),
        (("-o", "dest/inside"), 2, "lies inside the SOURCE"),
        (("--order", "access", "--access-log", "absent.txt"), 4, "cannot be read"),
        (("--order", "uncertainty", "--uncertainty", "model_rows.npy"), 4, "wanted"),
        (("-o", "old"), 6, "which no backfill made"),
        (("-o", "old", "--restart"), 6, "which no backfill made"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(folder, more, code, message):
    before = (folder / "old" / "embeddings" / "000000.npy").read_bytes()
    ended = run(folder, *ARGUMENTS, *more)
    assert (folder / "old" / "embeddings" / "000000.npy").read_bytes() == before
    assert ended.returncode == code and message in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    assert not (folder / "new").exists()
