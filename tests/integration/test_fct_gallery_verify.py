"""Galleries from the upgrade to the search: ids of every kind, zero rows, order of shards; `fct-gallery verify`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.commands import run_command
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Program, Transformation, load_index, upgrade_gallery
from fct_infer.errors import ArtifactError, GalleryError
from fct_infer.evaluation.inputs import read_embeddings
from fct_infer.index.verify import verify_gallery
from fct_infer.transformation import Linear
from fct_infer.upgrade.estimate import estimate
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.settings import Settings

ROWS, DIM = (40, 9), 8
IDENTITY = Program(
    {"old": DIM}, (Linear("old", "new", np.eye(DIM, dtype=np.float32), np.zeros(DIM, np.float32)),), "new"
)


def transformation(program=IDENTITY):
    return Transformation(program, precision="fp32")


def gallery(path, ids=None, rows=None):
    """The gallery's rows; its shards ``000000.npy``, ``000001.npy`` with these ids."""
    old = write_gallery(path, ROWS, DIM, side_dim=None)["old"] if rows is None else rows
    for number, (start, stop) in enumerate(((0, 40), (40, 49))):
        np.save(path / "embeddings" / f"{number:06d}.npy", old[start:stop])
        if ids is not None:
            (path / "ids").mkdir(exist_ok=True)
            np.save(path / "ids" / f"{number:06d}.npy", ids[start:stop])
    return old


def verify(*arguments):
    return run_command("gallery", "verify", *arguments)


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(49) - 60,
        np.arange(49, dtype=np.uint64) * (1 << 58) + (1 << 62),
        np.arange(49, dtype=np.int16) + 5,
        np.array([f"item-{number}" for number in range(49)]),
        np.frombuffer(b"".join(bytes([number]) * 15 + b"\0" for number in range(49)), "S16"),
    ],
    ids=["negative", "uint64", "int16", "text", "binary"],
)
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_each_row_is_found_under_its_own_id(tmp_path, ids, factory):
    old = gallery(tmp_path / "g", ids)
    upgrade_gallery(tmp_path / "g", transformation(), tmp_path / "new", settings=Settings(index=factory))
    _, found = load_index(tmp_path / "new").search(old, 1)
    whole = ids.view("V16").tolist() if ids.dtype == "S16" else ids.tolist()
    assert found.ravel().tolist() == whole
    assert verify_gallery(tmp_path / "new").damaged == {}


@pytest.mark.parametrize("ids", [np.arange(49) - 5, np.array(["x"] * 48 + [""])], ids=["-1", "empty"])
def test_a_plan_refuses_the_ids_that_the_run_refuses(tmp_path, ids):
    gallery(tmp_path / "g", ids)
    for act in (make_plan, upgrade_gallery):
        with pytest.raises(GalleryError, match="for nothing found"):
            act(tmp_path / "g", transformation(), tmp_path / "new", settings=Settings())
    upgrade_gallery(tmp_path / "g", transformation(), tmp_path / "new", settings=Settings(index="none"))


def test_duplicate_ids_are_counted_in_plan_and_report(tmp_path):
    gallery(tmp_path / "g", np.array([*range(40), *range(9)]))
    plan = make_plan(tmp_path / "g", transformation(), tmp_path / "new", Settings())
    assert estimate(plan)["duplicate_ids"] == 9
    report = upgrade_gallery(tmp_path / "g", transformation(), tmp_path / "new")
    assert report.duplicate_ids == 9
    assert json.loads((tmp_path / "new" / "upgrade_infos.json").read_text())["duplicate_ids"] == 9


def test_shards_whose_numbers_are_out_of_order_are_refused_before_work(tmp_path):
    for number in (2, 10):
        (tmp_path / "g" / "embeddings").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "g" / "embeddings" / f"{number}.npy", np.ones((3, DIM), np.float32))
    with pytest.raises(GalleryError, match=r"10\.npy comes before 2\.npy"):
        upgrade_gallery(tmp_path / "g", transformation(), tmp_path / "new")
    assert not (tmp_path / "new.partial").exists()


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_rows_without_direction_are_left_out_of_a_cosine_index_and_counted(tmp_path, factory):
    rows = np.abs(np.random.default_rng(0).standard_normal((49, DIM))).astype(np.float32)
    write_gallery(tmp_path / "g", ROWS, DIM, side_dim=None)
    rows[7] = rows[45] = 0
    gallery(tmp_path / "g", rows=rows)
    settings = Settings(index=factory, metric="cosine", min_recall=0.99)
    report = upgrade_gallery(tmp_path / "g", transformation(), tmp_path / "new", settings=settings)
    assert report.index["rows left out"] == 2 and report.index["nb vectors"] == 47
    index = load_index(tmp_path / "new")
    assert index.rows == 47
    assert not np.isin(index.search(-rows[:5], 49)[1], [7, 45]).any()
    assert verify_gallery(tmp_path / "new").damaged == {}


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_long_and_tiny_rows_have_a_direction_too(tmp_path, scale):
    write_gallery(tmp_path / "g", ROWS, DIM, side_dim=None)
    rows = (np.random.default_rng(1).standard_normal((49, DIM)) * scale).astype(np.float32)
    gallery(tmp_path / "g", rows=rows)
    settings = Settings(index="Flat", metric="cosine")
    report = upgrade_gallery(tmp_path / "g", transformation(), tmp_path / "new", settings=settings)
    assert report.index["rows left out"] == 0
    distances, found = load_index(tmp_path / "new").search(rows, 1)
    assert found.ravel().tolist() == list(range(49))
    assert distances == pytest.approx(1, abs=1e-5)


def test_verify_says_that_all_is_well_or_names_each_damaged_file(tmp_path):
    write_gallery(tmp_path / "g", ROWS, DIM, side_dim=None, ids="str")
    upgrade_gallery(tmp_path / "g", transformation(linear_map(DIM, 6)), tmp_path / "new")
    whole = verify(tmp_path / "new")
    assert whole.returncode == 0 and "damaged  none" in whole.stdout and "verify: " in whole.stderr
    for name in ("embeddings/000001.npy", "ids/000000.npy"):
        data = bytearray((tmp_path / "new" / name).read_bytes())
        data[-1] ^= 4
        (tmp_path / "new" / name).write_bytes(data)
    found = verify(tmp_path / "new")
    assert found.returncode == 4
    for name in ("embeddings/000001.npy", "ids/000000.npy"):
        assert f"error: {tmp_path / 'new' / name}: is damaged: its SHA-256" in found.stderr
    found = verify(tmp_path / "new", "--json")
    assert found.returncode == 4
    document = json.loads(found.stdout)
    assert sorted(document["damaged"]) == ["embeddings/000001.npy", "ids/000000.npy"] and not document["is_whole"]
    with pytest.raises(ArtifactError, match=r"000001\.npy: is damaged"):
        read_embeddings(tmp_path / "new")


def test_verify_of_what_is_no_published_gallery(tmp_path):
    gallery(tmp_path / "g")
    found = verify(tmp_path / "g")
    assert found.returncode == 4 and found.stdout == ""
    assert found.stderr.startswith(f"error: {tmp_path / 'g'}: is not a published gallery")
