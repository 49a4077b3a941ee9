"""An upgrade whose index is built with a device (FAISS's GPU part played by the CPU): nothing else changes."""

from __future__ import annotations

import gc
import json

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from support.fake_gpu_faiss import FakeDevices
from support.programs import linear_map, random_rows

from fct_infer import load_index
from fct_infer.errors import GalleryError, UnsupportedError
from fct_infer.gallery import GalleryWriter
from fct_infer.transformation import Transformation
from fct_infer.upgrade.run import upgrade_gallery
from fct_infer.upgrade.settings import Settings

ROWS, DIM, ROWS_PER_SHARD = 900, 16, 400
INDEX = "IVF8,PQ4np"
H = Transformation(linear_map(DIM, DIM), "fp32", 1)
TEXT_IDS = np.array([f"item-{number * 7}" for number in range(ROWS)])


@pytest.fixture
def devices(monkeypatch) -> FakeDevices:
    return FakeDevices().install(monkeypatch)


@pytest.fixture
def gallery(tmp_path):
    with GalleryWriter(tmp_path / "gallery", ROWS_PER_SHARD) as writer:
        writer.append(random_rows(ROWS, DIM), None, TEXT_IDS)
    return tmp_path / "gallery"


def upgrade(gallery, name, device="cuda:0", **arguments):
    settings = Settings(index=INDEX, block_rows=128, index_device=device)
    return upgrade_gallery(gallery, H, gallery.with_name(name), settings=settings, **arguments)


def test_the_same_gallery_index_and_text_ids(devices, gallery, monkeypatch):
    # A device runs FAISS's k-means, which the CPU does by kernels of its own.
    monkeypatch.setattr("fct_infer.index.builder.train_index", lambda index, sample, threads, warm: index.train(sample))
    devices.memory = 4 * 8 * DIM + 300 * 12  # after training, so that the lists go to the CPU in parts
    upgrade(gallery, "device")
    upgrade(gallery, "cpu", "cpu")
    device_number, cpu = (gallery.with_name(name) for name in ("device", "cpu"))
    assert devices.moves > 2
    assert (device_number / "index.faiss").read_bytes() == (cpu / "index.faiss").read_bytes()
    placements = [
        json.loads((each / "upgrade_infos.json").read_text())["index_placement"] for each in (device_number, cpu)
    ]
    assert placements == [{"train": "cuda:0", "add": "cuda:0"}, {"train": "cpu", "add": "cpu"}]
    index = load_index(device_number)
    faiss.extract_index_ivf(index.index).nprobe = 8
    rows = np.concatenate([np.load(file) for file in sorted((device_number / "embeddings").iterdir())])
    _, found = index.search(rows, 5)
    assert (found == TEXT_IDS[:, None]).any(axis=1).mean() > 0.8
    gc.collect()
    assert (devices.live, devices.leaked) == ([], 0)


def test_a_run_that_was_stopped_is_resumed_on_the_device(devices, gallery):
    upgrade(gallery, "whole")

    class StopHereError(Exception):
        pass

    def stop(stage, done, rows):
        if stage == "transform" and done > ROWS_PER_SHARD:
            raise StopHereError

    with pytest.raises(StopHereError):
        upgrade(gallery, "stopped", progress=stop)
    gc.collect()
    assert devices.live == []
    assert upgrade(gallery, "stopped").resumed_rows == ROWS_PER_SHARD
    whole, stopped = (gallery.with_name(name) / "index.faiss" for name in ("whole", "stopped"))
    assert stopped.read_bytes() == whole.read_bytes()


def test_nothing_stays_on_the_device_after_bad_input(devices, gallery):
    shard = gallery / "embeddings" / "000001.npy"
    rows = np.load(shard)
    rows[7] = np.nan
    np.save(shard, rows)
    with pytest.raises(GalleryError, match="NaN or infinity"):
        upgrade(gallery, "dest")
    gc.collect()
    assert devices.live == []


def test_a_device_that_faiss_cannot_use_is_an_error_before_anything_is_written(gallery):
    with pytest.raises(UnsupportedError, match=r"an index on cuda:7: "):
        upgrade(gallery, "dest", "cuda:7")
    assert sorted(path.name for path in gallery.parent.iterdir()) == ["gallery"]


def run_command(gallery, index, device):
    from fct_infer.cli.upgrade_gallery import command

    bundle = gallery.with_name("h.onnx")
    pytest.importorskip("onnx")
    from fct_infer.export.graphs.program_graph import program_graph

    bundle.write_bytes(program_graph(linear_map(DIM, DIM)).SerializeToString())
    arguments = [str(gallery), "--transformation", str(bundle), "-o", str(gallery.with_name("dest"))]
    return CliRunner().invoke(command, [*arguments, "--device", "cpu", "--index", index, "--index-device", device])


def test_the_command_says_what_was_not_built_on_the_device(devices, gallery):
    result = run_command(gallery, "Flat", "cuda:0")
    assert result.exit_code == 0, result.output
    assert "; built on cpu: IndexFlat" in result.output.replace("\n", " ")


def test_the_command_names_the_package_too(gallery):
    result = run_command(gallery, INDEX, "cuda:7")
    assert isinstance(result.exception, UnsupportedError)
    assert "an index on cuda:7" in str(result.exception)
