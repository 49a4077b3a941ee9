"""The same rows in every format, as the format's own library writes them, are the same bytes."""

from __future__ import annotations

import json
import pickle

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import vector_files as files
from support.galleries import write_gallery

from fct_infer.connectors import SourceOptions, open_source
from fct_infer.connectors.convert import convert
from fct_infer.connectors.registry import kind_of
from fct_infer.errors import ArrayError, GalleryError, UsageError
from fct_infer.gallery import Gallery

VECTORS = np.random.default_rng(3).standard_normal((230, 12), np.float32)


def converted(gallery):
    opened = Gallery.open(gallery)
    return opened.read_rows(np.arange(opened.rows))


@pytest.mark.parametrize("name", files.FLOAT32)
def test_float32_is_the_same_bytes_in_every_format(tmp_path, name):
    files.FLOAT32[name](tmp_path / name, VECTORS)
    report = convert(tmp_path / name, tmp_path / "gallery", rows_per_shard=100)
    old, side = converted(tmp_path / "gallery")
    assert old.tobytes() == VECTORS.tobytes() and side is None
    assert (report.rows, report.shards, report.dtype) == (230, 3, "float32")
    names = sorted(path.name for path in (tmp_path / "gallery" / "embeddings").iterdir())
    assert names == ["000000.npy", "000001.npy", "000002.npy"]


@pytest.mark.parametrize("name", files.FLOAT16)
def test_float16_is_the_same_bytes_in_every_format(tmp_path, name):
    vectors = VECTORS.astype(np.float16)
    files.FLOAT16[name](tmp_path / name, vectors)
    convert(tmp_path / name, tmp_path / "gallery")
    assert converted(tmp_path / "gallery")[0].tobytes() == vectors.tobytes()


@pytest.mark.parametrize("name", files.FLOAT32)
def test_reading_goes_back_and_samples_anywhere(tmp_path, name):
    files.FLOAT32[name](tmp_path / name, VECTORS)
    source = open_source(tmp_path / name)
    part = pickle.loads(pickle.dumps(source.parts()[-1]))
    with source.open_part(part) as reader:
        for start, stop in ((5, 20), (0, 3), (part.rows - 1, part.rows)):
            old = np.empty((stop - start, 12), np.float32)
            reader.read_into(start, stop, old, None)
            assert (old == VECTORS[part.first_row + start : part.first_row + stop]).all()
        for start, stop in ((0, part.rows + 1), (-1, 1), (2, 2)):
            with pytest.raises(ArrayError):
                reader.read_into(start, stop, np.empty((stop - start, 12), np.float32), None)
        with pytest.raises(ArrayError):
            reader.read_into(0, 1, np.empty((1, 12), np.float64), None)
    rows, old, side = source.sample(40, seed=1)
    assert (old == VECTORS[rows]).all() and side is None and len(set(rows.tolist())) == 40


def test_columns_beside_the_vectors(tmp_path):
    side, ids = VECTORS[:, :4].astype(np.float16), [f"item-{row}é" for row in range(230)]
    table = pa.table({"ID": ids, "side": files.lists(side), "vector": files.lists(VECTORS), "url": ids})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    report = convert(tmp_path / "a.parquet", tmp_path / "gallery", rows_per_shard=100)
    old, read_side = converted(tmp_path / "gallery")
    assert old.tobytes() == VECTORS.tobytes() and read_side.tobytes() == side.tobytes()
    written = [np.load(path) for path in sorted((tmp_path / "gallery/ids").iterdir())]
    assert np.concatenate(written).tolist() == ids
    assert report.columns == {"embedding": "vector", "side": "side", "id": "ID"} and report.left_out == ("url",)


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    table = pa.table({"v": files.lists(VECTORS), "group": [row // 100 for row in range(230)]})
    pyarrow.parquet.write_to_dataset(table, tmp_path / "data", partition_cols=["group"])
    convert(tmp_path / "data", tmp_path / "gallery")
    assert converted(tmp_path / "gallery")[0].tobytes() == VECTORS.tobytes()


def test_of_a_folder_all_parquet_files_are_read_and_none_beside_its_embeddings(tmp_path):
    for name in ("a.PARQUET", "b.pq", "c.parquet/part-0.parquet"):
        (tmp_path / "g" / "embeddings" / name).parent.mkdir(parents=True, exist_ok=True)
        files.FLOAT32["fixed.parquet"](tmp_path / "g" / "embeddings" / name, VECTORS)
    files.FLOAT32["fixed.parquet"](tmp_path / "g" / "found.parquet", VECTORS)
    assert open_source(tmp_path / "g").schema.rows == 3 * 230
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "embeddings").symlink_to(tmp_path / "g" / "embeddings")
    assert open_source(tmp_path / "h").schema.rows == 3 * 230
    (tmp_path / "g" / "embeddings" / "more").symlink_to(tmp_path / "h")
    with pytest.raises(GalleryError, match="/embeddings/more: is a link to a folder, which is not followed"):
        open_source(tmp_path / "g")


@pytest.mark.parametrize("folder", [".", "embeddings"])
def test_a_folder_of_two_kinds_is_refused_by_a_file_of_each(tmp_path, folder):
    (tmp_path / folder / "part=0").mkdir(parents=True)
    files.FLOAT32["fixed.parquet"](tmp_path / folder / "part=0" / "a.parquet", VECTORS)
    np.save(tmp_path / folder / "b.npy", VECTORS)
    said = r"holds Parquet files \(part=0/a\.parquet\) and NumPy's \(b\.npy\), .* name the file that holds them"
    with pytest.raises(UsageError, match=said):
        open_source(tmp_path)
    for named in ("part=0/a.parquet", "b.npy"):
        assert open_source(tmp_path / folder / named).schema.rows == 230


@pytest.mark.parametrize(("kind", "stray"), [("parquet", "b.npy"), ("folder", "b.parquet")])
def test_what_lies_beside_the_rows_does_not_tell_their_kind(tmp_path, kind, stray):
    if kind == "folder":
        write_gallery(tmp_path / "a", (230,), 12, ids="str")
    else:
        (tmp_path / "a" / "embeddings" / "deep").mkdir(parents=True)
        files.FLOAT32["fixed.parquet"](tmp_path / "a" / "embeddings" / "a.parquet", VECTORS)
        np.save(tmp_path / "a" / "embeddings" / ".hidden.npy", VECTORS)
        np.save(tmp_path / "a" / "embeddings" / "deep" / "mean.npy", VECTORS)
    (tmp_path / "a" / stray).write_bytes(b"none of the rows")
    assert kind_of(tmp_path / "a") == kind and open_source(tmp_path / "a").schema.rows == 230


def test_the_projects_own_folder_is_a_source(tmp_path):
    arrays = write_gallery(tmp_path / "a", (30, 20), 8, 4, ids="str")
    source = open_source(tmp_path / "a")
    assert [part.rows for part in source.parts()] == [30, 20]
    assert source.where(31) == f"{tmp_path}/a/embeddings/000001.npy: row 1"
    convert(tmp_path / "a", tmp_path / "b", rows_per_shard=33)
    old, side = converted(tmp_path / "b")
    assert (old == arrays["old"]).all() and (side == arrays["side"]).all()


def test_bytes_become_float32_exactly(tmp_path):
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    files.write_bin(tmp_path / "a.u8bin", codes)
    files.write_vecs(tmp_path / "a.bvecs", codes)
    for name in ("a.u8bin", "a.bvecs"):
        assert (open_source(tmp_path / name).sample(16, 0)[1] == codes).all()


def test_wide_numbers_are_narrowed_only_if_asked(tmp_path):
    wide = VECTORS.astype(np.float64)
    np.save(tmp_path / "a.npy", wide)
    pa.parquet.write_table(pa.table({"v": files.lists(wide)}), tmp_path / "a.parquet")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["train"] = wide
    for name in ("a.npy", "a.parquet", "a.hdf5"):
        with pytest.raises(GalleryError, match=r"holds float64.*--allow-cast"):
            open_source(tmp_path / name)
        source = open_source(tmp_path / name, SourceOptions(allow_cast=True))
        assert source.sample(230, 0)[1].tobytes() == VECTORS.tobytes()


def test_bfloat16_tensors_are_float32_exactly(tmp_path):
    upper = (VECTORS.view(np.uint32) >> 16).astype(np.uint16)
    ids = np.arange(230, dtype=np.int64) * 3
    header = {
        "embeddings": {"dtype": "BF16", "shape": [230, 12], "data_offsets": [0, upper.nbytes]},
        "ids": {"dtype": "I64", "shape": [230], "data_offsets": [upper.nbytes, upper.nbytes + ids.nbytes]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + upper.tobytes() + ids.tobytes())
    source = open_source(tmp_path / "a.safetensors")
    assert (source.sample(230, 0)[1].view(np.uint32) == VECTORS.view(np.uint32) & 0xFFFF0000).all()
    with source.open_part(source.parts()[0]) as reader:
        assert reader.read_ids(4, 6).tolist() == [12, 15]


def test_faiss_ids_are_kept_and_order_inverted_lists(tmp_path):
    ids = np.random.default_rng(0).permutation(230).astype(np.int64) * 7 + 3
    files.write_ivf_index(tmp_path / "ivf.faiss", VECTORS, ids)
    mapped = faiss.IndexIDMap2(faiss.IndexFlatL2(12))
    mapped.add_with_ids(VECTORS, ids)
    faiss.write_index(mapped, str(tmp_path / "map.faiss"))
    for name in ("ivf.faiss", "map.faiss"):
        source = open_source(tmp_path / name)
        with source.open_part(source.parts()[0]) as reader:
            found = reader.read_ids(0, 230)
        by_id = dict(zip(ids.tolist(), VECTORS, strict=True))
        assert sorted(found.tolist()) == sorted(ids.tolist())
        assert (source.sample(230, 0)[1] == [by_id[each] for each in found.tolist()]).all()


def test_an_index_of_ids_over_inverted_lists(tmp_path):
    ids = np.random.default_rng(0).permutation(230).astype(np.int64) * 7 + 3
    index = faiss.IndexIDMap(faiss.index_factory(12, "IVF4,Flat"))
    index.train(VECTORS)
    index.add_with_ids(VECTORS, ids)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    source = open_source(tmp_path / "a.faiss")
    with source.open_part(source.parts()[0]) as reader:
        assert (reader.read_ids(0, 230) == ids).all()
    assert source.sample(230, 0)[1].tobytes() == VECTORS.tobytes()


@pytest.mark.parametrize(("factory", "dtype"), [("HNSW8", np.float32), ("HNSW8_SQfp16", np.float16)])
def test_a_graph_holds_vectors_exactly_where_what_lies_below_does(tmp_path, factory, dtype):
    index = faiss.index_factory(12, factory)
    index.train(VECTORS)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    source = open_source(tmp_path / "a.faiss")
    assert source.schema.embedding_dtype == dtype
    assert (source.read_rows(np.arange(230))[0] == index.reconstruct_n(0, 230)).all()  # FAISS rounds for itself


def test_faiss_lists_in_other_files_are_not_followed(tmp_path):
    index = faiss.index_factory(12, "IVF4,Flat")
    index.train(VECTORS)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "lists"))
    index.replace_invlists(lists)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "a.faiss"))
    with pytest.raises(GalleryError, match="OnDiskInvertedLists lie in other files"):
        open_source(tmp_path / "a.faiss")


def test_approximate_faiss_vectors_are_taken_only_if_asked(tmp_path):
    index = faiss.index_factory(12, "PQ4x4")
    index.train(VECTORS)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "pq.faiss"))
    with pytest.raises(UsageError, match=r"IndexPQ holds its vectors approximately; --lossy"):
        open_source(tmp_path / "pq.faiss")
    assert open_source(tmp_path / "pq.faiss", SourceOptions(lossy=True)).sample(230, 0)[1].shape == (230, 12)


def test_fbin_of_more_than_two_to_the_31_elements(tmp_path):
    rows, dim = (1 << 31) // 128 + 5, 128
    with (tmp_path / "a.u8bin").open("wb") as file:  # sparse
        file.write(np.array((rows, dim), "<u4").tobytes())
        file.seek(8 + rows * dim - 1)
        file.write(b"\7")
    source = open_source(tmp_path / "a.u8bin")
    old = np.empty((2, dim), np.float32)
    part = source.parts()[-1]
    with source.open_part(part) as reader:
        reader.read_into(part.rows - 2, part.rows, old, None)
    assert part.first_row + part.rows == rows
    assert old[1, -1] == 7 and old.sum() == 7


def test_which_column_holds_the_embeddings_must_be_clear(tmp_path):
    np.savez(tmp_path / "a.npz", first=VECTORS, second=VECTORS[:, :3])
    with pytest.raises(UsageError, match=r"'first', 'second' hold vectors; name one with --embedding-column"):
        open_source(tmp_path / "a.npz")
    assert open_source(tmp_path / "a.npz", SourceOptions(embedding_column="second")).schema.old_dim == 3
    with pytest.raises(UsageError, match=r"has no column 'third'"):
        open_source(tmp_path / "a.npz", SourceOptions(embedding_column="third"))
