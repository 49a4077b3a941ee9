"""The loop from images to a published gallery."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.faults import FullDisk
from support.images import PLAIN, load_threads, numpy_embedder, random_pixels, write_images

from fct_infer.embedding import embed_gallery
from fct_infer.embedding.embed_gallery import load_ahead
from fct_infer.embedding.preprocessing import preprocess
from fct_infer.errors import FctError, InputError, OutputError, ResourceError, UsageError
from fct_infer.gallery import Gallery
from fct_infer.storage import FileLock, use_filesystem

SMALL = replace(PLAIN, size=(4, 4), resize=5)


@pytest.fixture
def photos(tmp_path) -> dict[str, np.ndarray]:
    return write_images(tmp_path / "photos", 23)


def shards(gallery: Path, folder: str) -> list[np.ndarray]:
    return [np.load(path) for path in sorted((gallery / folder).iterdir())]


def whole(gallery: Path, folder: str) -> np.ndarray:
    return np.concatenate(shards(gallery, folder))


def embedded(pixels: dict[str, np.ndarray], model, recipe=PLAIN) -> np.ndarray:
    return np.concatenate([model(preprocess(Image.fromarray(image), recipe, "x")[None]) for image in pixels.values()])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_rows_ids_and_shards_are_those_of_the_images_in_order(tmp_path, photos):
    model, calls = numpy_embedder(), []
    report = embed_gallery(
        tmp_path / "photos",
        tmp_path / "g",
        model,
        batch_size=4,
        rows_per_shard=5,
        progress=lambda *call: calls.append(call),
    )
    assert model._runner.batch_sizes == [4] * 5 + [3]
    assert [len(shard) for shard in shards(tmp_path / "g", "embeddings")] == [5, 5, 5, 5, 3]
    assert np.array_equal(whole(tmp_path / "g", "embeddings"), embedded(photos, numpy_embedder()))
    assert whole(tmp_path / "g", "ids").tolist() == list(photos)
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == ["embeddings", "ids"]
    assert calls[0] == ("embed", 0, 23) and calls[-1] == ("embed", 23, 23)
    assert (report.rows, report.shards, report.skipped, report.ids) == (23, 5, 0, "path")
    assert (report.embedding_dim, report.side_dim, report.dtype) == (6, None, "float32")
    assert report.next_command == f"fct-upgrade-gallery {tmp_path}/g --transformation BUNDLE -o DEST"
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["models"] == [
        {"kind": "backbone", "model_version": "m1", "dim": 6, "backend": "numpy", "device": "cpu", "precision": "fp32"}
    ]
    assert not load_threads()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "g"}


def test_the_result_does_not_depend_on_batches_or_threads(tmp_path, photos):
    for number, (batch_size, threads) in enumerate([(1, 1), (7, 3), (64, 2)]):
        embed_gallery(
            tmp_path / "photos", tmp_path / f"{number}", numpy_embedder(), batch_size=batch_size, threads=threads
        )
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


def test_ids_are_equally_wide_in_every_shard(tmp_path):
    write_images(tmp_path / "photos", 3, "{}.png")
    write_images(tmp_path / "photos", 2, "z/very/deep/{}.png")
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), batch_size=1, rows_per_shard=2)
    assert {shard.dtype for shard in shards(tmp_path / "g", "ids")} == {np.dtype("U17")}
    assert Gallery.open(tmp_path / "g").id_dtype == np.dtype("U17")


def test_side_models_set_their_columns_side_by_side_each_with_its_own_preprocessing(tmp_path, photos):
    first, second = numpy_embedder(3, SMALL, kind="side-information", version="s1"), numpy_embedder(2, version="s2")
    report = embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), [first, second], batch_size=8)
    side = whole(tmp_path / "g", "side_information")
    assert np.array_equal(side[:, :3], embedded(photos, numpy_embedder(3, SMALL), SMALL))
    assert np.array_equal(side[:, 3:], embedded(photos, numpy_embedder(2)))
    assert np.array_equal(whole(tmp_path / "g", "embeddings"), embedded(photos, numpy_embedder()))
    assert report.side_dim == 5
    assert [model.model_version for model in report.models] == ["m1", "s1", "s2"]


def test_float16_halves_the_gallery(tmp_path, photos):
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), [numpy_embedder(2)], dtype="float16")
    assert np.array_equal(whole(tmp_path / "g", "embeddings"), embedded(photos, numpy_embedder()).astype(np.float16))
    assert whole(tmp_path / "g", "side_information").dtype == np.float16


def test_arrays_have_row_numbers_and_no_ids(tmp_path):
    pixels = np.stack([random_pixels(seed, *PLAIN.size) for seed in range(9)])
    np.save(tmp_path / "a.npy", pixels)
    report = embed_gallery(tmp_path / "a.npy", tmp_path / "g", numpy_embedder(), batch_size=4)
    assert report.ids == "row" and not (tmp_path / "g" / "ids").exists()
    wanted = embedded(dict(enumerate(pixels)), numpy_embedder())
    assert np.array_equal(whole(tmp_path / "g", "embeddings"), wanted)
    with pytest.raises(UsageError, match="images of an array have no paths"):
        embed_gallery(tmp_path / "a.npy", tmp_path / "h", numpy_embedder(), ids="path")


def test_files_can_go_by_row_number(tmp_path, photos):
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), ids="row")
    assert not (tmp_path / "g" / "ids").exists()


def break_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:-30])


def test_a_broken_image_stops_the_run_and_leaves_nothing(tmp_path, photos):
    break_images(tmp_path / "photos", "007.png")
    with pytest.raises(InputError, match=r"photos/007\.png: "):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), batch_size=2, rows_per_shard=2)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert not load_threads()


def test_broken_images_are_left_out_on_request_named_and_counted(tmp_path, photos):
    broken, reasons = ("000.png", "007.png", "008.png", "022.png"), []
    break_images(tmp_path / "photos", *broken)
    report = embed_gallery(
        tmp_path / "photos", tmp_path / "g", numpy_embedder(), batch_size=5, on_error="skip", on_skip=reasons.append
    )
    left = {name: pixels for name, pixels in photos.items() if name not in broken}
    assert whole(tmp_path / "g", "ids").tolist() == list(left)
    assert np.array_equal(whole(tmp_path / "g", "embeddings"), embedded(left, numpy_embedder()))
    assert (report.rows, report.skipped) == (19, 4)
    assert [reason.split(": ")[0] for reason in reasons] == [str(tmp_path / "photos" / name) for name in broken]


def test_row_numbers_survive_images_that_are_left_out(tmp_path):
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 12), np.float32)
    images[2, 1, 3, 4], images[5, 0, 0, 0] = np.nan, np.inf
    np.save(tmp_path / "a.npy", images)
    report = embed_gallery(tmp_path / "a.npy", tmp_path / "g", numpy_embedder(), batch_size=2, on_error="skip")
    assert (report.rows, report.skipped) == (4, 2)
    assert whole(tmp_path / "g", "ids").tolist() == [0, 1, 3, 4]
    with pytest.raises(InputError, match=r"a\.npy: row 2 holds NaN or infinity"):
        embed_gallery(tmp_path / "a.npy", tmp_path / "h", numpy_embedder())


def test_if_no_image_can_be_read_there_is_no_gallery(tmp_path, photos):
    break_images(tmp_path / "photos", *photos)
    with pytest.raises(InputError, match=r"none of the 23 images could be read; the last: .*022\.png: "):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), on_error="skip")
    assert not (tmp_path / "g").exists()


def spoiling(value: float, when: float):
    """A model that makes ``value`` of the image whose first number is ``when``."""

    def compute(images: np.ndarray) -> np.ndarray:
        vectors = images.mean(axis=2).reshape(len(images), -1)[:, :6].copy()
        vectors[images[:, 0, 0, 0] == when, 1] = value
        return vectors

    return compute


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float32", "its embedding by backbone model m1 holds NaN or infinity"),
        (-70_000, "float16", "its embedding by backbone model m1 reaches 70000, float16 ends at 65504; use float32"),
    ],
)
@pytest.mark.parametrize("on_error", ["fail", "skip"])  # a model that fails is no broken image
def test_an_embedding_that_cannot_be_stored_names_its_image(value, dtype, message, on_error, tmp_path, photos):
    when = preprocess(Image.fromarray(photos["013.png"]), PLAIN, "x")[0, 0, 0]
    model = numpy_embedder(compute=spoiling(value, when))
    with pytest.raises(InputError, match=rf"photos/013\.png: {message}"):
        embed_gallery(tmp_path / "photos", tmp_path / "g", model, batch_size=4, dtype=dtype, on_error=on_error)
    if dtype == "float16":
        embed_gallery(tmp_path / "photos", tmp_path / "g", model, batch_size=4)


def test_an_existing_gallery_is_replaced_only_on_request_and_only_by_a_whole_one(tmp_path, photos):
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder())
    before = contents(tmp_path / "g")
    with pytest.raises(OutputError, match="exists already; --force"):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(2))
    break_images(tmp_path / "photos", "022.png")
    with pytest.raises(InputError):
        embed_gallery(
            tmp_path / "photos", tmp_path / "g", numpy_embedder(2), batch_size=2, rows_per_shard=2, force=True
        )
    assert contents(tmp_path / "g") == before
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(2), force=True, on_error="skip")
    assert whole(tmp_path / "g", "embeddings").shape == (22, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "g"}


def test_a_full_disk_leaves_the_old_gallery_and_nothing_else(tmp_path, photos):
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder())
    before = contents(tmp_path / "g")
    with use_filesystem(FullDisk(1000)), pytest.raises(ResourceError, match="the disk is full"):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), rows_per_shard=2, batch_size=2, force=True)
    assert contents(tmp_path / "g") == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "g"}


def test_what_a_killed_run_left_is_replaced_and_other_work_is_not(tmp_path, photos):
    left = tmp_path / "g.partial" / "gallery" / "embeddings" / "000000.npy"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a shard")
    (tmp_path / "g.partial" / "lock").touch()
    embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder())
    assert Gallery.open(tmp_path / "g").rows == 23 and not (tmp_path / "g.partial").exists()

    journal = tmp_path / "h.partial" / "journal.jsonl"  # of an upgrade
    journal.parent.mkdir()
    journal.touch()
    with pytest.raises(OutputError, match=r"h\.partial: exists and is not what a killed run leaves behind"):
        embed_gallery(tmp_path / "photos", tmp_path / "h", numpy_embedder())
    assert journal.exists()


def test_a_gallery_that_appears_meanwhile_is_not_overwritten(tmp_path, photos):
    def appearing(images: np.ndarray) -> np.ndarray:
        write_images(tmp_path / "g" / "embeddings", 1)
        return np.zeros((len(images), 6))

    with pytest.raises(OutputError, match="exists already"):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(compute=appearing))
    assert list(contents(tmp_path / "g")) == ["embeddings/000.png"]


def test_of_two_runs_one_wins(tmp_path, photos):
    with FileLock(tmp_path / "g.partial" / "lock", "it"), pytest.raises(OutputError, match="in use by another process"):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder())
    assert not (tmp_path / "g").exists()


def test_force_replaces_nothing_but_a_gallery_and_never_its_own_input(tmp_path, photos):
    gallery = tmp_path / "g"
    (gallery / "embeddings").mkdir(parents=True)
    write_images(gallery / "ids", 1)
    model = numpy_embedder()
    with pytest.raises(UsageError, match=r"g: holds the input 1 .*, which would be replaced"):
        embed_gallery(gallery / "ids", gallery, model, force=True)
    with pytest.raises(UsageError, match=r"photos: is the input 1"):
        embed_gallery(tmp_path / "photos", tmp_path / "photos", model, force=True)
    with pytest.raises(UsageError, match=r"lies inside the input 1"):
        embed_gallery(tmp_path / "photos", tmp_path / "photos" / "new", model)
    write_images(tmp_path / "others", 1)
    with pytest.raises(OutputError, match=r"others: it holds more than a gallery \(000\.png\), so it is not replaced"):
        embed_gallery(tmp_path / "photos", tmp_path / "others", model, force=True)
    (tmp_path / "link").symlink_to(gallery)
    with pytest.raises(OutputError, match="is a link"):
        embed_gallery(tmp_path / "photos", tmp_path / "link", model, force=True)
    with pytest.raises(OutputError, match="cannot be read as a folder"):
        embed_gallery(tmp_path / "photos", tmp_path / "others" / "000.png", model, force=True)
    assert len(list((tmp_path / "photos").iterdir())) == 23 and (gallery / "ids" / "000.png").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, wanted at least 1"),
        ({"threads": 0}, "threads is 0, wanted at least 1"),
        ({"rows_per_shard": 0}, "rows_per_shard is 0, wanted at least 1"),
        ({"dtype": "int8"}, "dtype is 'int8', wanted one of float32, float16"),
        ({"on_error": "ignore"}, "on_error is 'ignore', wanted one of fail, skip"),
        ({"ids": "name"}, "ids is 'name', wanted one of path, row"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path, photos):
    with pytest.raises(UsageError, match=message):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(), **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_side_information_model_does_not_make_the_embeddings(tmp_path, photos):
    with pytest.raises(UsageError, match="model m1 makes side-information"):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(kind="side-information"))


def test_an_interrupt_in_the_model_leaves_nothing_behind(tmp_path, photos):
    def interrupted(images: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_gallery(tmp_path / "photos", tmp_path / "g", numpy_embedder(compute=interrupted), batch_size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert not load_threads()


def test_results_come_in_order_however_long_each_takes():
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number

    assert list(load_ahead(slow_at_first, 20, threads=4, ahead=6)) == list(range(20))


def test_no_more_than_the_look_ahead_is_loaded_before_it_is_wanted():
    begun, lock = [], threading.Lock()

    def load(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    results = load_ahead(load, 100, threads=3, ahead=7)
    for taken in range(1, 20):
        next(results)
        time.sleep(0.005)
        assert len(begun) <= taken + 7
    results.close()
    assert len(begun) < 30 and not load_threads()


def test_what_is_not_begun_when_the_results_are_closed_never_is():
    begun = []

    def slow(number: int) -> int:
        begun.append(number)
        time.sleep(0.02)
        return number

    results = load_ahead(slow, 1000, threads=1, ahead=100)
    assert next(results) == 0
    results.close()
    assert len(begun) < 10 and not load_threads()


def test_an_error_in_a_thread_arrives_in_its_turn_and_ends_the_rest():
    def load(number: int) -> int:
        if number == 5:
            raise InputError("five")
        return number

    results = load_ahead(load, 1000, threads=2, ahead=4)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(FctError, match="five"):
        next(results)
    assert not load_threads()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Peak of NumPy's and Python's memory, from one run to another of four times the images."""
    import tracemalloc

    images = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (1600, 64, 64, 3))
    images.flush()
    recipe = replace(PLAIN, size=(64, 64))
    peaks = []
    for count in (400, 1600):
        path = tmp_path / f"{count}.npy"
        np.save(path, images[:count])
        tracemalloc.start()
        embed_gallery(
            path, tmp_path / f"g{count}", numpy_embedder(preprocessing=recipe), batch_size=16, rows_per_shard=64
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        path.unlink()
    assert peaks[1] < 1.2 * peaks[0] < 16 * 2**20
