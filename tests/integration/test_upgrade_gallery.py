"""The whole upgrade through the Python call and through the command line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from support.commands import run_command
from support.galleries import write_gallery
from support.programs import linear_map, paper_h

from fct_infer import Transformation, load_index, upgrade_gallery
from fct_infer.errors import GalleryError, GateError, OutputError, UsageError
from fct_infer.export import Options, export_transformation
from fct_infer.index import IndexBuilder
from fct_infer.reference import apply_float64
from fct_infer.upgrade.report import UpgradeReport
from fct_infer.upgrade.settings import Settings

ROWS = (1000, 37, 512)


@pytest.fixture(scope="module")
def program():
    return paper_h(old_dim=96, side_dim=32, new_dim=160, inner=64, seed=3)


@pytest.fixture(scope="module")
def bundle(program, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "h"
    export_transformation(program, path, Options(targets=("core",)))
    return path


def read_all(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ids", ["int", "str", None])
def test_published_rows_match_float64(tmp_path, program, dtype, ids):
    arrays = write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, dtype=dtype, ids=ids, seed=1)
    report = upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new")
    published = read_all(tmp_path / "new" / "embeddings").astype(np.float64)
    expected = apply_float64(program, arrays["old"], arrays["side"])
    relative = 2e-3 if dtype == "float16" else 1e-5
    assert np.abs(published - expected).max() <= relative * np.abs(expected).max()
    assert report.rows == sum(ROWS)
    assert report.verification.min_cosine > 0.99999
    names = [path.name for path in sorted((tmp_path / "g" / "embeddings").iterdir())]
    assert [path.name for path in sorted((tmp_path / "new" / "embeddings").iterdir())] == names
    if ids:
        for name in names:
            source, copy = tmp_path / "g" / "ids" / name, tmp_path / "new" / "ids" / name
            assert source.read_bytes() == copy.read_bytes()
    assert not (tmp_path / "new.partial").exists()


@pytest.mark.parametrize("ids", ["int", "str", None])
def test_index_finds_each_row_under_its_own_id(tmp_path, program, ids):
    arrays = write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, ids=ids, seed=2)
    upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=Settings(index="Flat"))
    queries = read_all(tmp_path / "new" / "embeddings")[::31]
    _, found = load_index(tmp_path / "new").search(np.ascontiguousarray(queries), 1)
    wanted = arrays["ids"] if ids else np.arange(sum(ROWS))
    assert found[:, 0].tolist() == wanted[::31].tolist()


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,PQ8", "HNSW8", "PCA32,IVF8,SQ8"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_any_factory_string(tmp_path, program, factory, metric):
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, ids="int", seed=3)
    settings = Settings(index=factory, metric=metric)
    report = upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=settings)
    assert report.verification.recall_at_10 is not None
    assert report.verification.recall_at_10 > (0.999 if factory == "Flat" else 0.2)
    assert load_index(tmp_path / "new").rows == sum(ROWS)


def test_no_index(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=(50,), old_dim=96, side_dim=32, seed=4)
    upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=Settings(index="none"))
    assert not (tmp_path / "new" / "index.faiss").exists()


@pytest.mark.parametrize("block_rows", [1, 33, 4096])
def test_block_rows_and_threads_change_no_byte(tmp_path, program, block_rows):
    write_gallery(tmp_path / "g", rows_per_shard=(97, 1, 64), old_dim=96, side_dim=32, ids="int", seed=5)
    for name, rows, threads in (("a", None, 1), ("b", block_rows, 3)):
        settings = Settings(block_rows=rows, index="Flat")
        upgrade_gallery(tmp_path / "g", Transformation(program, threads=threads), tmp_path / name, settings=settings)
    for path in [*(tmp_path / "a" / "embeddings").iterdir(), tmp_path / "a" / "index.faiss"]:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_the_seconds_of_saving_the_index_are_told(tmp_path, monkeypatch):
    write_gallery(tmp_path / "g", rows_per_shard=(50,), old_dim=12, side_dim=None)
    save, took = IndexBuilder.save, []

    def timed(self, path):
        start = time.perf_counter()
        file = save(self, path)
        took.append(time.perf_counter() - start)
        return file

    monkeypatch.setattr(IndexBuilder, "save", timed)
    settings = Settings(index="Flat")
    report = upgrade_gallery(tmp_path / "g", Transformation(linear_map(12, 10)), tmp_path / "new", settings=settings)
    assert report.timings["finish"] >= took[-1] > 0
    assert UpgradeReport.load(tmp_path / "new" / "upgrade_infos.json").timings == report.timings


@pytest.mark.parametrize("at_once", [2, 3, 8])
def test_shards_at_once_change_no_byte(tmp_path, program, at_once):
    write_gallery(tmp_path / "g", rows_per_shard=(97, 1, 64, 200, 5), old_dim=96, side_dim=32, ids="str", seed=5)
    for name, shards in (("a", 1), ("b", at_once)):
        settings, seen = Settings(block_rows=16, index="none", shards_at_once=shards), []
        report = upgrade_gallery(
            tmp_path / "g",
            Transformation(program, threads=2),
            tmp_path / name,
            settings=settings,
            progress=lambda stage, rows, _, seen=seen: seen.append(rows) if stage == "transform" else None,
        )
    assert report.timings["stream"] > 0
    assert all(report.timings[stage] > 0 for stage in ("read", "transform", "write"))
    assert seen == sorted(seen)  # whoever wrote
    assert seen[-1] == 367
    for path in (tmp_path / "a").glob("*/*.npy"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text())["files"] for name in "ab"]
    assert list(manifests[0]) == list(manifests[1])
    assert json.loads((tmp_path / "b" / "upgrade_infos.json").read_text())["execution"]["shards_at_once"] == min(
        at_once, 5
    )


@pytest.mark.parametrize("bad", [0, 97, 250])
def test_a_row_that_is_not_finite_is_named_with_shards_at_once(tmp_path, program, bad):
    write_gallery(tmp_path / "g", rows_per_shard=(97, 100, 64), old_dim=96, side_dim=32, seed=5)
    shard, row = next((s, bad - first) for s, first in ((2, 197), (1, 97), (0, 0)) if bad >= first)
    path = tmp_path / "g" / "embeddings" / f"{shard:06d}.npy"
    rows = np.load(path)
    rows[row, 3] = np.inf
    np.save(path, rows)
    settings = Settings(index="none", block_rows=16, shards_at_once=2)
    with pytest.raises(GalleryError, match=rf"{path.name}: row {row} holds NaN or infinity"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=settings)
    assert not list(tmp_path.glob("new*"))


def test_an_index_takes_one_shard_at_once(tmp_path):
    with pytest.raises(UsageError, match="rows in order"):
        Settings(index="Flat", shards_at_once=2)


def test_without_side_information_the_old_embedding_takes_its_place(tmp_path):
    program = paper_h(old_dim=24, side_dim=24, new_dim=16, inner=32, seed=6)
    arrays = write_gallery(tmp_path / "g", rows_per_shard=(60,), old_dim=24, side_dim=None, seed=6)
    report = upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new")
    expected = apply_float64(program, arrays["old"], arrays["old"])
    published = read_all(tmp_path / "new" / "embeddings")
    assert np.abs(published - expected).max() <= 1e-5 * np.abs(expected).max()
    assert report.settings["side_information"] == "old"


def test_normalize(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=(60,), old_dim=96, side_dim=32, seed=7)
    settings = Settings(normalize=True)
    upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=settings)
    norms = np.linalg.norm(read_all(tmp_path / "new" / "embeddings"), axis=1)
    assert norms == pytest.approx(1, abs=1e-5)


def test_manifest_covers_every_file(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, ids="str", seed=8)
    upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new")
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    files = {path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert set(manifest["files"]) | {"manifest.json"} == files


def test_existing_output_is_refused_and_replaced_only_with_force(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=96, side_dim=32, seed=9)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "precious").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new")
    assert (tmp_path / "new" / "precious").read_text() == "mine"
    assert not (tmp_path / "new.partial").exists()
    with pytest.raises(OutputError, match="it is not a gallery that fct-upgrade-gallery published, so it is not repl"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", force=True)
    (tmp_path / "new" / "precious").unlink()
    upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new")  # an empty folder is no loss
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"it holds notes\.txt, which fct-upgrade-gallery did not publish"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", force=True)
    (tmp_path / "new" / "notes.txt").unlink()
    upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", force=True)
    assert (tmp_path / "new" / "manifest.json").exists()
    assert not (tmp_path / "new.partial").exists()


def test_a_foreign_partial_folder_is_left_alone(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=96, side_dim=32, seed=9)
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="not unfinished work"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", restart=True)
    assert (tmp_path / "new.partial" / "thesis.tex").exists()


@pytest.mark.parametrize(("folder", "array"), [("embeddings", "old"), ("side_information", "side")])
def test_a_row_that_is_not_finite_is_named(tmp_path, program, folder, array):
    arrays = write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, seed=10)
    path = sorted((tmp_path / "g" / folder).iterdir())[1]
    rows = arrays[array][ROWS[0] : ROWS[0] + ROWS[1]].copy()
    rows[11, 5] = np.nan
    np.save(path, rows)
    with pytest.raises(GalleryError, match=rf"{folder}/{path.name}: row 11 "):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.partial").exists()


def test_overflow_of_float16_is_named(tmp_path):
    program = linear_map(old_dim=8, new_dim=8, seed=1)
    for step in program.steps:
        if hasattr(step, "weight"):
            step.weight[:] *= 1e4
    write_gallery(tmp_path / "g", rows_per_shard=(40,), old_dim=8, side_dim=None, dtype="float16", seed=1)
    settings = Settings(index="none")
    with pytest.raises(GalleryError, match="does not fit float16"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=settings)


def test_gates_publish_nothing_and_keep_the_work(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, seed=11)
    arguments = (tmp_path / "g", Transformation(program), tmp_path / "new")
    with pytest.raises(GateError, match="recall"):
        upgrade_gallery(*arguments, settings=Settings(index="IVF64,PQ2x2", min_recall=1.0))
    assert not (tmp_path / "new").exists()
    report = upgrade_gallery(*arguments, settings=Settings(index="IVF64,PQ2x2"))
    assert report.resumed_rows == sum(ROWS)


def test_wrong_rows_are_said_before_an_index_that_misses_some(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, seed=11)
    settings = Settings(index="IVF64,PQ2x2", min_recall=1.0, min_cosine=1.0)
    with pytest.raises(GateError, match="cosine"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=settings)


GATES = {"IVF64,PQ2x2": {"min_recall": 1.0}, "none": {"min_cosine": 1.0}}


@pytest.mark.parametrize("index", GATES)
@pytest.mark.parametrize("damage", ["truncated", "gone", "flipped"])
def test_finished_work_that_is_damaged_is_done_again(tmp_path, program, damage, index):
    """An index takes rows in order, so with one all that follows the damaged shard is repeated too."""
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, seed=11)
    arguments = (tmp_path / "g", Transformation(program), tmp_path / "new")
    settings, calm = Settings(index=index), tmp_path / "calm"
    upgrade_gallery(*arguments[:2], calm, settings=settings)
    with pytest.raises(GateError):
        upgrade_gallery(*arguments, settings=Settings(index=index, **GATES[index]))
    path = tmp_path / "new.partial" / "gallery" / "embeddings" / "000001.npy"
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        content = bytearray(path.read_bytes())
        content[-777] ^= 4
        path.write_bytes(content)
    report = upgrade_gallery(*arguments, settings=settings)
    assert report.resumed_rows == (ROWS[0] if index != "none" else sum(ROWS) - ROWS[1])
    for name in ("embeddings/000001.npy", *(["index.faiss"] if index != "none" else [])):
        assert (tmp_path / "new" / name).read_bytes() == (calm / name).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"index": "NoSuchIndex"},
        {"metric": "hamming"},
        {"dtype": "int8"},
        {"block_rows": 0},
        {"shards_at_once": 0},
        {"min_cosine": 1.5},
    ],
)
def test_settings_that_make_no_sense(tmp_path, program, settings):
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=96, side_dim=32, seed=12)
    with pytest.raises(UsageError):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new", settings=Settings(**settings))
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize("dest", ["g", "."])
def test_the_input_is_never_replaced(tmp_path, program, dest):
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=96, side_dim=32, seed=13)
    with pytest.raises(UsageError, match=r"the gallery .*, which would be replaced"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / dest, force=True)
    assert (tmp_path / "g" / "side_information").is_dir()


def test_dims_that_do_not_fit(tmp_path, program):
    write_gallery(tmp_path / "g", rows_per_shard=(30,), old_dim=95, side_dim=32, seed=13)
    with pytest.raises(GalleryError, match=r"95 wide, the transformation wants 96"):
        upgrade_gallery(tmp_path / "g", Transformation(program), tmp_path / "new")


def test_command_line(tmp_path, bundle):
    write_gallery(tmp_path / "g", rows_per_shard=ROWS, old_dim=96, side_dim=32, ids="str", dtype="float16", seed=14)
    base = (tmp_path / "g", "--transformation", bundle, "-o", tmp_path / "new")
    dry = run_command("upgrade_gallery", *base, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["rows"] == sum(ROWS)
    assert not list(tmp_path.glob("new*"))
    done = run_command("upgrade_gallery", *base, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verification"]["min_cosine"] > 0.99999
    assert "rows" in done.stderr
    again = run_command("upgrade_gallery", *base)
    assert again.returncode == 6
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--metric", "nonsense"], 2),
        (["--precision", "fp64"], 2),
        (["--index", "Nonsense"], 2),
        (["--device", "cuda:7"], 2),
        (["--block-rows", "0"], 2),
    ],
)
def test_command_line_usage_errors(tmp_path, bundle, arguments, exit_code):
    write_gallery(tmp_path / "g", rows_per_shard=(20,), old_dim=96, side_dim=32, seed=15)
    done = run_command(
        "upgrade_gallery", tmp_path / "g", "--transformation", bundle, "-o", tmp_path / "new", *arguments
    )
    assert done.returncode == exit_code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("new*"))


def test_command_line_bad_gallery(tmp_path, bundle):
    write_gallery(tmp_path / "g", rows_per_shard=(20, 20), old_dim=96, side_dim=32, seed=16)
    shard = sorted((tmp_path / "g" / "side_information").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    done = run_command("upgrade_gallery", tmp_path / "g", "--transformation", bundle, "-o", tmp_path / "new")
    assert done.returncode == 4
    assert str(shard) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("new*"))
