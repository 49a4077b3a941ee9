"""Finding images and reading them from files and arrays."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import PLAIN, image_bytes, numpy_embedder, random_pixels, write_images

from fct_infer.artifacts.manifest import Preprocessing
from fct_infer.embedding.images import open_images
from fct_infer.embedding.preprocessing import preprocess
from fct_infer.errors import ArtifactError, FctError, InputError, UsageError
from fct_infer.images.decoding import MAX_FILE_BYTES

PNG = image_bytes(random_pixels(0))


def touch(root: Path, *names: str, data: bytes = PNG) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def test_a_folder_is_walked_in_order_without_what_is_hidden_or_no_image(tmp_path):
    touch(tmp_path, "b/2.JPG", "b/10.jpeg", "a.webp", "c/d/e.tiff", ".hidden.png", ".git/x.png", "notes.txt", "c/x.npy")
    source = open_images([tmp_path])
    assert source.ids == ["a.webp", "b/10.jpeg", "b/2.JPG", "c/d/e.tiff"]
    assert [source.name(number) for number in range(len(source))] == [str(tmp_path / name) for name in source.ids]
    assert source.other_files == 2


def test_files_keep_the_path_that_was_typed_and_the_order_of_the_arguments(tmp_path, monkeypatch):
    touch(tmp_path, "z.png", "photos/y.png", "photos/x.png", ".hidden.png", "no_suffix")
    monkeypatch.chdir(tmp_path)
    source = open_images(["z.png", Path("photos"), "no_suffix", ".hidden.png"])
    assert source.ids == ["z.png", "x.png", "y.png", "no_suffix", ".hidden.png"]


def test_links_are_followed_and_loops_are_found(tmp_path):
    touch(tmp_path, "outside/1.png", "photos/0.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "photos" / "2.png").symlink_to(tmp_path / "outside" / "1.png")
    assert open_images([tmp_path / "photos"]).ids == ["0.png", "2.png", "linked/1.png"]
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "photos")
    with pytest.raises(InputError, match=r"photos/linked/back: links back to a folder it lies in"):
        open_images([tmp_path / "photos"])


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path):
    touch(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    source = open_images([tmp_path])
    with pytest.raises(InputError, match=r"2\.png: cannot be read: No such file"):
        source.load(1, [PLAIN])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no images named"),
        (["missing.png"], "missing.png: No such file or directory"),
        (["1.png/x.png"], "1.png/x.png: Not a directory"),
        (["\0.png"], "null byte"),
        (["empty"], "empty: holds no images, 0 other files; wanted .jpg, "),
        (["texts"], "texts: holds no images, 2 other files"),
        (["photos", "empty"], "empty: holds no images"),
        (["photos", "more"], "photos/1.png and more/1.png would both have the id '1.png'"),
        (["1.png", "1.png"], "1.png and 1.png would both have the id '1.png'"),
        (["1.png", "photos"], "1.png and photos/1.png would both have the id '1.png'"),
        (["a.npy", "photos"], "a.npy: an array of images is embedded alone, 2 inputs are named"),
        (["a.npy", "a.npy"], "a.npy: an array of images is embedded alone, 2 inputs are named"),
    ],
)
def test_what_cannot_be_a_set_of_images_is_named(arguments, message, tmp_path, monkeypatch):
    touch(tmp_path, "photos/1.png", "more/1.png", "1.png", "texts/a.txt", "texts/b.md", "a.npy")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FctError) as raised:
        open_images(arguments)
    assert message in str(raised.value)
    assert raised.value.exit_code in (2, 4)


def test_a_name_that_is_no_unicode_cannot_be_an_id(tmp_path):
    touch(tmp_path, "größe.png", "日本.png")
    assert set(open_images([tmp_path]).ids) == {"größe.png", "日本.png"}
    touch(tmp_path, os.fsdecode(b"\xff.png"))
    with pytest.raises(InputError, match=r"udcff\.png': the name is not UTF-8"):
        open_images([tmp_path])


def test_one_image_is_decoded_once_for_all_recipes(tmp_path):
    pixels = write_images(tmp_path, 1)["000.png"]
    other = replace(PLAIN, size=(4, 4), resize=6)
    source = open_images([tmp_path])
    results = source.load(0, [PLAIN, other])
    for result, recipe in zip(results, (PLAIN, other), strict=True):
        assert np.array_equal(result, preprocess(Image.fromarray(pixels), recipe, "x"))


def test_pipes_folders_and_giants_named_like_images_are_errors(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    touch(tmp_path, "2.png", data=b"")
    os.truncate(tmp_path / "2.png", MAX_FILE_BYTES + 1)  # sparse
    source = open_images([tmp_path])
    with pytest.raises(InputError, match=r"1\.png: is not a regular file"):
        source.load(0, [PLAIN])
    with pytest.raises(InputError, match=r"2\.png: 1,073,741,825 bytes, at most 1,073,741,824"):
        source.load(1, [PLAIN])


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_an_array_of_pixels_goes_through_the_preprocessing(tmp_path):
    pixels = np.stack([random_pixels(seed, 9, 15) for seed in range(3)])
    recipe = replace(PLAIN, resize=13)
    with open_images([saved(tmp_path / "a.npy", pixels)]) as source:
        assert (len(source), source.ids) == (3, None)
        chosen = source.recipe(numpy_embedder(preprocessing=recipe))
        for number, image in enumerate(pixels):
            wanted = preprocess(Image.fromarray(image), recipe, "x")
            assert np.array_equal(source.load(number, [chosen])[0], wanted)


def test_an_array_of_the_right_size_is_not_scaled_and_cut(tmp_path):
    pixels = random_pixels(0, *PLAIN.size)[None]
    with open_images([saved(tmp_path / "a.npy", pixels)]) as source:
        chosen = source.recipe(numpy_embedder(preprocessing=replace(PLAIN, resize=13)))
        assert np.array_equal(source.load(0, [chosen])[0], preprocess(Image.fromarray(pixels[0]), PLAIN, "x"))


def test_a_float_array_reaches_the_model_as_it_is(tmp_path):
    images = np.random.default_rng(0).standard_normal((4, 5, 8, 12), np.float32)
    with open_images([saved(tmp_path / "a.npy", images)]) as source:
        assert source.recipe(numpy_embedder(preprocessing=None, shape=(5, 8, 12))) is None
        assert np.array_equal(source.load(2, [None])[0], images[2])
        with pytest.raises(InputError, match=r"a\.npy: images of 5x8x12, backbone model m1 takes 3x8x12"):
            source.recipe(numpy_embedder())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 12), np.uint8), r"holds uint8 \(2, 8, 12\), wanted uint8 \(n, height, width, 3\)"),
        (np.zeros((2, 8, 12, 4), np.uint8), r"holds uint8 \(2, 8, 12, 4\)"),
        (np.zeros((2, 3, 8, 12), np.float64), r"holds float64"),
        (np.zeros((2, 3, 8, 12), np.float16), r"holds float16"),
        (np.zeros((0, 8, 12, 3), np.uint8), r"holds no images"),
        (np.zeros((2, 0, 12, 3), np.uint8), r"holds no images"),
        (np.zeros(3, np.float32), r"holds float32 \(3,\)"),
        (np.asfortranarray(np.zeros((2, 8, 12, 3), np.uint8)), r"Fortran order"),
        (np.array([None, 1]), r"holds Python objects"),
    ],
)
def test_arrays_of_other_kinds_are_refused(array, message, tmp_path):
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}"):
        open_images([saved(tmp_path / "a.npy", array)])


def test_a_truncated_or_forged_array_is_refused(tmp_path):
    path = saved(tmp_path / "a.npy", np.zeros((2, 8, 12, 3), np.uint8))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match="truncated"):
        open_images([path])
    path.write_bytes(PNG)
    with pytest.raises(InputError, match=r"is not a \.npy file"):
        open_images([path])
    with pytest.raises(InputError, match="cannot be read: No such file"):
        open_images([tmp_path / "b.npy"])


def test_a_model_that_does_not_tell_how_images_are_prepared_says_what_to_do(tmp_path):
    touch(tmp_path, "1.png")
    with pytest.raises(UsageError, match=r"export it again with --image-mean and --image-std, or give .* float32"):
        open_images([tmp_path]).recipe(numpy_embedder(preprocessing=None))


def test_models_of_other_channels_and_contradictory_bundles_are_refused(tmp_path):
    touch(tmp_path, "1.png")
    source = open_images([tmp_path])
    with pytest.raises(UsageError, match="takes 4 channels"):
        source.recipe(numpy_embedder(shape=(4, 8, 12)))
    with pytest.raises(UsageError, match="takes 1 channels"):
        source.recipe(numpy_embedder(preprocessing=Preprocessing((8, 12), (0.5,), (0.5,)), shape=(1, 8, 12)))
    with pytest.raises(ArtifactError, match="takes 9x12, its preprocessing makes 8x12"):
        source.recipe(numpy_embedder(shape=(3, 9, 12)))
