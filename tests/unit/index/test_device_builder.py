"""Building where FAISS has no part for the device: the core's device, played by the CPU, gives the CPU's file."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest
from support import fake_devices
from support.fake_devices import ASSIGNER_STREAM, Assigner, DlpackArray, InterfaceArray
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import Transformation, _core, upgrade_gallery
from fct_infer.device_arrays import FinishedRows
from fct_infer.errors import ArrayError, NonFiniteError, UnsupportedError
from fct_infer.index import DeviceIndexBuilder, IndexBuilder, describe_index, make_builder
from fct_infer.upgrade.settings import Settings

ROWS, DIM = 1200, 16
DATA = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 5
BLOCKS = (500, 1, 299, 400)
FILLED = ["IVF16,Flat", "IVF16,PQ4np", "IVF16,SQ8", "PCA12,IVF16,PQ4np", "PQ4np"]

pytestmark = pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has its GPU part")


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    fake_devices.install(monkeypatch, ("NVIDIA H200", "NVIDIA H200"))


def on_device(factory, metric="l2", device="cuda", memory=0):
    return make_builder(describe_index(factory, DIM, ROWS, metric), 1, device, memory)


def fill(builder):
    if builder.needs_training:
        builder.train(DATA)
    start = 0
    for count in BLOCKS:
        builder.add(DATA[start : start + count], IDS[start : start + count])
        start += count
    return builder


def saved(builder, path):
    builder.save(path)
    return path.read_bytes()


@pytest.mark.parametrize(("factory", "metric"), [*((factory, "l2") for factory in FILLED), ("IVF16,PQ4np", "ip")])
def test_the_same_file_as_on_the_cpu(tmp_path, factory, metric):
    builder = fill(on_device(factory, metric, memory=1 << 30))
    assert isinstance(builder, DeviceIndexBuilder)
    assert builder.placement["train"] == "cpu" and builder.placement["add"] == "cuda:0"
    assert builder.placement["kernels"].startswith("the core's: this FAISS is built without CUDA")
    assert "reason" not in builder.placement
    (assigner,) = Assigner.made
    assert (assigner.asked, assigner.memory, assigner.host_rows) == ("cuda:0", 1 << 30, ROWS)
    assert saved(builder, tmp_path / "device") == saved(fill(IndexBuilder(factory, DIM, metric, 1)), tmp_path / "cpu")


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF16,PQ4x4np,RFlat"])
def test_what_the_core_has_no_kernels_for_is_filled_on_the_cpu(tmp_path, factory):
    builder = fill(on_device(factory))
    assert builder.placement["add"] == "cpu" and "kernels" not in builder.placement
    assert "the core has no kernels for such an Index" in builder.placement["reason"]
    assert (builder.rows, Assigner.made, builder.takes_device_rows) == (ROWS, [], False)


@pytest.mark.parametrize("required", [True, False])
def test_a_full_device_leaves_the_work_to_the_cpu(monkeypatch, tmp_path, required):
    fake_devices.install(monkeypatch, full="cuda:0")
    plan = describe_index("IVF16,PQ4np", DIM, ROWS, "l2")
    builder = fill(make_builder(plan, 1, "cuda:0", required=required))
    assert builder.placement["add"] == "cpu"
    assert builder.placement["reason"].endswith(
        "nor can the core: finding lists and codes needs 90 MiB on cuda:0, at hand are 7 MiB"
    )
    assert saved(builder, tmp_path / "full") == saved(fill(IndexBuilder("IVF16,PQ4np", DIM, "l2", 1)), tmp_path / "cpu")


def test_a_device_that_nobody_can_use_is_an_error_where_it_is_required(monkeypatch):
    plan = describe_index("IVF16,PQ4np", DIM, ROWS, "l2")
    with pytest.raises(UnsupportedError, match="an index on cuda:7: this FAISS is built without CUDA"):
        make_builder(plan, 1, "cuda:7")
    fake_devices.install(monkeypatch, missing="no NVIDIA driver")
    with pytest.raises(UnsupportedError, match="an index on cuda: this FAISS is built without CUDA"):
        make_builder(plan, 1, "cuda")
    assert make_builder(plan, 1, "cuda", required=False).placement["add"] == "cpu"


@pytest.mark.parametrize(
    "array", [lambda rows: FinishedRows(rows.ctypes.data, *rows.shape), InterfaceArray, DlpackArray]
)
@pytest.mark.parametrize("factory", ["IVF16,PQ4np", "PQ4np"])
def test_rows_on_the_device_are_taken_where_they_lie(tmp_path, factory, array):
    builder = on_device(factory)
    builder.train(DATA)
    assert builder.takes_device_rows
    there = DATA[:900].copy()
    rows = array(there)
    assert builder.add_device_rows(rows, IDS[:900]) == 900
    assert isinstance(rows, FinishedRows | InterfaceArray) or rows.streams == [ASSIGNER_STREAM]
    assert builder.placement["rows"] == "cuda:0"
    builder.add(DATA[900:], IDS[900:])
    (assigner,) = Assigner.made
    assert (assigner.device_rows, assigner.host_rows) == (900, 300)
    assert saved(builder, tmp_path / "device") == saved(fill(IndexBuilder(factory, DIM, "l2", 1)), tmp_path / "cpu")


@pytest.mark.parametrize(
    ("factory", "device"), [("IVF16,Flat", "cuda"), ("PCA12,IVF16,PQ4np", "cuda"), ("IVF16,PQ4np", "cuda:0,cuda:1")]
)
def test_rows_that_the_cpu_needs_too_or_several_devices_come_from_the_host(factory, device):
    builder = on_device(factory, device=device)
    builder.train(DATA)
    assert builder.placement["add"] == ("cuda:0" if device == "cuda" else device)
    assert not builder.takes_device_rows
    assert builder.add_device_rows(FinishedRows(DATA.ctypes.data, *DATA.shape), IDS) == builder.rows == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (InterfaceArray(DATA.astype(np.float16)), "rows is a float16 array"),
        (DlpackArray(DATA, device_number=1), "rows are on cuda:1, wanted them on cuda:0"),
        (InterfaceArray(DATA[:, :8].copy()), r"rows is a float32 array of shape \(1200, 8\), wanted .* \(n, 16\)"),
        (DATA.tolist(), "rows is a list"),
    ],
)
def test_rows_on_the_device_that_are_not_as_wanted(rows, words):
    builder = on_device("IVF16,PQ4np")
    builder.train(DATA)
    with pytest.raises(ArrayError, match=words):
        builder.add_device_rows(rows, IDS)
    assert builder.rows == 0


def test_a_row_that_is_not_finite_is_named_and_none_is_added():
    builder = on_device("IVF16,PQ4np")
    builder.train(DATA)
    rows = DATA.copy()
    rows[777, 3] = np.inf
    for add in (builder.add, lambda rows, ids: builder.add_device_rows(InterfaceArray(rows), ids)):
        with pytest.raises(NonFiniteError, match="row 777"):
            add(rows, IDS)
    assert builder.rows == 0


def test_a_trained_index_goes_on_on_the_device(tmp_path):
    first = on_device("IVF16,PQ4np")
    first.train(DATA)
    trained = first.save(tmp_path / "trained")
    first.close()
    second = on_device("IVF16,PQ4np")
    second.load_trained(tmp_path / "trained", trained.sha256)
    assert second.placement["train"] == "an earlier run" and second.placement["add"] == "cuda:0"
    fill(second)
    assert Assigner.made[-1].host_rows == ROWS
    assert saved(second, tmp_path / "2") == saved(fill(IndexBuilder("IVF16,PQ4np", DIM, "l2", 1)), tmp_path / "cpu")


def test_an_upgrade_says_who_filled_its_index(tmp_path):
    """The device is the transformation's, without being asked for; the file is the CPU's."""
    write_gallery(tmp_path / "g", (150, 41, 90), old_dim=DIM, side_dim=None, ids="int", seed=1)
    files = []
    for device in ("cpu", "cuda"):
        h = Transformation(linear_map(DIM, DIM), "fp32", 1, device=device)
        report = upgrade_gallery(
            tmp_path / "g", h, tmp_path / device, settings=Settings(index="IVF8,PQ4np", block_rows=40)
        )
        infos = json.loads((tmp_path / device / "upgrade_infos.json").read_text())
        assert infos["index_placement"] == report.index_placement
        files.append((tmp_path / device / "index.faiss").read_bytes())
    assert report.index_placement["add"] == "cuda:0" and "kernels" in report.index_placement
    assert files[0] == files[1]


def test_an_assigner_of_the_cpu_takes_no_rows_of_a_device():
    on_cpu = _core.Assigner(DATA[:4], None)
    assert (on_cpu.dim, on_cpu.device, on_cpu.stream, on_cpu.device_bytes, on_cpu.description) == (DIM, "", 0, 0, "")
    with pytest.raises(ArrayError, match="need an assigner of one device"):
        on_cpu.assign_on_device(0, 0)


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.undo()
    for device, words in (("cuda:77", None), ("gpu", "device is gpu"), ("cuda:0,cuda:0", "device is cuda:0,cuda:0")):
        with pytest.raises(UnsupportedError, match=words):
            _core.device_assigner(DATA[:4], None, device=device)
