"""Which files are images: one walk for training and embedding."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fct_infer.embedding import open_images
from fct_infer.errors import InputError
from fct_infer.images import find_images
from fct_infer.training.data.folders import read_folder


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b/2.JPG", "b/1.avif", "a/x.jp2", "a/notes.txt", ".hidden/1.png", "a/.2.png", "b/c/3.apng"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_images_come_sorted_without_what_is_hidden(folder):
    images, others = find_images(folder)
    assert [os.path.relpath(path, folder) for path in images] == ["a/x.jp2", "b/1.avif", "b/2.JPG", "b/c/3.apng"]
    assert others == 1


def test_training_and_embedding_find_the_same(folder):
    data = read_folder(folder, 8)
    assert list(data.loader.paths) == [str(folder / name) for name in open_images([folder]).ids]
    assert data.class_names == ("a", "b", "b/c") and data.labels.tolist() == [0, 1, 1, 2]


def test_a_link_back_is_an_error_and_not_a_walk_without_end(folder):
    (folder / "b" / "loop").symlink_to(folder)
    for find in (lambda: read_folder(folder, 8), lambda: open_images([folder])):
        with pytest.raises(InputError, match=r"b/loop: links back to a folder it lies in"):
            find()


def test_linked_folders_are_followed(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "9.png").touch()
    (folder / "linked").symlink_to(other)
    assert read_folder(folder, 8).class_names == ("a", "b", "b/c", "linked")
