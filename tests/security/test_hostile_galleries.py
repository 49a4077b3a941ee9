"""Galleries: .npy headers that lie, rows that are no numbers, shards that do not fit the transformation."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from support.bundles import core_bundle
from support.hostile import (
    OLD_DIM,
    TERA,
    good_bundle,
    good_gallery,
    graph_of,
    image_onnx,
    npy_bytes,
    save_onnx,
    saved,
)
from support.programs import linear_map, plain_mlp
from support.promises import Case, Cases, assert_accepted, assert_refused

SHARD = "embeddings/000001.npy"
HEADER = "{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}"
ROWS = np.random.default_rng(0).standard_normal((9, OLD_DIM), np.float32)
DATA = ROWS.tobytes()

case = Cases()


def _shard(name: str, reason: str, data: Callable[[], bytes]) -> None:
    """A gallery whose second shard is a file of other bytes."""

    def make(folder: Path) -> Path:
        path = good_gallery(folder) / SHARD
        path.write_bytes(data())
        return path

    make.__doc__ = name
    case(reason)(make)


def _header(descr: str = "<f4", fortran_order: object = False, shape: object = ROWS.shape) -> str:
    return HEADER.format(descr, fortran_order, shape)


class _Call:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("canary",)  # the command runs in the folder that is watched


_shard("empty", "not a .npy file", lambda: b"")
_shard("text", "not a .npy file", lambda: b"0.1,0.2\n")
_shard("zip of arrays", "not a .npy file", lambda: b"PK\3\4" + bytes(100))
_shard("header only", "truncated", lambda: npy_bytes(_header()))
_shard("rows cut short", "truncated", lambda: saved(ROWS)[:-1])
_shard("a byte too many", "longer than its header says", lambda: saved(ROWS) + b"x")
_shard(
    "pickled objects",
    "Python objects|holds",
    lambda: saved(np.array([[_Call()] * OLD_DIM] * 9, object), allow_pickle=True),
)
_shard("a pickle", "not a .npy file", lambda: pickle.dumps(_Call()))
_shard("header of 1 GB", "truncated inside its header", lambda: npy_bytes("{}", version=(2, 0), length=1 << 30))
_shard("header of 100 MB of blanks", "header of 10[0-9]+ bytes", lambda: npy_bytes(" " * (100 << 20), version=(2, 0)))
_shard("header that is code", "malformed", lambda: npy_bytes("__import__('os').mkdir('canary')", DATA))
_shard("header nested deeply", "malformed", lambda: npy_bytes("(" * 30_000 + ")" * 30_000, DATA))
_shard("header a huge power", "malformed", lambda: npy_bytes("9**9**9**9", DATA))
_shard("header with a key too many", "malformed", lambda: npy_bytes(_header()[:-1] + "'x': 1}", DATA))
_shard("header of unprintable bytes", "malformed", lambda: npy_bytes(b"\xff\0\x80" * 20, DATA, version=(3, 0)))
_shard("version 9.9", r"version 9\.9", lambda: npy_bytes(_header(), DATA, version=(9, 9)))
_shard("10^12 rows", "truncated", lambda: npy_bytes(_header(shape=(TERA, OLD_DIM)), DATA))
_shard("rows whose bytes overflow 2^64", "malformed|truncated", lambda: npy_bytes(_header(shape=(2**47, 2**47)), DATA))
_shard("negative rows", "malformed", lambda: npy_bytes(_header(shape=(-9, -OLD_DIM)), DATA))
_shard("rows a float", "malformed", lambda: npy_bytes(_header(shape=(9.0, OLD_DIM)), DATA))
_shard("rows a bool", "malformed", lambda: npy_bytes(_header(shape=(True, OLD_DIM)), DATA))
_shard("shape of 1,000 axes", "malformed", lambda: npy_bytes(_header(shape=(1,) * 1000), DATA))
_shard("no axes", "shape|rows", lambda: saved(np.float32(1)))
_shard("one axis", "shape", lambda: saved(ROWS[:, 0].copy()))
_shard("three axes", "wanted .rows, dim.", lambda: saved(ROWS[:, :, None]))
_shard("no rows", "empty|rows", lambda: saved(ROWS[:0]))
_shard("Fortran order", "Fortran order", lambda: saved(np.asfortranarray(ROWS)))
_shard("float64", "wanted float32 or float16", lambda: saved(ROWS.astype(np.float64)))
_shard("int32", "wanted float32 or float16", lambda: saved(ROWS.astype(np.int32)))
_shard("complex", "wanted float32 or float16", lambda: saved(ROWS.astype(np.complex64)))
_shard("big-endian", "big-endian", lambda: saved(ROWS.astype(">f4")))
_shard("structured", "structured|malformed", lambda: saved(ROWS.view([("x", "<f4"), ("y", "<f4")])))
_shard("dtype of 2^31 bytes", "malformed|truncated|float", lambda: npy_bytes(_header("<V2147483647"), DATA))
_shard("dtype a module", "malformed", lambda: npy_bytes(_header("os.system"), DATA))
_shard("another dtype than the first", "float16", lambda: saved(ROWS.astype(np.float16)))
_shard("another width than the first", "wide", lambda: saved(ROWS[:, :5].copy()))


@case("not a regular file")
def _(folder: Path) -> Path:
    """FIFO"""
    path = good_gallery(folder) / SHARD
    path.unlink()
    os.mkfifo(path)
    return path


@case("not a regular file")
def _(folder: Path) -> Path:
    """link to /dev/zero"""
    path = good_gallery(folder) / SHARD
    path.unlink()
    path.symlink_to("/dev/zero")
    return path


@case("cannot be read")
def _(folder: Path) -> Path:
    """dangling link"""
    path = good_gallery(folder) / SHARD
    path.unlink()
    path.symlink_to("nowhere")
    return path


@case("not a .npy file")
def _(folder: Path) -> Path:
    """stray file"""
    path = good_gallery(folder) / "embeddings" / "notes.txt"
    path.write_text("hello")
    return path


@case("is missing")
def _(folder: Path) -> Path:
    """ids missing for one shard"""
    path = good_gallery(folder) / "ids" / "000001.npy"
    path.unlink()
    return path


@case("wanted int64 or fixed-width bytes or str|Python objects")
def _(folder: Path) -> Path:
    """ids that are pickled objects"""
    path = good_gallery(folder) / "ids" / "000001.npy"
    path.write_bytes(saved(np.array([_Call()] * 9, object), allow_pickle=True))
    return path


def _rows(name: str, value: float) -> None:
    def make(folder: Path) -> Path:
        path = good_gallery(folder) / SHARD
        rows = ROWS.copy()
        rows[4, 2] = value
        np.save(path, rows)
        return path

    make.__doc__ = f"{name} in a row"
    case(r"row 4\b.* (NaN|infinity)")(make)


_rows("NaN", np.nan)
_rows("infinity", np.inf)


@pytest.mark.parametrize("name", case)
def test_refused_by_upgrade(name, folder):
    file = case[name].make(folder)
    before = folder / "gallery"
    assert_refused(case[name], "upgrade-gallery", file, before, "--transformation", good_bundle(folder), within=folder)


@pytest.mark.parametrize(
    "name", [name for name in case if "ids" not in name and name != "another dtype than the first"]
)
def test_refused_by_evaluate(name, folder):
    file = case[name].make(folder)
    assert_refused(case[name], "evaluate", file, *_evaluation(folder), within=folder)


def test_good_galleries_are_evaluated(folder):
    gallery = good_gallery(folder)
    assert_accepted("evaluate", gallery, *_evaluation(folder))


def _evaluation(folder: Path) -> tuple[object, ...]:
    """Arguments that search folder/gallery with good queries."""
    queries = good_gallery(folder / "good")
    np.save(folder / "labels.npy", np.zeros(49, np.int64))
    labels = ("--query-labels", folder / "labels.npy", "--gallery-labels", folder / "labels.npy")
    return "--queries", queries, "--gallery", folder / "gallery", *labels


# Galleries and transformations that do not fit each other


def _too_wide(folder: Path) -> Path:
    return core_bundle(linear_map(OLD_DIM + 1, 4), folder / "bundle")


def _with_side(folder: Path) -> Path:
    return core_bundle(plain_mlp(OLD_DIM, 3, 4, hidden=(5,)), folder / "bundle")


def _foreign(folder: Path) -> Path:
    return save_onnx(graph_of([helper.make_node("Tanh", ["old"], ["new"])], {}, inputs={"old": ["n", 9]}), folder)


@pytest.mark.parametrize("make", [_too_wide, _with_side, _foreign])
def test_dims_that_do_not_fit(make, folder):
    gallery, h = good_gallery(folder), make(folder)
    fits_not = Case(make, r"wide|dim|side")
    assert_refused(fits_not, "upgrade-gallery", gallery, gallery, "--transformation", h, within=folder)


@pytest.mark.parametrize("what", ["missing", "a file", "empty", "a link to itself", "embeddings a file"])
def test_no_gallery(what, folder):
    gallery = folder / "gallery"
    if what == "a file":
        gallery.write_bytes(b"neither vectors nor a table")
    elif what == "a link to itself":
        gallery.symlink_to(gallery)
    elif what != "missing":
        gallery.mkdir()
    if what == "embeddings a file":
        (gallery / "embeddings").write_bytes(saved(ROWS))
    words = "cannot be read|of no format known|is not a folder|has no embeddings/ folder"
    reason = Case(good_gallery, words, exit_code=2 if what == "a file" else 4)
    arguments = (gallery, "--transformation", good_bundle(folder))
    assert_refused(reason, "upgrade-gallery", gallery, *arguments, within=folder)


# Arrays of images for fct-embed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(np.array([_Call()] * 3, object), allow_pickle=True), "objects|holds"),
        (npy_bytes(HEADER.format("|u1", False, (10**9, 32, 32, 3)), bytes(100)), "truncated"),
        (saved(np.zeros((3, 32, 32), np.uint8)), "wanted"),
        (saved(np.full((3, 3, 32, 32), np.nan, np.float32)), "NaN|finite"),
        (saved(np.zeros((3, 3, 31, 32), np.float32)), "takes 3x32x32"),
    ],
    ids=["pickled objects", "10^9 images", "no channels", "NaN", "another size"],
)
def test_image_arrays_refused(data, reason, folder):
    images = folder / "images.npy"
    images.write_bytes(data)
    assert_refused(Case(good_gallery, reason), "embed", images, images, "--model", image_onnx(folder))


def test_good_image_arrays_pass(folder):
    images = folder / "images.npy"
    np.save(images, np.zeros((3, 3, 32, 32), np.float32))
    assert_accepted("embed", images, images, "--model", image_onnx(folder))


def test_good_galleries_pass(folder):
    gallery = good_gallery(folder)
    assert_accepted("upgrade-gallery", gallery, gallery, "--transformation", good_bundle(folder))
