"""manifest.json of a gallery: every bit of it counts, hostile ones are refused by name, and readers never mix two."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from fct_infer.errors import ArtifactError, GalleryError, OutputError
from fct_infer.gallery import GalleryManifest, read_manifest
from fct_infer.gallery import manifest as manifest_module
from fct_infer.gallery.manifest import own_manifest, read_gallery, read_published
from fct_infer.storage import DigestedFile
from fct_infer.storage.strict_json import sealed_bytes

FILES = {
    "embeddings/000000.npy": DigestedFile(1088, "ab" * 32),
    "ids/zwei.npy": DigestedFile(208, "cd" * 32),
    "index.faiss": DigestedFile(17, "ef" * 32),
}
MANIFEST = GalleryManifest(12, 8, "float32", "cosine", "0" * 64, "text", 11, FILES)
# As the first release wrote it.
UNSEALED = """{
  "schema": 1, "kind": "gallery", "rows": 12, "dim": 8, "dtype": "float16", "metric": "l2", "transformation": "00",
  "files": {"embeddings/000000.npy": {"size": 1088, "sha256": "%s"}}
}
""" % ("ab" * 32)


def write(folder, data):
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_what_is_written_is_read_back(tmp_path):
    assert read_manifest(write(tmp_path / "g", MANIFEST.to_bytes())) == MANIFEST
    without = replace(MANIFEST, ids="rows", indexed_rows=None)
    assert read_manifest(write(tmp_path / "g", without.to_bytes())) == without


def test_that_of_the_first_release_is_read_and_known_to_have_no_seal(tmp_path):
    found = read_manifest(write(tmp_path / "g", UNSEALED))
    assert (found.rows, found.dim, found.dtype, found.metric) == (12, 8, "float16", "l2")
    assert (found.is_sealed, found.ids, found.indexed_rows) == (False, None, None)
    assert found.files == {"embeddings/000000.npy": FILES["embeddings/000000.npy"]}


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    data = MANIFEST.to_bytes()
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(ArtifactError):
                manifest_module.parse_manifest(tmp_path, bytes(flipped))


def document(**changes):
    return json.loads(MANIFEST.to_bytes()) | changes


def entry(size=1, sha256="ab" * 32):
    return {"size": size, "sha256": sha256}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": True}, "rows is bool, wanted int"),
        ({"rows": 1e9}, "rows is float, wanted int"),
        ({"rows": 0}, "rows is 0, wanted at least 1"),
        ({"rows": 1 << 60}, "rows is beyond"),
        ({"dim": -1}, "dim is -1"),
        ({"metric": "hamming"}, "metric is 'hamming', wanted one of l2, ip, cosine"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"ids": "dict"}, "ids is 'dict'"),
        ({"indexed_rows": 13}, "indexed_rows is 13, the gallery has 12 rows"),
        ({"indexed_rows": -1}, "indexed_rows is -1"),
        ({"surprise": 1}, "unknown 'surprise'"),
        ({"files": {"../x": entry()}}, "not a name inside the gallery"),
        ({"files": {"embeddings/..": entry()}}, "not a name inside the gallery"),
        ({"files": {"embeddings/../../x.npy": entry()}}, "not a name inside the gallery"),
        ({"files": {"/etc/passwd": entry()}}, "not a name inside the gallery"),
        ({"files": {"..\\x": entry()}}, "not a name inside the gallery"),
        ({"files": {"C:\\x": entry()}}, "not a name inside the gallery"),
        ({"files": {"other/x.npy": entry()}}, "not a name inside the gallery"),
        ({"files": {"embeddings/": entry()}}, "not a name inside the gallery"),
        ({"files": {"embeddings/a\0.npy": entry()}}, "not a name inside the gallery"),
        ({"files": {"manifest.json": entry()}}, "not a name inside the gallery"),
        ({"files": {"embeddings/\ud800.npy": entry()}}, "file name"),
        ({"files": {"index.faiss": entry(size=1.5)}}, "size is float"),
        ({"files": {"index.faiss": entry(size=1 << 62)}}, "size is beyond"),
        ({"files": {"index.faiss": entry(sha256="ab" * 31)}}, "64 hex digits"),
        ({"files": {"index.faiss": entry(sha256="XY" * 32)}}, "64 hex digits"),
        ({"files": {"index.faiss": entry() | {"mode": 1}}}, "unknown 'mode'"),
    ],
)
def test_fields_that_make_no_sense_are_named_though_sealed(tmp_path, changes, words):
    fields = document(**changes)
    del fields["sha256"]
    with pytest.raises(ArtifactError, match=words) as caught:
        read_manifest(write(tmp_path / "g", sealed_bytes(fields)))
    assert str(tmp_path / "g" / "manifest.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (UNSEALED.replace('"rows": 12', '"rows": 1e999'), "1e999 is not a finite number"),
        (UNSEALED.replace('"rows": 12', '"rows": NaN'), "NaN is not a finite number"),
        (UNSEALED.replace('"rows": 12', '"rows": ' + "9" * 5000), "is not JSON"),
        (UNSEALED.replace('"dim": 8', '"rows": 8'), "has 'rows' twice in one object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("[" + "[]," * 4_000_000 + "1]", "holds more than 4,000,000 values"),
        (b"\xff\xfe", "is not JSON"),
        ("", "is not JSON"),
        ("null", "does not describe a published gallery"),
        (UNSEALED.replace('"schema": 1', '"schema": 9'), "has schema 9; this version reads 1 and 2"),
        (UNSEALED.replace('"schema": 1', '"schema": 2'), "'sha256' is missing"),
    ],
)
def test_texts_that_are_no_manifest(tmp_path, text, words):
    with pytest.raises(ArtifactError, match=words):
        read_manifest(write(tmp_path / "g", text))


def test_a_huge_file_is_not_even_read(tmp_path):
    with write(tmp_path / "g", UNSEALED).joinpath("manifest.json").open("r+b") as file:
        file.truncate(manifest_module.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ArtifactError, match="at most"):
        read_manifest(tmp_path / "g")


def test_a_hundred_thousand_shards_fit(tmp_path):
    # A tenth of them, in a tenth of the room.
    files = {f"{folder}/{n:06d}.npy": FILES["index.faiss"] for folder in ("embeddings", "ids") for n in range(10_000)}
    data = replace(MANIFEST, files=files).to_bytes()
    assert len(data) < manifest_module.MAX_MANIFEST_BYTES / 20
    assert len(manifest_module.parse_manifest(tmp_path, data).files) == 20_000


def test_sizes_are_compared(tmp_path):
    folder = write(tmp_path / "g", MANIFEST.to_bytes())
    (folder / "embeddings").mkdir()
    (folder / "embeddings" / "000000.npy").write_bytes(bytes(1088))
    (folder / "index.faiss").write_bytes(bytes(18))
    assert MANIFEST.damaged_sizes(folder) == {
        "ids/zwei.npy": "is missing",
        "index.faiss": "has 18 bytes, manifest.json says 17",
    }


def test_a_foreign_manifest_beside_a_gallery_is_nobodys_business(tmp_path):
    assert own_manifest(tmp_path) is None
    assert own_manifest(write(tmp_path / "g", '{"name": "web app"}')) is None
    assert own_manifest(write(tmp_path / "g", UNSEALED)) is not None
    with pytest.raises(ArtifactError):
        own_manifest(write(tmp_path / "g", UNSEALED.replace('"rows"', '"r"')))


def replace_folder(folder, manifest):
    """Another gallery takes the place, as publishing does it."""
    shutil.rmtree(folder)
    write(folder, manifest.to_bytes())


def test_what_was_read_of_two_galleries_counts_for_nothing(tmp_path):
    folder, seen = write(tmp_path / "g", MANIFEST.to_bytes()), []

    def read(_folder, data):
        seen.append(data)
        if len(seen) <= 2:
            replace_folder(folder, replace(MANIFEST, rows=100 + len(seen)))
        if len(seen) == 1:
            raise GalleryError("a file is gone")
        return data

    assert read_published(folder, read) == replace(MANIFEST, rows=102).to_bytes()
    assert len(seen) == 3


def test_an_error_of_one_gallery_is_an_error(tmp_path):
    def read(_manifest):
        raise GalleryError("is damaged")

    with pytest.raises(GalleryError, match="is damaged"):
        read_gallery(write(tmp_path / "g", MANIFEST.to_bytes()), read)


def test_a_folder_replaced_for_ever_ends_somewhere(tmp_path):
    folder = write(tmp_path / "g", MANIFEST.to_bytes())
    with pytest.raises(OutputError, match="was replaced 10 times"):
        read_gallery(folder, lambda manifest: replace_folder(folder, manifest))
