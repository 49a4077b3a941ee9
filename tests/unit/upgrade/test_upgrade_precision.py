"""Precision in an upgrade: chosen on the gallery's rows, kept when resumed, and changed after a failed gate."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from support import rounded_core
from support.bundles import core_bundle
from support.galleries import write_gallery
from support.programs import linear_map
from support.rounded_core import cancelling

from fct_infer import Transformation, _core, upgrade_gallery
from fct_infer.cli.upgrade_gallery import main
from fct_infer.errors import GateError, OutputError
from fct_infer.gallery import Gallery
from fct_infer.reference import largest_values
from fct_infer.upgrade.settings import Settings

SETTINGS = Settings(index="Flat")


@pytest.fixture
def native_bf16(monkeypatch):
    rounded_core.install(monkeypatch)


def nearly_equal_halves(path):
    """A gallery that :func:`cancelling` makes small differences of."""
    rows = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    (path / "embeddings").mkdir(parents=True)
    np.save(path / "embeddings" / "000000.npy", np.concatenate([rows, rows], axis=1))
    return path


def stopped(folder, h):
    """Upgrade folder/g to folder/new until the first rows are written, and stop there."""

    def stop(stage, rows, total):
        if stage == "transform":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(folder / "g", h, folder / "new", settings=SETTINGS, progress=stop)


def test_fp32_is_the_default_even_where_bf16_is_native(native_bf16, tmp_path, monkeypatch, capsys):
    write_gallery(tmp_path / "g", (50,), old_dim=8)
    bundle = core_bundle(linear_map(8, 6), tmp_path / "h")
    arguments = [tmp_path / "g", "--transformation", bundle, "-o", tmp_path / "new", "--json"]
    monkeypatch.setattr(sys, "argv", ["fct-upgrade-gallery", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["settings"]["precision"], report["precision_choice"]) == ("fp32", None)


def test_auto_proves_itself_on_rows_of_the_gallery(native_bf16, tmp_path):
    write_gallery(tmp_path / "plain", (500, 200), old_dim=8)
    report = upgrade_gallery(
        tmp_path / "plain", Transformation(linear_map(8, 6), "auto"), tmp_path / "a", settings=SETTINGS
    )
    assert report.settings["precision"] == "bf16" and "bf16: cosine >= 0.99" in report.precision_choice
    hard = nearly_equal_halves(tmp_path / "hard")
    report = upgrade_gallery(hard, Transformation(cancelling(), "auto"), tmp_path / "b", settings=SETTINGS)
    assert report.settings["precision"] == "fp32" and "wanted 0.999" in report.precision_choice
    assert report.verification.min_cosine > 0.99999


def test_a_resumed_upgrade_keeps_what_auto_chose(native_bf16, tmp_path, monkeypatch):
    write_gallery(tmp_path / "g", (50, 50), old_dim=8)
    h = Transformation(linear_map(8, 6), "auto")

    stopped(tmp_path, h)
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)
    assert report.settings["precision"] == "bf16" and report.precision_choice == (
        "chosen by auto when the upgrade began"
    )


def test_an_upgrade_that_went_on_elsewhere_says_what_differs(native_bf16, tmp_path, monkeypatch):
    write_gallery(tmp_path / "g", (50, 50), old_dim=8)
    h = Transformation(linear_map(8, 6), "auto")

    stopped(tmp_path, h)
    monkeypatch.setattr(_core, "precisions", lambda device="cpu": ["fp32"])
    with pytest.raises(OutputError, match=r"settings precision \(was bf16, is fp32\)"):
        upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)


def test_after_a_failed_gate_another_precision_needs_no_restart(native_bf16, tmp_path):
    gallery = nearly_equal_halves(tmp_path / "g")
    for _ in range(2):  # the same call meets the same gate
        with pytest.raises(GateError, match=r"is below 0\.999; computed in bf16\. --precision fp32 .* begins again"):
            upgrade_gallery(gallery, Transformation(cancelling(), "bf16"), tmp_path / "new", settings=SETTINGS)
    report = upgrade_gallery(gallery, Transformation(cancelling(), "fp32"), tmp_path / "new", settings=SETTINGS)
    assert report.settings["precision"] == "fp32" and report.resumed_rows == 0
    assert Gallery.open(tmp_path / "new").rows == 300


def test_after_a_failed_gate_another_limit_goes_on(native_bf16, tmp_path):
    gallery, h = nearly_equal_halves(tmp_path / "g"), Transformation(cancelling(), "bf16")
    with pytest.raises(GateError, match="--min-cosine sets another limit and goes on"):
        upgrade_gallery(gallery, h, tmp_path / "new", settings=SETTINGS)
    report = upgrade_gallery(gallery, h, tmp_path / "new", settings=Settings(index="Flat", min_cosine=0))
    assert report.resumed_rows == 300


@pytest.fixture
def native_int8(monkeypatch):
    if "int8" not in _core.precisions():
        pytest.skip("this CPU has no exact 8-bit products")
    rounded_core.install(monkeypatch)
    monkeypatch.setattr(_core, "precisions", lambda device="cpu": ["fp32", "bf16", "int8"])


def published(folder):
    return np.concatenate([np.load(shard) for shard in sorted((folder / "embeddings").glob("*.npy"))])


def inputs_of(folder):
    return json.loads((folder / "upgrade_infos.json").read_text())["inputs"]


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_int8_is_scaled_by_rows_of_the_gallery(native_int8, tmp_path, precision):
    arrays = write_gallery(tmp_path / "g", (500, 200), old_dim=8)
    report = upgrade_gallery(
        tmp_path / "g", Transformation(linear_map(8, 6), precision), tmp_path / "new", settings=SETTINGS
    )
    assert report.settings["precision"] == "int8" and report.verification.min_cosine >= 0.98
    ranges = json.loads((tmp_path / "new" / "upgrade_infos.json").read_text())["inputs"]["ranges"]
    assert 0 < ranges["old"] <= np.abs(arrays["old"]).max()
    h = Transformation(linear_map(8, 6), "int8", ranges=ranges)
    np.testing.assert_array_equal(published(tmp_path / "new"), h(arrays["old"].astype(np.float32)))


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_int8_goes_on_with_the_ranges_it_began_with(native_int8, tmp_path, monkeypatch, precision):
    write_gallery(tmp_path / "g", (50, 50), old_dim=8)
    h = Transformation(linear_map(8, 6), precision)
    upgrade_gallery(tmp_path / "g", h, tmp_path / "whole", settings=SETTINGS)
    stopped(tmp_path, h)
    for room in ("fct_infer.upgrade.calibration", "fct_infer.backends.precision"):
        monkeypatch.setattr(f"{room}.largest_values", lambda *rows: {"old": 9 * largest_values(*rows)["old"]})
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)
    assert report.settings["precision"] == "int8"
    assert published(tmp_path / "new").tobytes() == published(tmp_path / "whole").tobytes()


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_gallery_that_grew_keeps_its_ranges(native_int8, tmp_path, precision):
    rows = write_gallery(tmp_path / "g", (300, 200), old_dim=8, side_dim=None)["old"].astype(np.float32)
    h = Transformation(linear_map(8, 6), precision)
    upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)
    before, ranges = published(tmp_path / "new"), inputs_of(tmp_path / "new")["ranges"]
    np.save(tmp_path / "g" / "embeddings" / "000002.npy", 1.3 * rows[:100])
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS, append=True)
    assert report.resumed_rows == 500 and report.settings["precision"] == "int8"
    assert inputs_of(tmp_path / "new")["ranges"] == ranges
    assert published(tmp_path / "new")[:500].tobytes() == before.tobytes()
    whole = upgrade_gallery(tmp_path / "g", h, tmp_path / "whole", settings=SETTINGS)
    assert whole.rows == 600 and inputs_of(tmp_path / "whole")["ranges"] != ranges
    again = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS, append=True)
    assert again == report  # nothing has changed since


def test_int8_does_not_go_on_where_weights_have_other_bits(native_int8, tmp_path, monkeypatch):
    write_gallery(tmp_path / "g", (50, 50), old_dim=8)
    h = Transformation(linear_map(8, 6), "int8")
    monkeypatch.setattr(_core, "cpu_int8_weight_bits", lambda: 7)
    stopped(tmp_path, h)
    monkeypatch.setattr(_core, "cpu_int8_weight_bits", lambda: 8)
    with pytest.raises(OutputError, match=r"settings int8_weight_bits \(was 7, is 8\)"):
        upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)


def test_int8_of_a_row_far_beyond_the_ranges_fails_the_gate(native_int8, tmp_path):
    rows = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    (tmp_path / "g" / "embeddings").mkdir(parents=True)
    np.save(tmp_path / "g" / "embeddings" / "000000.npy", rows)
    h = Transformation(linear_map(8, 6), "int8", ranges={"old": 0.2})
    with pytest.raises(GateError, match=r"is below 0\.98; computed in int8\. --precision fp32 .* begins again"):
        upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)
