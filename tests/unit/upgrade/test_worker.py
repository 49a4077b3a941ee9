"""Parts done by other processes, and out of order: the same bytes, whoever does them."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.galleries import write_gallery
from support.programs import linear_map, paper_h
from support.servers import s3_bucket

from fct_infer import Transformation, open_source, upgrade_gallery
from fct_infer.connectors import SourceOptions
from fct_infer.errors import ArtifactError, GalleryError, ResourceError, UnsupportedError, UsageError
from fct_infer.gallery import Gallery
from fct_infer.gallery.url_place import UrlPlace
from fct_infer.index.parts import IndexOrder
from fct_infer.storage import location, objects
from fct_infer.storage.objects import read_object
from fct_infer.upgrade.executor import PartDone, Task
from fct_infer.upgrade.plan import Plan
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.worker import Worker, WorkOrder

H = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), "fp32", threads=1)


def run_part(data: bytes) -> bytes:
    """In another process: open what the order says, do one part."""
    order, part = pickle.loads(data)
    with Worker(order) as worker:
        return pickle.dumps(worker.run(part))


class Processes:
    """An executor of processes that share nothing but files; parts end in the opposite order, some twice."""

    name = "processes"
    feeds_index = False

    def __init__(self, pool: ProcessPoolExecutor, fail_after: int | None = None) -> None:
        self.pool, self.fail_after = pool, fail_after
        self.ran: list[str] = []

    def check(self, plan: Plan) -> None:
        WorkOrder.of(plan)

    def run(self, task: Task) -> dict[str, float]:
        order = WorkOrder.of(task.plan, threads=1, sink=task.sink, index=task.index)
        parts = [*reversed(task.parts), task.parts[0]]
        for number, part in enumerate(parts):  # one at a time: where this ends early, nobody writes any more
            if number == self.fail_after:
                raise KeyboardInterrupt
            done: PartDone = pickle.loads(self.pool.submit(run_part, pickle.dumps((order, part))).result())
            assert done.worker
            self.ran.append(done.part.name)
            task.record(done)
        return {}


def written(dest):
    """All that an upgrade promises to be repeatable; the infos hold times."""
    files = (path for path in sorted(dest.rglob("*")) if path.is_file())
    told = ("upgrade_infos.json", "index_infos.json", "manifest.json")
    return {str(path.relative_to(dest)): path.read_bytes() for path in files if path.name not in told}


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def gallery(tmp_path):
    write_gallery(tmp_path / "g", (130, 41, 90), old_dim=12, side_dim=6, ids="int", seed=1)
    return tmp_path / "g"


@pytest.mark.parametrize("index", ["none", "IVF4,PQ2"])
def test_the_same_bytes_as_threads_also_when_resumed(tmp_path, gallery, pool, index):
    settings = Settings(index=index, block_rows=40)
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(gallery, H, tmp_path / "new", settings=settings, executor=Processes(pool, fail_after=1))
    others = Processes(pool)
    report = upgrade_gallery(gallery, H, tmp_path / "new", settings=settings, executor=others)
    assert others.ran == ["000001", "000000", "000000"]
    assert report.resumed_rows == 90
    assert written(tmp_path / "new") == written(tmp_path / "threads")
    infos = json.loads((tmp_path / "new" / "upgrade_infos.json").read_text())
    assert infos["execution"]["executor"] == "processes"


def test_begun_by_processes_ended_by_threads(tmp_path, gallery, pool):
    settings = Settings(index="IVF4,PQ2", block_rows=40)
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(gallery, H, tmp_path / "new", settings=settings, executor=Processes(pool, fail_after=2))
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings)
    assert written(tmp_path / "new") == written(tmp_path / "threads")


def test_what_a_writer_that_was_given_up_left_is_not_published(tmp_path, gallery, pool):
    class Leaving(Processes):
        def run(self, task: Task) -> dict[str, float]:
            times = super().run(task)
            (tmp_path / "new.partial" / "gallery" / "embeddings" / "000001.npy.host-1-ab.tmp").write_bytes(b"half")
            return times

    settings = Settings(index="Flat", block_rows=40)
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings)
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings, executor=Leaving(pool))
    assert written(tmp_path / "new") == written(tmp_path / "threads")


def test_parquet_with_what_is_carried_along(tmp_path, pool):
    rng = np.random.default_rng(0)
    table = pa.table({
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(300 * 12, np.float32)), 12),
        "side": pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(300 * 6, np.float32)), 6),
        "title": [f"item {row}" for row in range(300)],
    })  # fmt: skip
    pa.parquet.write_table(table, tmp_path / "items.parquet", row_group_size=100)
    settings = Settings(index="none", block_rows=40, format="parquet")
    for name, executor in (("threads", None), ("processes", Processes(pool))):
        upgrade_gallery(tmp_path / "items.parquet", H, tmp_path / name, settings=settings, executor=executor)
    assert written(tmp_path / "processes") == written(tmp_path / "threads")


@pytest.fixture(scope="module")
def store():
    """A server, and a pool whose processes know its address."""
    context = multiprocessing.get_context("spawn")
    with s3_bucket() as s3, ProcessPoolExecutor(1, mp_context=context) as pool:
        yield s3, pool


def stored(url):
    """All that an upgrade in a store promises to be repeatable."""
    folder = UrlPlace(location(url)).current()[1]
    told = ("upgrade_infos.json", "index_infos.json", "manifest.json")
    found = {path.relative_to(folder).as_posix(): read_object(path) for path in folder.rglob("*")}
    return {name: data for name, data in found.items() if name not in told}


def test_into_an_object_store_also_when_resumed(tmp_path, gallery, store):
    settings, url = Settings(index="IVF4,PQ2", block_rows=40), "s3://bucket/new"
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(gallery, H, url, settings=settings, executor=Processes(store[1], fail_after=1))
    others = Processes(store[1])
    assert upgrade_gallery(gallery, H, url, settings=settings, executor=others).resumed_rows == 90
    assert others.ran == ["000001", "000000", "000000"]
    assert stored(url) == written(tmp_path / "threads")
    assert not store[0].find("bucket/new/.partial")


def test_two_writers_of_one_object_send_pieces_of_their_own(tmp_path, store, monkeypatch):
    """Of one that was given up some pieces are there; another puts the object; then it comes to its end, or never."""
    monkeypatch.setattr(objects, "PIECE_BYTES", 5 << 20)
    write_gallery(tmp_path / "g", (5000, 50), old_dim=12, seed=1)
    h = Transformation(linear_map(12, 400, seed=1), "fp32", threads=1)
    settings = Settings(index="none", block_rows=2000)
    upgrade_gallery(tmp_path / "g", h, tmp_path / "threads", settings=settings)
    given_up = []

    class Twice(Processes):
        def run(self, task: Task) -> dict[str, float]:
            part = task.parts[0]
            rows = np.load(tmp_path / "threads" / "embeddings" / f"{part.name}.npy")
            for _ in range(2):
                given_up.append(task.sink.open(task.plan.gallery).open_part(part))
                given_up[-1].write(rows[:3000])
            times = super().run(task)
            given_up[0].write(rows[3000:])
            given_up[0].commit()
            return times

    upgrade_gallery(tmp_path / "g", h, "s3://bucket/twice", settings=settings, executor=Twice(store[1]))
    given_up[1].abort()
    assert stored("s3://bucket/twice") == written(tmp_path / "threads")
    assert not store[0].call_s3("list_multipart_uploads", Bucket="bucket", Prefix="twice/").get("Uploads")


def put_in_pieces(s3, name: str, data: bytes) -> None:
    """Put an object as a multipart upload of one part, whose etag is another one."""
    place = {"Bucket": "bucket", "Key": name}
    upload = {**place, "UploadId": s3.call_s3("create_multipart_upload", **place)["UploadId"]}
    etag = s3.call_s3("upload_part", **upload, PartNumber=1, Body=data)["ETag"]
    s3.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})


def test_an_object_put_once_more_is_checked_by_its_bytes(tmp_path, gallery, store):
    settings, url = Settings(index="none", block_rows=40), "s3://bucket/more"
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings)

    class PutAgain(Processes):
        def __init__(self, pool, change):
            super().__init__(pool)
            self.change = change

        def run(self, task: Task) -> dict[str, float]:
            times = super().run(task)
            path = task.sink.folder / "embeddings" / "000001.npy"
            before, data = path.info()["etag"], read_object(path)
            put_in_pieces(store[0], path.relative_to("s3:/bucket").as_posix(), self.change(data))
            assert path.info()["etag"] != before
            return times

    def last_bit(data: bytes) -> bytes:  # of a value's mantissa: what no comparison of directions sees
        return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]

    with pytest.raises(ResourceError, match="is not what was put there"):
        upgrade_gallery(gallery, H, url, settings=settings, executor=PutAgain(store[1], last_bit))
    upgrade_gallery(gallery, H, url, settings=settings, executor=PutAgain(store[1], bytes))
    assert stored(url) == written(tmp_path / "threads")


def test_a_store_of_this_process_only_is_refused_before_any_work(gallery, pool):
    settings = Settings(index="none", block_rows=40)
    with pytest.raises(UsageError, match="other processes do not see it"):
        upgrade_gallery(gallery, H, "memory://store/new", settings=settings, executor=Processes(pool))
    assert not list(location("memory://store").rglob("*"))


def test_into_a_column_of_a_lance_data_set(tmp_path, pool):
    lance = pytest.importorskip("lance")
    rng = np.random.default_rng(0)
    table = pa.table({
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(300 * 12, np.float32)), 12),
        "side": pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(300 * 6, np.float32)), 6),
    })  # fmt: skip
    lance.write_dataset(table, str(tmp_path / "items.lance"), max_rows_per_file=100)
    settings = Settings(index="none", block_rows=40)
    for column, executor in (("threads", None), ("processes", Processes(pool))):
        dest = f"{tmp_path / 'items.lance'}?column={column}"
        source = open_source(tmp_path / "items.lance", SourceOptions("vector", side_column="side"))
        upgrade_gallery(source, H, dest, settings=settings, executor=executor)
    made = lance.dataset(str(tmp_path / "items.lance")).to_table()
    assert made["processes"].equals(made["threads"])


def order_of(gallery, dest) -> tuple[Plan, WorkOrder]:
    plan = make_plan(gallery, H, dest, Settings(index="none", block_rows=40))
    work = plan.destination.open_work(plan, restart=False, force=False, progress=None)
    work.close()
    return plan, WorkOrder.of(plan, threads=1, sink=work.sink_spec())


def test_two_writers_of_one_part_do_not_see_each_other(tmp_path, gallery):
    plan, order = order_of(gallery, tmp_path / "new")
    part = plan.gallery.parts()[0]
    file = tmp_path / "new.partial" / "gallery" / "embeddings" / f"{part.name}.npy"
    with Worker(order) as first:
        sink = order.sink.open(first.computation.gallery)
        given_up = sink.open_part(part)
        given_up.write(np.zeros((40, 10), np.float32))
        with Worker(order) as second:
            done = second.run(part)
        before = file.read_bytes()
        given_up.abort()
        sink.close()
        assert file.read_bytes() == before
        assert first.run(part).files == done.files
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_changed_source_is_refused(tmp_path, gallery):
    _, order = order_of(gallery, tmp_path / "new")
    np.save(gallery / "embeddings" / "000001.npy", np.ones((40, 12), np.float32))
    np.save(gallery / "side_information" / "000001.npy", np.ones((40, 6), np.float32))
    np.save(gallery / "ids" / "000001.npy", np.arange(40))
    with pytest.raises(GalleryError, match="was changed while the gallery was upgraded"):
        Worker(order)


def test_one_that_cannot_begin_closes_its_source_and_writes_as_before(tmp_path, gallery, monkeypatch):
    _, order = order_of(gallery, tmp_path / "new")
    closed, names = [], []
    monkeypatch.setattr(Gallery, "close", lambda opened: closed.append(opened.path))
    monkeypatch.setattr("fct_infer.upgrade.worker.write_under", names.append)
    trained = IndexOrder("IVF4,PQ2", 10, "l2", tmp_path / "trained.faiss", "0" * 64, tmp_path)
    with pytest.raises(ArtifactError, match=r"trained\.faiss"):
        Worker(replace(order, index=trained))
    assert closed == [gallery]
    assert len(names) == 2 and names[-1] is None


def test_a_row_that_is_not_finite_is_named(tmp_path, gallery):
    plan, order = order_of(gallery, tmp_path / "new")
    rows = np.load(gallery / "embeddings" / "000001.npy")
    rows[7, 3] = np.nan
    np.save(gallery / "embeddings" / "000001.npy", rows)
    with Worker(order) as worker, pytest.raises(GalleryError, match=r"000001\.npy: row 7 holds NaN"):
        worker.run(plan.gallery.parts()[1])


def test_another_part_of_the_same_name_is_refused(tmp_path, gallery):
    plan, order = order_of(gallery, tmp_path / "new")
    part = type(plan.gallery.parts()[0])("000001", 40, 130, gallery / "x.npy", None, None)
    with Worker(order) as worker, pytest.raises(UsageError, match="000001"):
        worker.run(part)


def test_other_kernels_are_refused_unless_accepted(tmp_path, gallery):
    _, order = order_of(gallery, tmp_path / "new")
    other = replace(order, kernels="another CPU's")
    with pytest.raises(UnsupportedError, match="another CPU's"):
        Worker(other)
    with Worker(replace(order, kernels=None)) as worker:
        assert worker.name
