"""A right transformation passes its probe; a wrong one, or other ids, do not, and nothing is published."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from support.pairs import clustered
from support.probes import least_squares, write_items

from fct_infer import UpgradeReport, upgrade_gallery
from fct_infer.cli.upgrade_gallery import command
from fct_infer.errors import GateError, UsageError
from fct_infer.export import Options, export_transformation
from fct_infer.upgrade import run
from fct_infer.upgrade.probe import Probe
from fct_infer.upgrade.settings import Settings


@pytest.fixture
def items(tmp_path):
    old, new, names = write_items(tmp_path / "g")
    np.save(tmp_path / "pairs.npy", new)
    return tmp_path, old, new, names


def settings(folder, **given):
    return Settings(**({"probe": folder / "pairs.npy", "index": "Flat"} | given))


@pytest.mark.parametrize("index", ["Flat", "none", "IVF4,Flat"])
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("ids", ["int", "str", None])
def test_a_right_map_is_far_above_chance(tmp_path, ids, metric, index):
    old, new, _ = write_items(tmp_path / "g", ids=ids)
    np.save(tmp_path / "pairs.npy", new)
    chosen = settings(tmp_path, metric=metric, index=index)
    report = upgrade_gallery(tmp_path / "g", least_squares(old, new), tmp_path / "out", settings=chosen)
    (meaning,) = report.meaning
    assert (meaning.name, meaning.rows, meaning.given) == ("pairs", 600, 600)
    assert meaning.searched_by == ("exact search" if index == "none" else "index")
    assert meaning.order.mean > 0.95 and meaning.as_by_chance.mean < 0.1
    assert meaning.cosine.mean > meaning.cosine_by_chance + 0.5
    assert meaning.overlap.mean > 10 * meaning.overlap_by_chance
    if metric != "ip":  # by inner product a longer row may be before the right one
        assert meaning.recall_at_10.mean > 0.5 > 20 * meaning.recall_by_chance
    assert UpgradeReport.load(tmp_path / "out" / "upgrade_infos.json").meaning == report.meaning


def test_exact_search_and_a_flat_index_find_the_same(items):
    folder, old, new, _ = items
    found = {}
    for index in ("Flat", "none"):
        chosen = settings(folder, index=index, probe=Probe(folder / "some.npy", folder / "some_ids.npy"))
        np.save(folder / "some.npy", new[:200])
        np.save(folder / "some_ids.npy", np.arange(200) * 7 + 3)
        report = upgrade_gallery(folder / "g", least_squares(old, new), folder / index, settings=chosen)
        found[index] = report.meaning[0]
    assert found["Flat"].recall_at_1 == found["none"].recall_at_1
    assert found["Flat"].recall_at_10 == found["none"].recall_at_10


WRONG = {
    "h of other models": lambda old, new: least_squares(*clustered(600, seed=1)[:2]),
    "ids in another order": lambda old, new: least_squares(old, np.roll(new, 300, axis=0)),
    "a random map": lambda old, new: least_squares(old, np.random.default_rng(0).standard_normal(new.shape)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_map_is_refused_before_any_work(items, wrong):
    folder, old, new, _ = items
    h = WRONG[wrong](old, new)
    report = upgrade_gallery(folder / "g", h, folder / "unprobed", settings=Settings(index="none"))
    assert report.verification.min_cosine > 0.99999  # which is why there is a probe
    with pytest.raises(GateError, match="hardly better than chance"):
        upgrade_gallery(folder / "g", h, folder / "out", settings=settings(folder))
    assert not (folder / "out").exists() and not (folder / "out.partial").exists()


def test_what_was_written_is_probed_again_and_a_failure_keeps_the_work(items, monkeypatch):
    folder, old, new, _ = items
    wrong = WRONG["h of other models"](old, new)
    monkeypatch.setattr(run, "check_before_work", lambda plan: ())
    with pytest.raises(GateError, match="hardly better than chance"):
        upgrade_gallery(folder / "g", wrong, folder / "out", settings=settings(folder))
    assert not (folder / "out").exists()
    report = upgrade_gallery(folder / "g", wrong, folder / "out", settings=Settings(index="Flat"))
    assert report.resumed_rows == 600 and report.meaning == ()


def test_min_probe_is_a_gate_and_another_limit_goes_on(items):
    folder, old, new, _ = items
    rough = least_squares(old[:24], new[:24])
    with pytest.raises(GateError, match=r"recall@10 of the probe's pairs is .* by index, below 0.9999"):
        upgrade_gallery(folder / "g", rough, folder / "out", settings=settings(folder, min_probe=0.9999))
    report = upgrade_gallery(folder / "g", rough, folder / "out", settings=settings(folder, min_probe=0.2))
    assert report.resumed_rows == 600
    infos = json.loads((folder / "out" / "upgrade_infos.json").read_text())
    assert infos["limits"]["min_probe"] == 0.2 and infos["meaning"][0]["name"] == "pairs"


def test_a_run_killed_before_its_rename_is_probed_if_the_next_one_asks(items, monkeypatch):
    folder, old, new, _ = items

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fct_infer.storage.Staging.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            upgrade_gallery(folder / "g", least_squares(old, new), folder / "out", settings=Settings(index="Flat"))
    report = upgrade_gallery(folder / "g", least_squares(old, new), folder / "out", settings=settings(folder))
    assert report.meaning[0].searched_by == "exact search"


def test_half_of_the_pairs_of_other_items_is_said(items):
    folder, old, new, _ = items
    mixed = new.copy()
    mixed[::2] = np.roll(new[::2], 7, axis=0)
    np.save(folder / "pairs.npy", mixed)
    report = upgrade_gallery(folder / "g", least_squares(old, new), folder / "out", settings=settings(folder))
    assert 0.35 < report.meaning[0].as_by_chance.mean < 0.65
    assert "look as if their row were of another item" in str(report.meaning[0])


def test_queries_with_their_right_rows(items):
    folder, old, new, names = items
    rng = np.random.default_rng(0)
    np.save(folder / "q.npy", new[:300] + 0.1 * rng.standard_normal((300, 16)).astype(np.float32))
    np.save(folder / "truth.npy", np.stack([names[:300], names[:300]], axis=1))
    probe = Probe(folder / "pairs.npy", queries=folder / "q.npy", truth=folder / "truth.npy")
    report = upgrade_gallery(
        folder / "g", least_squares(old, new), folder / "out", settings=settings(folder, probe=probe)
    )
    pairs, queries = report.meaning
    assert "of no row here" not in f"{pairs}{queries}"
    assert pairs.name == "pairs" and queries.name == "queries" and queries.overlap is None
    assert queries.recall_at_10.mean > 0.5 and queries.order.mean > 0.95
    np.save(folder / "truth.npy", np.where(np.arange(300) < 290, names[:300], -5))
    report = upgrade_gallery(
        folder / "g", least_squares(old, new), folder / "fewer", settings=settings(folder, probe=probe)
    )
    assert "290 of 300 queries (10 are of no row here): nearer" in str(report.meaning[1])
    np.save(folder / "truth.npy", np.roll(names[:300], 150))
    with pytest.raises(GateError, match="300 queries"):
        upgrade_gallery(folder / "g", least_squares(old, new), folder / "other", settings=settings(folder, probe=probe))


def test_a_limit_without_a_probe_makes_no_sense():
    with pytest.raises(UsageError, match="min_probe"):
        Settings(min_probe=0.5)


def test_the_command_says_what_it_found_and_what_it_did_not_look_for(items):
    folder, old, new, _ = items
    export_transformation(least_squares(old, new).program, folder / "h", Options(("core",)))
    line = [str(folder / "g"), "--transformation", str(folder / "h"), "--index", "none", "-o"]
    unchecked = CliRunner().invoke(command, [*line, str(folder / "a")])
    assert unchecked.exit_code == 0, unchecked.output
    assert "not checked: whether h belongs to this gallery, --probe can tell" in unchecked.output
    probed = ["--probe", str(folder / "pairs.npy"), "--min-probe", "0.2"]
    dry = CliRunner().invoke(command, [*line, str(folder / "b"), *probed, "--dry-run"])
    assert dry.exit_code == 0 and "600 pairs are nearer to their item's row" in dry.output
    assert not os.path.lexists(folder / "b")
    checked = CliRunner().invoke(command, [*line, str(folder / "b"), *probed])
    assert checked.exit_code == 0, checked.output
    assert "600 pairs: nearer to their item's row than to" in checked.output and "by chance 50 %" in checked.output
    as_json = CliRunner().invoke(command, [*line, str(folder / "c"), *probed, "--json"])
    (meaning,) = json.loads(as_json.stdout)["meaning"]
    assert meaning["recall_at_10"]["mean"] > 0.2 and meaning["order"]["mean"] > 0.9
