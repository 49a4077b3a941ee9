"""Rows on their way into the index: from the device's memory where they are, else from the CPU's; the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import fake_devices
from support.fake_gpu_faiss import FakeDevices
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, _core, upgrade_gallery
from fct_infer.index import IndexBuilder, make_builder
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.stream import IndexFeeder, index_rows, kept_on_device

DIM, LISTS = 16, 8
ROWS = (150, 41, 90)
INDEX = f"IVF{LISTS},PQ4np"


@pytest.fixture
def devices(monkeypatch):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))
    return FakeDevices(count=2).install(monkeypatch)


@pytest.fixture
def gallery(tmp_path):
    write_gallery(tmp_path / "g", ROWS, old_dim=DIM, side_dim=None, ids="int", seed=1)
    return tmp_path / "g"


@pytest.fixture
def kept(monkeypatch):
    """Let the pipeline keep what it is asked to: in memory that gets other rows when the index has returned."""
    asked, run_pipeline = [], _core.run_pipeline

    def keeping(executable, *, index, keep_on_device="none", **options):
        asked.append(keep_on_device)

        def with_kept(new, _=0):
            if keep_on_device == "none":
                return index(new)
            rows = index_rows(new, "cosine" if keep_on_device == "normalized" else "l2").copy()
            index(new, rows.ctypes.data)
            rows[:] = np.nan

        return run_pipeline(executable, index=with_kept, **options)

    monkeypatch.setattr(_core, "run_pipeline", keeping)
    return asked


def upgrade(gallery, name, device="cuda", **settings):
    h = Transformation(linear_map(DIM, DIM), "fp32", 1, device=device)
    settings = Settings(**{"index": INDEX, "block_rows": 40, "index_device": "cuda:0"} | settings)
    report = upgrade_gallery(gallery, h, gallery.with_name(name), settings=settings)
    infos = json.loads((gallery.with_name(name) / "upgrade_infos.json").read_text())
    assert infos["index_placement"] == report.index_placement
    return (gallery.with_name(name) / "index.faiss").read_bytes(), report.index_placement


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("metric", "asked"), [("l2", "rows"), ("ip", "rows"), ("cosine", "normalized")])
def test_the_index_takes_the_rows_where_they_are(devices, kept, gallery, metric, dtype, asked):
    expected, from_host = upgrade(gallery, "host", "cpu", metric=metric, dtype=dtype)
    found, from_device = upgrade(gallery, "device", metric=metric, dtype=dtype)
    assert found == expected
    assert from_host == {"train": "cuda:0", "add": "cuda:0"}
    assert from_device == from_host | {"rows": "cuda:0"}
    assert kept == ["none", asked]


def test_what_the_device_has_no_room_for_comes_from_the_cpu(devices, kept, gallery):
    expected, _ = upgrade(gallery, "host", "cpu")
    devices.memory = 4 * LISTS * DIM + 35 * 12  # not even for one block
    found, placement = upgrade(gallery, "device")
    assert found == expected
    assert (placement["add"], placement["reason"]) == ("cpu", "cuda:0 is too full for 40 rows")
    assert "rows" not in placement
    assert kept == ["none", "rows"]


@pytest.mark.parametrize(
    ("device", "settings"),
    [
        ("cpu", {}),
        ("cuda:1", {}),
        ("cuda:0,cuda:1", {}),
        ("cuda:0", {"index_device": "cpu"}),
        ("cuda:0", {"index": "Flat"}),
        ("cuda:0", {"index": f"OPQ4,{INDEX}"}),
        ("cuda:0", {"index": "none"}),
    ],
)
def test_nothing_is_kept_that_the_index_would_not_take(devices, gallery, tmp_path, device, settings):
    h = Transformation(linear_map(DIM, DIM), "fp32", 1, device=device)
    plan = make_plan(gallery, h, tmp_path / "new", Settings(**{"index": INDEX, "index_device": "cuda:0"} | settings))
    builder = make_builder(plan.index, 1, plan.index_device) if plan.index else None
    assert kept_on_device(plan, builder) == "none"


class Taking(IndexBuilder):
    """Takes the first rows of each block from the device, and remembers all it is given."""

    loaded_rows = 0

    def __init__(self, most: int) -> None:
        self.most, self.given = most, []

    def add_device_rows(self, rows, ids):
        taken = rows[: min(self.most, len(ids))]
        self.given.append((taken.__cuda_array_interface__, ids[: taken.rows]))
        return taken.rows

    def add(self, rows, ids):
        self.given.append((rows, ids))


def test_a_block_may_come_from_both(devices, gallery, tmp_path):
    h = Transformation(linear_map(DIM, DIM), "fp32", 1)
    plan = make_plan(gallery, h, tmp_path / "new", Settings(metric="cosine", block_rows=150))
    builder = Taking(100)
    feeder = IndexFeeder(plan, plan.gallery.shards, builder)
    new = np.random.default_rng(0).standard_normal((150, DIM)).astype(np.float16)
    feeder(new, 1 << 40)
    (device_number, first), (host, last) = builder.given
    assert device_number["data"] == (1 << 40, True)
    assert (device_number["shape"], device_number["typestr"], device_number["stream"]) == ((100, DIM), "<f4", None)
    np.testing.assert_array_equal(host, index_rows(new, "cosine")[100:])
    ids = np.load(gallery / "ids" / plan.gallery.shards[0].ids.name)
    np.testing.assert_array_equal(np.concatenate([first, last]), ids)
    feeder(new[:41], 1 << 40)
    assert builder.given[2][0]["shape"] == (41, DIM) and len(builder.given) == 3
    feeder(new[:90])
    np.testing.assert_array_equal(builder.given[3][0], index_rows(new[:90], "cosine"))


@pytest.mark.parametrize("scale", [0, 1e-30, 1e-14])
def test_rows_of_hardly_any_length_come_from_the_cpu(devices, gallery, tmp_path, scale):
    """A device divides by no less than 1e-12: what is shorter would lie in the index without its unit length."""
    h = Transformation(linear_map(DIM, DIM), "fp32", 1)
    plan = make_plan(gallery, h, tmp_path / "new", Settings(metric="cosine", block_rows=150))
    builder = Taking(150)
    feeder = IndexFeeder(plan, plan.gallery.shards, builder)
    new = np.random.default_rng(0).standard_normal((150, DIM)).astype(np.float32)
    new[7] *= scale
    feeder(new, 1 << 40)
    ((rows, _),) = builder.given
    np.testing.assert_array_equal(rows, index_rows(new, "cosine"))
    assert np.linalg.norm(rows[7]) == pytest.approx(float(scale > 0))
