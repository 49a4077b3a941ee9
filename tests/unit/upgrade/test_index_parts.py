"""An index made in parts by workers has the bytes of one machine's; one published in shards answers as one."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from support.bundles import core_bundle
from support.galleries import write_gallery
from support.programs import linear_map, paper_h

from fct_infer import Transformation, load_index, upgrade_gallery
from fct_infer.cli.upgrade_gallery import command
from fct_infer.errors import ResourceError, UsageError
from fct_infer.gallery import read_manifest
from fct_infer.index import read_old_lists
from fct_infer.index.parts import PartBuilder
from fct_infer.index.verify import verify_gallery
from fct_infer.transformation import Linear
from fct_infer.upgrade import index_parts
from fct_infer.upgrade.planning import make_plan
from fct_infer.upgrade.run import _Run
from fct_infer.upgrade.settings import Settings
from fct_infer.upgrade.work import FolderWork
from fct_infer.upgrade.worker import Worker, WorkOrder

H = Transformation(paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1), "fp32", threads=1)
SIZES = (130, 41, 90, 60)
QUERIES = np.random.default_rng(3).standard_normal((20, 10)).astype(np.float32)


class Elsewhere:
    """Workers that get all they know pickled; parts end in the opposite order."""

    name = "elsewhere"
    feeds_index = False

    def __init__(self, fail_after=None):
        self.fail_after, self.orders = fail_after, []

    def check(self, plan):
        WorkOrder.of(plan, 1)

    def run(self, task):
        self.orders.append(task.index)
        with Worker(pickle.loads(pickle.dumps(WorkOrder.of(task.plan, 1, sink=task.sink, index=task.index)))) as worker:
            for number, part in enumerate(reversed(task.parts)):
                if number == self.fail_after:
                    raise KeyboardInterrupt
                task.record(worker.run(part))
        return {}


@pytest.fixture
def gallery(tmp_path):
    write_gallery(tmp_path / "g", SIZES, old_dim=12, side_dim=6, ids="int", seed=1)
    return tmp_path / "g"


@pytest.fixture
def built(monkeypatch):
    """Names of the parts of indexes that were built, in order."""
    names, end = [], PartBuilder.end

    def noted(self, path):
        names.append(path.stem)
        return end(self, path)

    monkeypatch.setattr(PartBuilder, "end", noted)
    return names


def published(dest):
    told = ("upgrade_infos.json", "index_infos.json", "manifest.json")
    files = (path for path in sorted(dest.rglob("*")) if path.is_file() and path.name not in told)
    return {path.relative_to(dest).as_posix(): path.read_bytes() for path in files}


def settings(index="IVF4,PQ2", **others):
    return Settings(index=index, block_rows=40, **others)


@pytest.mark.parametrize("index", ["IVF4,PQ2", "OPQ2,IVF4,PQ2", "PQ2", "IVF4_HNSW4,PQ2", "IVF4_HNSW4,SQ8"])
def test_workers_build_the_parts_and_the_driver_reads_no_row_for_it(tmp_path, gallery, built, monkeypatch, index):
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings(index))
    monkeypatch.setattr(_Run, "_replay", None)
    monkeypatch.setattr(index_parts, "read_block", None)
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings(index), executor=Elsewhere())
    assert built == ["000003", "000002", "000001", "000000"]
    assert published(tmp_path / "new") == published(tmp_path / "threads")
    assert not (tmp_path / "new.partial").exists()


def test_rows_that_are_zero_are_left_out(tmp_path, gallery):
    program = paper_h(old_dim=12, side_dim=6, new_dim=10, inner=16, seed=1)
    steps = [replace(step, bias=0 * step.bias) if isinstance(step, Linear) else step for step in program.steps]
    h = Transformation(replace(program, steps=tuple(steps)), "fp32", threads=1)
    for folder in ("embeddings", "side_information"):
        rows = np.load(gallery / folder / "000001.npy")
        rows[[3, 30]] = 0
        np.save(gallery / folder / "000001.npy", rows)
    asked = settings(metric="cosine")
    upgrade_gallery(gallery, h, tmp_path / "threads", settings=asked)
    report = upgrade_gallery(gallery, h, tmp_path / "new", settings=asked, executor=Elsewhere())
    assert report.index["rows left out"] == 2
    assert published(tmp_path / "new") == published(tmp_path / "threads")


def remove(path):
    path.unlink()


def change(path):
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def begun(tmp_path, gallery, asked):
    """An upgrade whose driver was killed after two of four parts."""
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=Elsewhere(fail_after=2))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_finished_parts_of_the_index_are_used_again(tmp_path, gallery, built, is_sharded):
    asked = settings(sharded_index=is_sharded)
    upgrade_gallery(gallery, H, tmp_path / "one", settings=asked, executor=Elsewhere())
    begun(tmp_path, gallery, asked)
    built.clear()
    upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=Elsewhere())
    assert built == ["000001", "000000"]
    assert published(tmp_path / "new") == published(tmp_path / "one")


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("damage", [remove, change])
def test_a_part_of_the_index_that_was_damaged_is_made_of_what_was_written(tmp_path, gallery, built, damage, is_sharded):
    asked = settings(sharded_index=is_sharded)
    upgrade_gallery(gallery, H, tmp_path / "one", settings=asked, executor=Elsewhere())
    begun(tmp_path, gallery, asked)
    folder = tmp_path / "new.partial" / ("gallery/index" if is_sharded else "index_parts")
    damage(folder / "000003.faiss")
    built.clear()
    upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=Elsewhere())
    assert built == ["000001", "000000", "000003"]
    assert published(tmp_path / "new") == published(tmp_path / "one")


def test_begun_by_threads_ended_elsewhere_and_the_other_way_round(tmp_path, gallery):
    def stop(stage, done, _rows):
        if stage == "transform" and done >= 171:
            raise KeyboardInterrupt

    upgrade_gallery(gallery, H, tmp_path / "one", settings=settings())
    with pytest.raises(KeyboardInterrupt):
        upgrade_gallery(gallery, H, tmp_path / "a", settings=settings(), progress=stop)
    assert upgrade_gallery(gallery, H, tmp_path / "a", settings=settings(), executor=Elsewhere()).resumed_rows
    begun(tmp_path, gallery, settings())
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings())
    assert published(tmp_path / "a") == published(tmp_path / "new") == published(tmp_path / "one")
    assert not (tmp_path / "new.partial").exists()


@pytest.mark.parametrize("index", ["Flat", "HNSW4", "IMI2x2,SQ8"])
def test_what_the_core_does_not_fill_or_has_no_parts_is_built_by_the_driver(tmp_path, gallery, built, index):
    executor = Elsewhere()
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings(index))
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings(index), executor=executor)
    assert executor.orders == [None] and not built
    assert published(tmp_path / "new") == published(tmp_path / "threads")


def test_an_index_that_is_extended_is_built_by_the_driver(tmp_path, gallery, built):
    for name in ("threads", "new"):
        upgrade_gallery(gallery, H, tmp_path / name, settings=settings())
    grow(tmp_path, gallery)
    executor = Elsewhere()
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=settings(), append=True)
    report = upgrade_gallery(gallery, H, tmp_path / "new", settings=settings(), append=True, executor=executor)
    assert "was extended" in report.index_placement["lists"]
    assert executor.orders == [None] and not built
    assert published(tmp_path / "new") == published(tmp_path / "threads")


@pytest.mark.parametrize(
    ("index", "others"), [("IVF4,PQ2", {}), ("Flat", {"metric": "cosine"}), ("IVF4,SQ8", {"format": "parquet"})]
)
def test_an_index_in_shards_answers_as_one_whoever_made_it(tmp_path, gallery, index, others):
    upgrade_gallery(gallery, H, tmp_path / "whole", settings=settings(index, **others))
    asked = settings(index, sharded_index=True, **others)
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=asked)
    report = upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=Elsewhere())
    assert published(tmp_path / "new") == published(tmp_path / "threads")
    names = {f"index/{number:06d}.faiss" for number in range(4)} | {"index.json", "index_trained.faiss"}
    files = read_manifest(tmp_path / "new").files
    assert names < set(files) and "index.faiss" not in files
    assert report.index["index_path"] == "index.json"
    assert report.index["size in bytes"] == sum(files[name].size for name in names)
    check = verify_gallery(tmp_path / "new")
    assert check.index_opened and not check.damaged and not check.surplus
    found = [load_index(tmp_path / name).search(QUERIES, 5) for name in ("new", "whole")]
    for mine, wanted in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, wanted)


def grow(tmp_path, gallery):
    """Add a shard to a gallery."""
    write_gallery(tmp_path / "more", (*SIZES, 50), old_dim=12, side_dim=6, ids="int", seed=1)
    for path in (tmp_path / "more").rglob("000004.npy"):
        shutil.copy(path, gallery / path.relative_to(tmp_path / "more"))


def test_an_index_in_shards_grows_by_a_shard(tmp_path, gallery, built):
    asked = settings(sharded_index=True)
    for name, of_index in (("new", asked), ("threads", asked), ("whole", settings())):
        upgrade_gallery(gallery, H, tmp_path / name, settings=of_index)
    before = published(tmp_path / "new")
    grow(tmp_path, gallery)
    built.clear()
    report = upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, append=True, executor=Elsewhere())
    assert built == ["000004"]
    assert "was extended" in report.index_placement["lists"]
    after = published(tmp_path / "new")
    del before["index.json"]
    assert {name: after[name] for name in before} == before
    assert not verify_gallery(tmp_path / "new").damaged
    upgrade_gallery(gallery, H, tmp_path / "threads", settings=asked, append=True)
    assert published(tmp_path / "threads") == after
    upgrade_gallery(gallery, H, tmp_path / "whole", settings=settings(), append=True)
    found = [load_index(tmp_path / name).search(QUERIES, 5) for name in ("new", "whole")]
    for mine, wanted in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize(("damaged", "made"), [("index/000001.faiss", 2), ("index_trained.faiss", 5)])
def test_of_an_index_in_shards_that_grows_what_was_damaged_is_made_again(tmp_path, gallery, built, damaged, made):
    asked = settings(sharded_index=True)
    upgrade_gallery(gallery, H, tmp_path / "new", settings=asked)
    grow(tmp_path, gallery)
    change(tmp_path / "new" / damaged)
    built.clear()
    upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, append=True)
    assert len(built) == made
    assert not verify_gallery(tmp_path / "new").damaged


def test_shards_are_no_beginning_of_an_index_in_one_file(tmp_path, gallery):
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings(sharded_index=True))
    grow(tmp_path, gallery)
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings(), append=True)
    upgrade_gallery(gallery, H, tmp_path / "whole", settings=settings())
    assert published(tmp_path / "new") == published(tmp_path / "whole")


def test_an_index_in_shards_may_be_larger_than_memory(tmp_path, gallery, monkeypatch):
    whole = make_plan(gallery, H, tmp_path / "new", settings("IVF4,SQ8"))
    sharded = make_plan(gallery, H, tmp_path / "new", settings("IVF4,SQ8", sharded_index=True))
    assert sharded.memory_bytes < whole.memory_bytes
    monkeypatch.setattr("fct_infer.upgrade.plan.usable_memory", lambda: sharded.memory_bytes)
    with pytest.raises(ResourceError, match="--sharded-index"):
        upgrade_gallery(gallery, H, tmp_path / "new", settings=settings("IVF4,SQ8"))
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings("IVF4,SQ8", sharded_index=True))
    monkeypatch.setattr("fct_infer.index.gallery_index.usable_memory", lambda: 0)
    assert load_index(tmp_path / "new").search(QUERIES, 3)[1].shape == (20, 3)


@pytest.mark.parametrize(
    ("dest", "index", "message"),
    [
        ("new", "none", "and index is none"),
        ("new", "HNSW8", "cannot be built in parts"),
        ("memory://bucket/new", "IVF4,PQ2", "in a folder"),
    ],
)
def test_shards_that_make_no_sense(tmp_path, gallery, dest, index, message):
    dest = dest if "://" in dest else tmp_path / dest
    with pytest.raises(UsageError, match=message):
        upgrade_gallery(gallery, H, dest, settings=settings(index, sharded_index=True))


def test_the_infos_say_how_it_was_built(tmp_path, gallery):
    upgrade_gallery(gallery, H, tmp_path / "new", settings=settings(), executor=Elsewhere())
    infos = json.loads((tmp_path / "new" / "upgrade_infos.json").read_text())
    assert infos["index_placement"] == {"train": "cpu", "add": "cpu, in parts"}


@pytest.mark.parametrize("is_sharded", [False, True])
def test_more_parts_than_may_be_open_at_once_are_merged_first(tmp_path, gallery, monkeypatch, is_sharded):
    """Four parts of four lists each, two by two."""
    asked = settings(sharded_index=is_sharded)
    upgrade_gallery(gallery, H, tmp_path / "whole", settings=settings())
    monkeypatch.setattr("fct_infer.index.parts.MOST_LISTS", 8)
    upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=Elsewhere())
    shards = {f"index/merged-0-{number:06d}.faiss" for number in range(2)} if is_sharded else set()
    assert {name for name in published(tmp_path / "new") if name.startswith("index/")} == shards
    assert not verify_gallery(tmp_path / "new").surplus
    if not is_sharded:
        assert published(tmp_path / "new") == published(tmp_path / "whole")
    found = [load_index(tmp_path / name).search(QUERIES, 5) for name in ("new", "whole")]
    for mine, wanted in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_an_index_in_shards_may_be_the_old_index_of_another(tmp_path, gallery):
    upgrade_gallery(gallery, H, tmp_path / "whole", settings=settings())
    upgrade_gallery(gallery, H, tmp_path / "shards", settings=settings(sharded_index=True))
    whole, shards = (read_old_lists(tmp_path / name, sum(SIZES)) for name in ("whole", "shards"))
    assert shards.count == whole.count == 4
    np.testing.assert_array_equal(shards.labels, whole.labels)
    np.testing.assert_array_equal(shards.lists, whole.lists)


def test_from_the_command_line(tmp_path, gallery):
    core_bundle(linear_map(12, 10), tmp_path / "h")
    shutil.rmtree(gallery / "side_information")
    arguments = [str(gallery), "--transformation", str(tmp_path / "h"), "-o", str(tmp_path / "new")]
    done = CliRunner().invoke(command, [*arguments, "--index", "IVF4,SQ8", "--sharded-index"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert load_index(tmp_path / "new").rows == sum(SIZES)
    assert (tmp_path / "new" / "index" / "000003.faiss").exists()


@pytest.mark.parametrize("when", ["verify", "finish"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_killed_after_parts_were_gathered(tmp_path, gallery, monkeypatch, is_sharded, when):
    def verify(stage, _done, _rows):
        if stage == when:
            raise KeyboardInterrupt

    def finish(*_):
        raise KeyboardInterrupt

    asked = settings(sharded_index=is_sharded)
    monkeypatch.setattr("fct_infer.index.parts.MOST_LISTS", 8)  # so that parts are merged, and dropped
    upgrade_gallery(gallery, H, tmp_path / "one", settings=asked, executor=Elsewhere())
    with monkeypatch.context() as patch:
        if when == "finish":
            patch.setattr(FolderWork, "finish", finish)
        with pytest.raises(KeyboardInterrupt):
            upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=Elsewhere(), progress=verify)
    executor = Elsewhere()
    report = upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=executor)
    assert report.resumed_rows == sum(SIZES)
    assert published(tmp_path / "new") == published(tmp_path / "one")
    assert not verify_gallery(tmp_path / "new").surplus


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_part_that_was_changed_behind_its_record_is_made_again(tmp_path, gallery, built, is_sharded):
    class Zombie(Elsewhere):
        def run(self, task):
            super().run(task)
            change(task.index.path("000001"))
            return {}

    asked = settings(sharded_index=is_sharded)
    upgrade_gallery(gallery, H, tmp_path / "one", settings=asked, executor=Elsewhere())
    built.clear()
    upgrade_gallery(gallery, H, tmp_path / "new", settings=asked, executor=Zombie())
    assert built == ["000003", "000002", "000001", "000000", "000001"]
    assert published(tmp_path / "new") == published(tmp_path / "one")
