"""Lists and codes found on a device: those of the CPU and of FAISS, but where float32 cannot tell two lists apart."""

from __future__ import annotations

import numpy as np
import pytest
from support.cuda import DEVICE, memory, require_module
from support.cuda_arrays import CudaArray, CudaDlpackArray
from support.galleries import write_gallery
from support.programs import linear_map

from fct_infer import _core, upgrade_gallery
from fct_infer.cuda import cuda_status
from fct_infer.device_arrays import device_rows
from fct_infer.errors import DeviceMemoryError, NonFiniteError, UnsupportedError
from fct_infer.index import IndexBuilder, gpu_builder, gpu_faiss
from fct_infer.transformation import Transformation
from fct_infer.upgrade.settings import Settings

MEMORY = memory(2048, 48)


def normal_rows(rows, dim, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32) + np.float32(shift)


def distances(rows, vectors, chosen, metric):
    """Float64 (rows,): of each row to the one of ``vectors`` that was chosen, and the least to any."""
    rows, vectors = rows.astype(np.float64), vectors.astype(np.float64)
    products = rows @ vectors.T
    if metric == "l2":
        products = 2 * products - (vectors**2).sum(axis=1) - (rows**2).sum(axis=1)[:, None]
    return -products[np.arange(len(rows)), chosen], -products.max(axis=1)


def assigner_on(device, centroids, codebooks=None, **options):
    if device == "cpu":
        return _core.Assigner(centroids, codebooks, **options)
    return _core.device_assigner(centroids, codebooks, device=device, device_memory=MEMORY, **options)


def check(rows, centroids, codebooks, found, metric="l2", by_residual=True):
    lists, codes = found
    away, least = distances(rows, centroids, lists, metric)
    scale = 1e-6 * (np.abs(rows.astype(np.float64)) ** 2).sum(axis=1)
    assert (away <= least + scale).all()
    if codebooks is None:
        assert codes is None
        return
    encoded = rows - centroids[lists] if by_residual else rows
    parts, _, width = codebooks.shape
    assert codes.shape == (len(rows), parts)
    for part in range(parts):
        own = encoded[:, part * width : (part + 1) * width]
        away, least = distances(own, codebooks[part], codes[:, part].astype(np.int64), "l2")
        assert (away <= least + 1e-5 * (1 + np.abs(least))).all()


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("width", range(1, 17))
def test_parts_of_every_width(device, width):
    parts = 1 + width % 3
    rows = normal_rows(321, parts * width)
    centroids, codebooks = normal_rows(19, parts * width, 1), normal_rows(parts * 256, width, 2)
    codebooks = codebooks.reshape(parts, 256, width)
    for by_residual in (True, False):
        found = assigner_on(device, centroids, codebooks, by_residual=by_residual).assign(rows, 2)
        check(rows, centroids, codebooks, found, by_residual=by_residual)
        assert same(found, assigner_on("cpu", centroids, codebooks, by_residual=by_residual).assign(rows, 2))


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("shift", [0, 30])
@pytest.mark.parametrize(("rows", "lists", "dim"), [(1, 1, 1), (1, 300, 31), (129, 70, 20), (5000, 40, 7)])
def test_lists_of_any_number_and_dim(device, metric, shift, rows, lists, dim):
    data, centroids = normal_rows(rows, dim, 3, shift), normal_rows(lists, dim, 4, shift)
    found = assigner_on(device, centroids, metric=metric).assign(data, 1)
    check(data, centroids, None, found, metric)


def test_more_rows_than_any_block(device_number):
    rows, centroids = normal_rows(65_537, 5, 5), normal_rows(21, 5, 6)
    codebooks = normal_rows(256, 5, 7).reshape(1, 256, 5)
    assigner = assigner_on(device_number, centroids, codebooks)
    assert "blocks" in assigner.description and 0 < assigner.device_bytes <= MEMORY
    found = assigner.assign(rows, 2)
    check(rows, centroids, codebooks, found)
    some = slice(30_000, 30_999)
    assert same([part[some] for part in found], assigner.assign(rows[some], 1))


def test_faiss_gives_the_same_lists_and_codes(device, with_faiss):
    faiss = require_module("faiss")
    rows = normal_rows(1300, 24, 8)
    index = faiss.index_factory(24, "IVF24,PQ6", faiss.METRIC_L2)
    index.do_polysemous_training = False
    index.train(rows)
    centroids = index.quantizer.reconstruct_n(0, index.nlist)
    codebooks = faiss.vector_to_array(index.pq.centroids).reshape(6, 256, 4)
    lists, codes = assigner_on(device, centroids, codebooks).assign(rows, 2)
    wanted = index.sa_encode(rows)
    assert (lists == wanted[:, 0]).mean() > 0.999
    equal = lists == wanted[:, 0]
    assert (codes[equal] == wanted[equal, 1:]).mean() > 0.9999


@pytest.mark.parametrize("kind", ["lists", "codes", "both"])
def test_the_first_row_that_is_not_finite_is_named(device, kind):
    rows, centroids = normal_rows(1500, 9, 9), normal_rows(40, 9, 10)
    codebooks = normal_rows(3 * 256, 3, 11).reshape(3, 256, 3)
    places = {"lists": (centroids, None), "codes": (None, codebooks), "both": (centroids, codebooks)}
    assigner = assigner_on(device, *places[kind], by_residual=kind == "both")
    broken = rows.copy()
    broken[[1321, 1499, 1400], [8, 0, 1]] = np.nan, -np.inf, np.inf
    with pytest.raises(NonFiniteError, match="row 1321"):
        assigner.assign(broken, 2)
    broken[1321] = 0
    with pytest.raises(NonFiniteError, match="row 1400"):
        assigner.assign(broken, 2)
    assert len(assigner.assign(rows, 2)[kind == "codes"]) == len(rows)


def test_rows_that_scores_cannot_compare(device):
    rows, centroids = normal_rows(200, 6, 12), normal_rows(11, 6, 13)
    rows[::3] *= 1e18
    lists, _ = assigner_on(device, centroids).assign(rows, 1)
    check(rows[1::3], centroids, None, (lists[1::3], None))
    assert same([lists], [assigner_on("cpu", centroids).assign(rows, 1)[0]])


def test_the_lowest_list_wins_among_equals(device):
    centroids = np.repeat(normal_rows(3, 8, 14), 40, axis=0)
    assert assigner_on(device, centroids).assign(centroids[::40].copy(), 1)[0].tolist() == [0, 40, 80]


@pytest.mark.parametrize("kind", [CudaArray, CudaDlpackArray])
def test_rows_in_the_devices_memory(device_number, kind):
    require_module("cuda.bindings.runtime")
    from fct_infer.backends.cuda_memory import CudaMemory

    own = CudaMemory(0)
    rows, centroids = normal_rows(3000, 8, 15), normal_rows(33, 8, 16)
    codebooks = normal_rows(2 * 256, 4, 17).reshape(2, 256, 4)
    assigner = assigner_on(device_number, centroids, codebooks)
    with own.current():
        stream = own.create_stream()
    array = kind(own, rows, stream)
    found = device_rows("rows", array, 8, assigner.stream)
    assert same(assigner.assign_on_device(found.address, found.rows), assigner.assign(rows, 2))
    broken = rows.copy()
    broken[2222, 7] = np.nan
    array = kind(own, broken, stream)
    found = device_rows("rows", array, 8, assigner.stream)
    with pytest.raises(NonFiniteError, match="row 2222"):
        assigner.assign_on_device(found.address, found.rows)


def test_several_devices_share_the_rows(device_number):
    names = ",".join(f"cuda:{each.index}" for each in cuda_status().devices)
    rows, centroids = normal_rows(3001, 8, 18), normal_rows(33, 8, 19)
    assert same(
        assigner_on(names, centroids).assign(rows, 4)[:1], assigner_on(device_number, centroids).assign(rows, 4)[:1]
    )
    rows[2999, 0] = np.nan
    with pytest.raises(NonFiniteError, match="row 2999"):
        assigner_on(names, centroids).assign(rows, 4)


def test_what_a_device_refuses(device_number):
    with pytest.raises(DeviceMemoryError, match=r"finding lists and codes needs \d+ MiB on cuda:0, at hand are 1 MiB"):
        _core.device_assigner(normal_rows(9, 4), None, device=device_number, device_memory=1 << 20)
    with pytest.raises(UnsupportedError, match="no cuda:99"):
        _core.device_assigner(normal_rows(9, 4), None, device="cuda:99")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_an_upgrade_fills_its_index_without_a_gpu_build_of_faiss(
    device_number, tmp_path, with_faiss, metric, monkeypatch
):
    """The rows of h go into the codes where they lie; the file is the one that the CPU makes of them."""
    for module in (gpu_faiss, gpu_builder):
        monkeypatch.setattr(module, "why_no_gpu", lambda device: None if device == "cpu" else "not asked")
    write_gallery(tmp_path / "g", (1500, 37, 1, 1000), old_dim=48, side_dim=None, ids="int", seed=50)
    h = Transformation(linear_map(48, 32, seed=3), "fp32", 1, device=DEVICE)
    files = []
    for place in ("auto", "cpu"):
        settings = Settings(index="IVF8,PQ8np", metric=metric, block_rows=300, index_device=place)
        report = upgrade_gallery(tmp_path / "g", h, tmp_path / place, settings=settings)
        files.append((tmp_path / place / "index.faiss").read_bytes())
        if place == "auto":
            wanted = {"train": "cpu", "add": DEVICE, "rows": DEVICE, "kernels": "the core's: not asked"}
            assert report.index_placement == wanted
    assert len(files[0]) == len(files[1])
    if metric == "l2":  # the norm is rounded otherwise on a device
        assert files[0] == files[1]


def test_a_flat_list_is_filled_from_the_host(device_number, tmp_path, with_faiss):
    builder = gpu_builder.DeviceIndexBuilder("IVF8,Flat", 12, "l2", 1, device_number, MEMORY, "not asked")
    plain = IndexBuilder("IVF8,Flat", 12, "l2", 1)
    rows, ids = normal_rows(900, 12, 20), np.arange(900, dtype=np.int64)
    for each in (builder, plain):
        each.train(rows)
        each.add(rows, ids)
        each.save(tmp_path / type(each).__name__)
    assert builder.placement["add"] == DEVICE and not builder.takes_device_rows
    assert (tmp_path / "DeviceIndexBuilder").read_bytes() == (tmp_path / "IndexBuilder").read_bytes()
