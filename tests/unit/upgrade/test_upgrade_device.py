"""Upgrades on a device that the CPU stands in for: what is decided, said, kept and refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from support import fake_devices
from support.bundles import core_bundle
from support.fake_devices import HELD_BYTES, Executable
from support.galleries import write_gallery
from support.programs import linear_map, paper_h

from fct_infer import Transformation, load_transformation, upgrade_gallery
from fct_infer.cli.upgrade_gallery import command, main
from fct_infer.errors import GalleryError, OutputError
from fct_infer.gallery import Gallery, sample_rows
from fct_infer.reference import largest_values
from fct_infer.upgrade import calibration
from fct_infer.upgrade.folder import FolderDestination
from fct_infer.upgrade.plan import SEED
from fct_infer.upgrade.planning import default_block_rows, make_plan
from fct_infer.upgrade.report import UpgradeReport
from fct_infer.upgrade.settings import Settings

PROGRAM = paper_h(12, 6, 10, inner=16)
ROWS = (100, 41, 90)
SETTINGS = Settings(index="Flat", block_rows=40)


@pytest.fixture
def devices(monkeypatch):
    fake_devices.install(monkeypatch)


@pytest.fixture
def gallery(tmp_path):
    return write_gallery(tmp_path / "g", ROWS, old_dim=12, side_dim=6, ids="int", seed=1)


def stopped(*arguments, **options):
    """Upgrade until the second block and stop there."""

    def stop(stage, rows, total):
        if stage == "transform" and rows > ROWS[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(*arguments, settings=SETTINGS, progress=stop, **options)


def last_ranges():
    """Return those of what was compiled last for a device; checks compile for the CPU, which takes none."""
    return [made for made in Executable.made if made.arguments["device"] != "cpu"][-1].arguments["ranges"]


@pytest.mark.parametrize(("precision", "used"), [("auto", "bf16"), ("tf32", "tf32"), ("fp8", "fp8")])
def test_the_command_says_device_and_precision(devices, gallery, tmp_path, precision, used):
    arguments = [str(tmp_path / "g"), "--transformation", str(core_bundle(PROGRAM, tmp_path / "h")), "--index", "none"]
    arguments += ["--precision", precision, "--device-memory", "1.5GiB", "-o", str(tmp_path / "new")]
    planned = CliRunner().invoke(command, [*arguments, "--dry-run"], catch_exceptions=False)
    assert "cuda:0 (NVIDIA H200)" in planned.output and f"precision {used}" in planned.output
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["device"] == "cuda:0 (NVIDIA H200)"
    assert (report["settings"]["device"], report["settings"]["precision"]) == ("cuda", used)
    infos = json.loads((tmp_path / "new" / "upgrade_infos.json").read_text())
    assert infos["execution"]["device_memory"] == 3 << 29 == Executable.made[-1].arguments["memory"]
    assert "not on a CPU" in infos["execution"]["same_bytes_on"]
    assert (infos["versions"]["driver"], infos["versions"]["cublaslt"]) == ("13.0", "13.1")
    assert infos["limits"]["min_cosine"] == {"bf16": 0.999, "tf32": 0.9999, "fp8": 0.98}[used]
    assert UpgradeReport.load(tmp_path / "new" / "upgrade_infos.json").device == report["device"]
    assert ("ranges" in infos["inputs"]) == (used == "fp8")


def test_the_report_for_people(devices, gallery, tmp_path):
    arguments = [str(tmp_path / "g"), "--transformation", str(core_bundle(PROGRAM, tmp_path / "h")), "--index", "none"]
    for device, said in (
        ("cuda", "on cuda:0 (NVIDIA H200) in fp32; a CPU's results differ in the last bits"),
        ("cpu", "on cpu in fp32\n"),
    ):
        call = [*arguments, "--precision", "fp32", "--device", device, "-o", str(tmp_path / device)]
        assert said in CliRunner().invoke(command, call, catch_exceptions=False).stdout


@pytest.mark.parametrize("text", ["", "8 gigabytes", "-1", "GiB", "8Gib", "0x10"])
def test_sizes_that_are_none(tmp_path, text):
    arguments = [str(tmp_path), "--transformation", "h", "-o", "new", "--device-memory", text]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert "is no size; wanted for instance 8GiB or 512MiB" in done.output


def test_what_is_missing_ends_with_one_line(gallery, tmp_path, monkeypatch, capsys):
    fake_devices.install(monkeypatch, (), "no driver: libcuda.so.1 was not found")
    bundle = core_bundle(PROGRAM, tmp_path / "h")
    arguments = [tmp_path / "g", "--transformation", bundle, "-o", tmp_path / "new", "--device", "cuda"]
    monkeypatch.setattr(sys, "argv", ["fct-upgrade-gallery", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "device cuda: no driver: libcuda.so.1 was not found" in capsys.readouterr().err
    assert not (tmp_path / "new.partial").exists()


# -- the device is part of what a run is -------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_is_not_resumed_on_another_kind_of_device(devices, gallery, tmp_path, first, second):
    paths = tmp_path / "g", tmp_path / "new"
    stopped(paths[0], Transformation(PROGRAM, "fp32", device=first), paths[1])
    with pytest.raises(
        OutputError,
        match=rf"settings device \(was {first}, is {second}\)\. A CPU and a device differ in the last bits: "
        rf"--device {first} goes on, --restart drops",
    ):
        upgrade_gallery(paths[0], Transformation(PROGRAM, "fp32", device=second), paths[1], settings=SETTINGS)
    report = upgrade_gallery(paths[0], Transformation(PROGRAM, "fp32", device=first), paths[1], settings=SETTINGS)
    assert report.resumed_rows >= ROWS[0]


def test_a_full_device_leaves_the_work_to_the_cpu_and_says_so(monkeypatch, gallery, tmp_path):
    fake_devices.install(monkeypatch, full="cuda:0")
    arguments = [str(tmp_path / "g"), "--transformation", str(core_bundle(PROGRAM, tmp_path / "h")), "--index", "none"]
    arguments += ["-o", str(tmp_path / "new")]
    reason = "cuda:0 has too little memory: this transformation needs 90 MiB on cuda:0, at hand are 7 MiB"
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert done.stderr.splitlines()[0] == f"{reason}; the CPU computes in its place"
    report = json.loads(done.stdout)
    assert (report["device"], report["settings"]["device"]) == (f"cpu ({reason})", "cpu")
    assert json.loads((tmp_path / "new" / "upgrade_infos.json").read_text())["device"] == report["device"]


def test_a_run_begun_on_a_device_that_is_full_now(monkeypatch, gallery, tmp_path):
    fake_devices.install(monkeypatch)
    bundle, paths = core_bundle(PROGRAM, tmp_path / "h"), (tmp_path / "g", tmp_path / "new")
    stopped(paths[0], load_transformation(bundle, "fp32"), paths[1])
    Executable.full = "cuda:0"
    with pytest.raises(
        OutputError,
        match=r"\(was cuda, is cpu\).*\. Now cuda:0 has too little memory: .*--device cuda goes on, --restart",
    ):
        upgrade_gallery(paths[0], load_transformation(bundle, "fp32"), paths[1], settings=SETTINGS)
    Executable.full = None
    report = upgrade_gallery(paths[0], load_transformation(bundle, "fp32"), paths[1], settings=SETTINGS)
    assert report.resumed_rows >= ROWS[0]


def test_normalizing_compiles_once(devices, gallery, tmp_path):
    arguments = [str(tmp_path / "g"), "--transformation", str(core_bundle(PROGRAM, tmp_path / "h")), "--index", "none"]
    done = CliRunner().invoke(command, [*arguments, "--normalize", "-o", str(tmp_path / "new")], catch_exceptions=False)
    assert done.exit_code == 0 and len(Executable.made) == 1
    rows = Gallery.open(tmp_path / "new").read_rows(np.arange(5))[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


MIB = 1 << 20
KEPT_BYTES = 5 * max(ROWS) * 4 * PROGRAM.new_dim  # of the blocks whose rows wait for the index


@pytest.mark.parametrize(
    ("memory", "device", "index_device", "left"),
    [
        (0, "cuda", "auto", 0),
        (8 << 30, "cuda", "auto", (8 << 30) - HELD_BYTES - KEPT_BYTES),
        (HELD_BYTES + 2 * KEPT_BYTES, "cuda", "cuda:0", KEPT_BYTES),
        (HELD_BYTES + 2 * KEPT_BYTES - 1, "cuda", "cuda:0", 2 * KEPT_BYTES - 1),  # then the rows are not kept there
        (100 * MIB, "cuda", "cuda", 1),  # none, which is something else than no limit
        (8 << 30, "cuda:1", "cuda:0", 8 << 30),
        (8 << 30, "cuda:1,cuda:0", "cuda:0", (8 << 30) - HELD_BYTES - KEPT_BYTES),
    ],
)
def test_device_memory_is_one_budget(monkeypatch, gallery, tmp_path, memory, device, index_device, left):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))
    monkeypatch.setattr("fct_infer.upgrade.planning.require_gpu", lambda device: None)
    h = Transformation(PROGRAM, "fp32", device=device, device_memory=memory)
    settings = Settings(index="Flat", index_device=index_device)
    assert make_plan(tmp_path / "g", h, tmp_path / "new", settings).index_memory == left


def test_another_device_goes_on(monkeypatch, gallery, tmp_path):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))
    stopped(tmp_path / "g", Transformation(PROGRAM, "fp32", device="cuda:1"), tmp_path / "new")
    h = Transformation(PROGRAM, "fp32", device="cuda:0,cuda:1")
    report = upgrade_gallery(tmp_path / "g", h, tmp_path / "new", settings=SETTINGS)
    assert report.resumed_rows >= ROWS[0]


# -- calibration -------------------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_gallerys_own_rows(devices, gallery, tmp_path, monkeypatch):
    h = Transformation(PROGRAM, "fp8", device="cuda")
    plan = make_plan(tmp_path / "g", h, tmp_path / "new", Settings(index="none", normalize=True))
    assert plan.transformation.ranges == largest_values(PROGRAM, gallery["old"], gallery["side"])
    assert plan.identity()["ranges"] == Executable.made[-1].arguments["ranges"] == plan.transformation.ranges
    monkeypatch.setattr("fct_infer.upgrade.planning.CALIBRATION_ROWS", 20)
    plan = make_plan(tmp_path / "g", h, tmp_path / "new", Settings(index="none"))
    rows = sample_rows(sum(ROWS), 20, SEED + 3)
    assert plan.transformation.ranges == largest_values(PROGRAM, gallery["old"][rows], gallery["side"][rows])


def test_ranges_given_are_kept(devices, gallery, tmp_path):
    ranges = dict.fromkeys(PROGRAM.linear_inputs, 3.5)
    h = Transformation(PROGRAM, "fp8", device="cuda", ranges=ranges)
    assert make_plan(tmp_path / "g", h, tmp_path / "new", Settings(index="none")).identity()["ranges"] == ranges


def test_a_resumed_run_uses_the_ranges_it_began_with(devices, gallery, tmp_path, monkeypatch):
    """Measured again they may differ in the last bits; so would results."""
    paths = tmp_path / "g", tmp_path / "new"
    h = load_transformation(core_bundle(PROGRAM, tmp_path / "h"), "fp8")
    stopped(paths[0], h, paths[1])

    begun = last_ranges()

    def differing(*inputs):
        return {name: value * (1 + 2**-50) for name, value in largest_values(*inputs).items()}

    monkeypatch.setattr(calibration, "largest_values", differing)
    report = upgrade_gallery(*paths[:1], h, paths[1], settings=SETTINGS)
    assert report.resumed_rows >= ROWS[0]
    assert last_ranges() == begun
    assert json.loads((paths[1] / "upgrade_infos.json").read_text())["inputs"]["ranges"] == begun


@pytest.mark.parametrize("other", ["gallery", "transformation"])
def test_ranges_of_another_run_are_not_taken(devices, gallery, tmp_path, other):
    stopped(tmp_path / "g", Transformation(PROGRAM, "fp8", device="cuda"), tmp_path / "new")
    begun = last_ranges()
    program, path = PROGRAM, tmp_path / "g"
    if other == "gallery":
        path = tmp_path / "other"
        write_gallery(path, ROWS, old_dim=12, side_dim=6, ids="int", seed=2)
    else:
        program = paper_h(12, 6, 10, inner=16, seed=2)
    h = Transformation(program, "fp8", device="cuda")
    assert make_plan(path, h, tmp_path / "new", SETTINGS).transformation.ranges != begun
    with pytest.raises(OutputError, match=f"different: {other}"):
        upgrade_gallery(path, h, tmp_path / "new", settings=SETTINGS)
    upgrade_gallery(path, h, tmp_path / "new", settings=SETTINGS, restart=True)
    assert last_ranges() not in (begun, None)


@pytest.mark.parametrize("folder", ["embeddings", "side_information"])
def test_a_row_that_is_not_finite_is_named(devices, gallery, tmp_path, folder):
    path = tmp_path / "g" / folder / "000001.npy"
    rows = np.load(path)
    rows[5, 2] = np.inf
    np.save(path, rows)
    with pytest.raises(GalleryError, match=rf"{folder}/000001\.npy: row 5 holds NaN or infinity"):
        make_plan(tmp_path / "g", Transformation(PROGRAM, "fp8", device="cuda"), tmp_path / "new", SETTINGS)


def test_without_side_information_the_old_embedding_takes_its_place(devices, tmp_path):
    arrays = write_gallery(tmp_path / "g", ROWS, old_dim=12, side_dim=None)
    program = paper_h(12, 12, 10, inner=16)
    h = Transformation(program, "fp8", device="cuda")
    plan = make_plan(tmp_path / "g", h, tmp_path / "new", SETTINGS)
    assert plan.transformation.ranges == largest_values(program, arrays["old"], arrays["old"])


def test_a_journal_cut_short_is_no_journal(devices, gallery, tmp_path):
    path = tmp_path / "new.partial" / "journal.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'12345678 {"kind": "beg')
    h = Transformation(PROGRAM, "fp8", device="cuda")
    opened = Gallery.open(tmp_path / "g")
    begun = FolderDestination(tmp_path / "new", "npy", {}).begun_with()
    assert begun == {}
    found = calibration.calibrate(h, opened, opened.fingerprint(), begun, np.arange(sum(ROWS)))
    assert found.ranges == largest_values(PROGRAM, gallery["old"], gallery["side"])


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_a_device_takes_larger_blocks(devices):
    for program, on_cpu, on_device in ((paper_h(), 8192, 65536), (linear_map(4, 4), 1 << 16, 1 << 18)):
        assert default_block_rows(Transformation(program, "fp32")) == on_cpu
        assert default_block_rows(Transformation(program, "fp32", device="cuda")) == on_device
