"""verify_gallery: whatever bit flips, whatever goes or comes, the file is named."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from support.elsewhere import Elsewhere

from fct_infer.errors import ArtifactError
from fct_infer.gallery import GalleryManifest, GalleryWriter
from fct_infer.index import IndexBuilder, load_index
from fct_infer.index.verify import DigestJob, verify_gallery
from fct_infer.storage import DigestedFile, sha256_of_file, write_json

ROWS, DIM = 30, 4
DATA = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)


def seal(path, **changes):
    files = {
        file.relative_to(path).as_posix(): DigestedFile(file.stat().st_size, sha256_of_file(file))
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    fields = {"rows": ROWS, "dim": DIM, "dtype": "float32", "metric": "l2", "transformation": "0" * 64}
    fields |= {"ids": "text", "indexed_rows": ROWS, "files": files} | changes
    (path / "manifest.json").write_bytes(GalleryManifest(**fields).to_bytes())


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "g"
    with GalleryWriter(path, 12) as writer:
        writer.append(DATA, None, np.array([f"item {number}" for number in range(ROWS)]))
    builder = IndexBuilder("Flat", DIM, "l2", threads=1)
    builder.add(DATA, np.arange(ROWS))
    builder.save(path / "index.faiss")
    write_json(path / "index_infos.json", {"index_key": "Flat"})
    seal(path)
    return path


def test_a_whole_gallery_is_whole(published):
    calls = []
    found = verify_gallery(published, lambda *call: calls.append(call))
    assert (found.rows, found.dim, found.files, found.damaged, found.surplus) == (ROWS, DIM, 8, {}, ())
    assert found.is_sealed and found.index_opened
    assert json.loads(json.dumps(found.as_dict()))["is_whole"] is True
    assert calls[-1] == ("verify", found.bytes, found.bytes) and len(calls) == found.files


def test_any_flipped_bit_is_found_and_its_file_named(published):
    rng = random.Random(0)
    for file in sorted(published.rglob("*.*")):
        for _ in range(8):
            data = bytearray(before := file.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            name = file.relative_to(published).as_posix()
            if name == "manifest.json":
                with pytest.raises(ArtifactError, match=r"manifest\.json"):
                    verify_gallery(published)
            else:
                assert list(verify_gallery(published).damaged) == [name]
            file.write_bytes(before)
    assert verify_gallery(published).damaged == {}


def test_all_damaged_files_are_named_at_once(published):
    (published / "embeddings" / "000001.npy").unlink()
    (published / "index.faiss").write_bytes(b"")
    (published / "ids" / "000000.npy").unlink()
    (published / "ids" / "000000.npy").mkdir()
    np.save(published / "embeddings" / "000009.npy", DATA)
    damaged = verify_gallery(published).damaged
    assert damaged.keys() == {
        "embeddings/000001.npy",
        "index.faiss",
        "ids/000000.npy",
        "embeddings/000009.npy",
    }
    assert damaged["embeddings/000001.npy"] == "is missing"
    assert damaged["embeddings/000009.npy"] == "is not in manifest.json"


def test_files_beside_a_galleries_own_are_told_but_no_damage(published):
    (published / "notes.txt").touch()
    (published / ".hidden").touch()
    (published / "side_information").mkdir()
    for number, start in enumerate(range(0, ROWS, 12)):  # for the next upgrade
        np.save(published / "side_information" / f"{number:06d}.npy", DATA[start : start + 12])
    found = verify_gallery(published)
    assert found.surplus == ("notes.txt", *(f"side_information/{number:06d}.npy" for number in range(3)))
    assert found.damaged == {}


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"rows": ROWS + 1}, "embeddings", "holds 30 rows of 4 float32, manifest.json says 31 rows of 4 float32"),
        ({"dim": DIM + 1}, "embeddings", "manifest.json says 30 rows of 5"),
        ({"dtype": "float16"}, "embeddings", "manifest.json says 30 rows of 4 float16"),
        ({"indexed_rows": ROWS - 1}, "index.faiss", "holds 30 rows of 4, manifest.json says 29 of 4"),
        ({"metric": "ip"}, "index.faiss", "has another metric than ip"),
    ],
)
def test_a_manifest_that_speaks_of_another_gallery(published, changes, name, words):
    seal(published, **changes)
    assert words in verify_gallery(published).damaged[name]


def test_an_index_that_is_none(published):
    (published / "index.faiss").write_bytes(b"IxFI and more")
    seal(published)
    assert "cannot be read by this FAISS" in verify_gallery(published).damaged["index.faiss"]


@pytest.mark.parametrize("name", ["embeddings/000001.npy", "ids/000000.npy", "index_infos.json", "index.faiss"])
def test_an_index_does_not_open_beside_files_of_other_sizes(published, name):
    with (published / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=f"{name}: is damaged: has"):
        load_index(published)


def test_workers_elsewhere_find_the_same_in_the_same_order(published):
    seen = []
    for name in ("ids/000001.npy", "embeddings/000001.npy"):
        data = (published / name).read_bytes()
        (published / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = verify_gallery(published, lambda *call: seen.append(call), workers=Elsewhere())
    here = verify_gallery(published)
    assert found == here and list(found.damaged) == list(here.damaged)
    assert len(found.damaged) == 2
    assert seen[-1] == ("verify", found.bytes, found.bytes)


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(b"another")])
def test_a_worker_that_does_not_see_the_gallery_says_so(published, change):
    """It would call every file damaged."""
    job = DigestJob(published, (published / "manifest.json").read_bytes(), {})
    change(published / "manifest.json")
    with pytest.raises(ArtifactError, match="is not there, or another gallery, on "):
        Elsewhere().each(job, [], None)
