"""Data sets as configurations name them: folders, archives, users' datasets, and parts of them."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.training import NoisyDataset

from fct_infer.errors import ArrayError, InputError, UsageError
from fct_infer.training.data.cifar import read_cifar100
from fct_infer.training.data.images import image_shape, to_batch
from fct_infer.training.data.sources import DataConfig, open_data
from fct_infer.training.features.embedding import embed_data

PLACES = ("a/airfield", "a/apartment/outdoor", "b/bar", "z/zoo")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five images of each class, of many sizes, each of one colour: (class, number, 100)."""
    for label, name in enumerate(PLACES):
        (tmp_path / name).mkdir(parents=True)
        for number in range(5):
            image = Image.new("RGB", (20 + 3 * number, 30 + label), (50 * label, 40 * number, 100))
            image.save(tmp_path / name / f"{number}.png")
    (tmp_path / "b" / "bar" / "notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").touch()
    return tmp_path


def colours(batch) -> np.ndarray:
    return batch[:, 8, 8].numpy()


def test_a_class_is_the_path_of_a_folder(folder):
    data = open_data(DataConfig("folder", str(folder), image_size=16))
    assert data.class_names == PLACES
    assert data.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    images, rows = (torch.cat(parts) for parts in zip(*data.in_order(7), strict=True))
    assert images.dtype == torch.uint8 and images.shape == (20, 16, 16, 3)
    assert colours(images).tolist() == [[50 * (row // 5), 40 * (row % 5), 100] for row in rows.tolist()]
    assert image_shape(data) == (3, 16, 16)


def test_batches_are_shuffled_labelled_and_the_same_for_every_number_of_workers(folder):
    epochs = []
    for workers in (0, 2):
        data = open_data(DataConfig("folder", str(folder), image_size=16, workers=workers))
        batches = data.batches(6, seed=3)
        epochs.append([tuple(torch.cat(parts) for parts in zip(*batches, strict=True)) for _ in range(2)])
    for (images, labels), (others, other_labels) in zip(*epochs, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
        assert (colours(images)[:, 0] == 50 * labels.numpy()).all()
    assert not torch.equal(epochs[0][0][1], epochs[0][1][1])
    assert len(epochs[0][0][1]) == 18  # the last, smaller batch is left out


def test_random_views_show_parts_and_the_view_without_chance_the_centre(folder):
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    Image.fromarray(ramp).save(folder / "z" / "zoo" / "0.png")
    data = open_data(DataConfig("folder", str(folder), image_size=64, min_area=0.1, classes=["z/zoo"]))
    still, _ = next(data.in_order(1))
    assert (int(still[0, 0, 0, 0]), int(still[0, 0, -1, 0])) == pytest.approx((16, 239), abs=4)  # 224 of 256 pixels
    first, second, _ = next(iter(data.batches(5, seed=0, views=2)))
    spans = [int(view[row, 0, -1, 0]) - int(view[row, 0, 0, 0]) for view in (first, second) for row in range(5)]
    ramps = [span for span in spans if span > 0]
    assert len(ramps) == 2 and ramps[0] != ramps[1] and max(ramps) <= 255
    whole = open_data(DataConfig("folder", str(folder), image_size=64, min_area=1.0, classes=["z/zoo"]))
    images = next(iter(whole.batches(5, seed=0)))[0]
    assert any(torch.equal(image, still[0]) for image in images)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_fatal_or_named_once_and_left_out(folder, caplog, workers):
    (folder / "b" / "bar" / "3.png").write_bytes((folder / "b" / "bar" / "3.png").read_bytes()[:60])
    (folder / "z" / "zoo" / "1.png").write_bytes(b"no image")
    config = DataConfig("folder", str(folder), image_size=16, workers=workers)
    with pytest.raises(InputError) as caught:
        list(open_data(config).batches(20, seed=0))
    assert "Traceback" not in str(caught.value) and str(caught.value).startswith(str(folder))

    data = open_data(DataConfig("folder", str(folder), image_size=16, workers=workers, on_error="skip"))
    batches = data.batches(20, seed=0)
    for _ in range(2):
        ((images, labels),) = list(batches)
        assert len(images) == len(labels) == 18
        assert (colours(images)[:, 0] == 50 * labels.numpy()).all()
    assert sorted(record.getMessage().partition(":")[0] for record in caplog.records) == ["left out"] * 2
    assert f"left out: {folder}/z/zoo/1.png: is not an image of a known format" in caplog.text
    embeddings, rows = embed_data(torch.nn.Flatten(), data, batch_size=6)
    assert embeddings.shape == (18, 3 * 16 * 16) and rows.tolist() == [row for row in range(20) if row not in (13, 16)]


def test_a_batch_without_one_whole_image_is_an_error(folder):
    for number in range(5):
        (folder / "b" / "bar" / f"{number}.png").write_bytes(b"")
    config = DataConfig("folder", str(folder), image_size=16, classes=["b/bar"], on_error="skip")
    with pytest.raises(InputError, match="every image of a batch is broken"):
        list(open_data(config).batches(5, seed=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: "missing", "missing: no such folder"),
        (lambda root: "empty", "empty: holds no images"),
        (lambda root: "flat", "flat: holds images outside any class"),
    ],
)
def test_a_folder_of_no_classes_is_named(tmp_path, make, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.png").touch()
    with pytest.raises(UsageError, match=message):
        open_data(DataConfig("folder", str(tmp_path / make(tmp_path))))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ("first 50 %", [0, 1]),
        ("first 50%", [0, 1]),
        ("first 3", [0, 1, 2]),
        ("last 25 %", [3]),
        (["d", "b"], [3, 1]),
    ],
)
def test_classes_are_chosen_and_numbered_anew(classes, expected):
    whole = open_data(DataConfig("support.training:NoisyDataset"))
    data = open_data(DataConfig("support.training:NoisyDataset", classes=classes))
    assert data.class_names == tuple("abcd"[number] for number in expected)
    assert [expected[label] for label in data.labels] == [label for label in whole.labels if label in expected]
    assert (np.asarray(NoisyDataset().targets)[data.rows] == np.array(expected)[data.labels]).all()


@pytest.mark.parametrize("classes", ["first 0", "first 200 %", "half", "first", ["e"], [], ["a", "a"]])
def test_classes_that_are_not_there_are_refused(classes):
    with pytest.raises(UsageError, match=r"data\.classes"):
        open_data(DataConfig("support.training:NoisyDataset", classes=classes))


def test_a_fraction_is_taken_of_every_class_by_its_seed():
    parts = [open_data(DataConfig("support.training:NoisyDataset", fraction=0.3, seed=seed)) for seed in (0, 0, 1)]
    assert np.bincount(parts[0].labels).tolist() == [3, 3, 3, 3]
    assert parts[0].rows.tolist() == parts[1].rows.tolist() != parts[2].rows.tolist()
    assert parts[0].rows.tolist() == sorted(parts[0].rows.tolist())
    tiny = open_data(DataConfig("support.training:NoisyDataset", fraction=0.001))
    assert np.bincount(tiny.labels).tolist() == [1, 1, 1, 1]


def test_glyphs_are_a_source():
    data = open_data(DataConfig("glyphs", arguments={"classes": 4, "images_per_class": 3}, classes="first 50 %"))
    assert data.images.shape == (6, 32, 32, 3) and len(data.class_names) == 2
    with pytest.raises(UsageError, match=r"data\.arguments: .*'colour'"):
        open_data(DataConfig("glyphs", arguments={"colour": 1}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("mnist"), "data.source: got 'mnist'"),
        (DataConfig("folder"), "data.path: missing"),
        (DataConfig("os:getcwd"), "os:getcwd: returns a str"),
        (DataConfig("support.training:Nothing"), "cannot be imported"),
    ],
)
def test_a_source_that_is_none_is_named(config, message):
    with pytest.raises(UsageError, match=message):
        open_data(config)


@pytest.mark.parametrize(
    "values",
    [
        {"fraction": 0},
        {"fraction": 1.1},
        {"min_area": 0},
        {"crop_fraction": 0},
        {"crop_fraction": 1.1},
        {"workers": -1},
    ],
)
def test_shares_out_of_range_are_named(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        DataConfig("glyphs", **values)


class Odd(NoisyDataset):
    """Float and uint8 images of many shapes."""

    def __init__(self, kind: str) -> None:
        super().__init__(8)
        self._kind = kind

    def __getitem__(self, row):
        match self._kind:
            case "bytes":
                return np.full((16, 16, 3), row, np.uint8), 0
            case "sizes":
                return torch.zeros(3, 16, 16 + row % 2), 0
            case _:
                return torch.zeros(16, 16), 0


def test_a_datasets_images_may_be_bytes_and_must_fit(monkeypatch):
    import support.training

    monkeypatch.setattr(support.training, "Odd", Odd, raising=False)
    images, rows = next(open_data(DataConfig("support.training:Odd", arguments={"kind": "bytes"})).in_order(8))
    assert to_batch(images)[:, 1, 3, 3].mul(255).round().tolist() == rows.tolist()
    with pytest.raises(ArrayError, match=r"differ: torch.float32 \(3, 16, 16\), torch.float32 \(3, 16, 17\)"):
        list(open_data(DataConfig("support.training:Odd", arguments={"kind": "sizes"})).in_order(8))
    with pytest.raises(UsageError, match=r"image 0 is torch.float32 \(16, 16\)"):
        list(open_data(DataConfig("support.training:Odd", arguments={"kind": "flat"})).in_order(8))


# --- CIFAR-100 ---


def cifar_files(count: int = 6) -> dict[str, dict[bytes, object]]:
    rng = np.random.default_rng(0)
    names = [b"apple", b"bear", b"can"]
    split = {
        b"filenames": [b"x.png"] * count,
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": [row % 3 for row in range(count)],
        b"coarse_labels": [0] * count,
        b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
    }
    return {"train": split, "test": split, "meta": {b"fine_label_names": names, b"coarse_label_names": [b"all"]}}


def python2_pickle(content: object) -> bytes:
    """Pickle as Python 2 did, which wrote the archive: bytes are its strings (opcodes U and T for C and B)."""
    data = bytearray(pickle.dumps(content, protocol=3))
    for opcode, _, position in pickletools.genops(bytes(data)):
        if opcode.name in ("SHORT_BINBYTES", "BINBYTES"):
            data[position] = ord("U" if opcode.name == "SHORT_BINBYTES" else "T")
    data[1] = 2
    return bytes(data)


def write_cifar(folder: Path, files: dict[str, object], packed: bool = False, dumps=python2_pickle) -> None:
    members = {f"cifar-100-python/{name}": dumps(content) for name, content in files.items()}
    if packed:
        with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as tar:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return
    (folder / "cifar-100-python").mkdir(exist_ok=True)
    for name, data in members.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("packed", "path"),
    [(False, "."), (False, "cifar-100-python"), (True, "."), (True, "cifar-100-python.tar.gz")],
)
def test_cifar_is_read_packed_and_unpacked(tmp_path, packed, path):
    files = cifar_files()
    write_cifar(tmp_path, files, packed)
    data = read_cifar100(tmp_path / path, "train")
    assert data.class_names == ("apple", "bear", "can") and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    pixels = files["train"][b"data"]
    assert data.images.shape == (6, 32, 32, 3)
    assert data.images[4, 7, 9].tolist() == [int(pixels[4, channel * 1024 + 7 * 32 + 9]) for channel in range(3)]
    assert len(open_data(DataConfig("cifar100", str(tmp_path), classes=["bear"])).labels) == 2


def test_an_archive_that_python_3_wrote_is_read_too(tmp_path):
    write_cifar(tmp_path, cifar_files(), dumps=lambda content: pickle.dumps(content, protocol=2))
    assert read_cifar100(tmp_path, "test").labels.tolist() == [0, 1, 2, 0, 1, 2]


class Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(tmp_path):
    mark = tmp_path / "ran"
    write_cifar(tmp_path, cifar_files() | {"train": {b"data": Attack(mark)}})
    with pytest.raises(InputError, match=r"cifar-100-python/train: cannot be read: asks for (posix|os)\.mkdir"):
        read_cifar100(tmp_path, "train")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((6, 3072))}, "images are not uint8"),
        ({b"data": np.zeros((6, 12), np.uint8)}, "images are not uint8"),
        ({b"data": None}, "images are not uint8"),
        ({b"fine_labels": [0] * 5}, "fine labels are not one of 3 for each of 6"),
        ({b"fine_labels": [0] * 5 + [3]}, "fine labels are not one of 3"),
        ({b"fine_labels": [0] * 5 + [-1]}, "fine labels are not one of 3"),
        ({b"fine_labels": 0}, "fine labels are not one of 3"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path, change, message):
    files = cifar_files()
    write_cifar(tmp_path, files | {"train": files["train"] | change})
    with pytest.raises(InputError, match=f"train: .*{message}"):
        read_cifar100(tmp_path, "train")


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_truncated_file_is_named(tmp_path, cut):
    write_cifar(tmp_path, cifar_files())
    file = tmp_path / "cifar-100-python" / "meta"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match="meta: "):
        read_cifar100(tmp_path, "train")


def test_a_truncated_archive_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"holds neither cifar-100-python\.tar\.gz nor"):
        read_cifar100(tmp_path, "train")
    write_cifar(tmp_path, cifar_files(), packed=True)
    file = tmp_path / "cifar-100-python.tar.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz:cifar-100-python/"):
        read_cifar100(tmp_path, "train")
