"""The same vectors in every format, each written by the format's own library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet


def fixed_size(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def lists(vectors: np.ndarray) -> pa.Array:
    return pa.array(list(vectors), pa.list_(pa.from_numpy_dtype(vectors.dtype)))


def write_npy(path: Path, vectors: np.ndarray) -> None:
    np.save(path, vectors)


def write_npz(path: Path, vectors: np.ndarray) -> None:
    np.savez(path, embeddings=vectors, labels=np.zeros(3))


def write_packed_npz(path: Path, vectors: np.ndarray) -> None:
    np.savez_compressed(path, embeddings=vectors)


def write_parquet_fixed(path: Path, vectors: np.ndarray) -> None:
    table = pa.table({"title": ["t"] * len(vectors), "embedding": fixed_size(vectors)})
    pa.parquet.write_table(table, path, row_group_size=70)


def write_parquet_lists(path: Path, vectors: np.ndarray) -> None:
    pa.parquet.write_table(pa.table({"v": lists(vectors)}), path, row_group_size=70, store_schema=False)


def write_parquet_large_lists(path: Path, vectors: np.ndarray) -> None:
    column = pa.array(list(vectors), pa.large_list(pa.from_numpy_dtype(vectors.dtype)))
    pa.parquet.write_table(pa.table({"v": column}), path, row_group_size=70)


def write_feather(path: Path, vectors: np.ndarray) -> None:
    pa.feather.write_feather(pa.table({"v": lists(vectors)}), str(path), chunksize=64)


def write_arrow_stream(path: Path, vectors: np.ndarray) -> None:
    table = pa.table({"v": fixed_size(vectors)})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=64)


def write_bin(path: Path, vectors: np.ndarray) -> None:
    path.write_bytes(np.array(vectors.shape, "<u4").tobytes() + vectors.tobytes())


def write_wide_bin(path: Path, vectors: np.ndarray) -> None:
    path.write_bytes(np.array(vectors.shape, "<u8").tobytes() + vectors.tobytes())


def write_vecs(path: Path, vectors: np.ndarray) -> None:
    width = np.array([vectors.shape[1]], "<i4").tobytes()
    path.write_bytes(b"".join(width + row.tobytes() for row in vectors))


def write_hdf5(path: Path, vectors: np.ndarray) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("train", data=vectors, chunks=(20, vectors.shape[1]), compression="gzip")
        file["test"] = vectors[:5]
        file["neighbors"] = np.zeros((5, 10), np.int32)


def write_safetensors(path: Path, vectors: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": vectors, "scale": np.ones(1, np.float32)}, path)


def write_flat_index(path: Path, vectors: np.ndarray) -> None:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(path))


def write_ivf_index(path: Path, vectors: np.ndarray, ids: np.ndarray | None = None) -> None:
    import faiss

    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(vectors.shape[1]), vectors.shape[1], 4)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(len(vectors)) if ids is None else ids)
    faiss.write_index(index, str(path))


def write_half_index(path: Path, vectors: np.ndarray) -> None:
    import faiss

    index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16)
    index.add(vectors.astype(np.float32))
    faiss.write_index(index, str(path))


def write_dataset(path: Path, vectors: np.ndarray) -> None:
    """As ``datasets`` saves it, in three files."""
    import datasets

    datasets.disable_progress_bars()
    column = datasets.List(datasets.Value(vectors.dtype.name), length=vectors.shape[1])
    features = datasets.Features({"title": datasets.Value("string"), "embedding": column})
    rows = {"title": ["t"] * len(vectors), "embedding": vectors}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path, num_shards=3)


def write_lance(path: Path, vectors: np.ndarray) -> None:
    import lance

    lance.write_dataset(pa.table({"title": ["t"] * len(vectors), "v": fixed_size(vectors)}), path, max_rows_per_file=90)


FLOAT32 = {
    "a.npy": write_npy,
    "a.npz": write_npz,
    "packed.npz": write_packed_npz,
    "fixed.parquet": write_parquet_fixed,
    "lists.parquet": write_parquet_lists,
    "large.parquet": write_parquet_large_lists,
    "a.feather": write_feather,
    "stream.arrow": write_arrow_stream,
    "a.fbin": write_bin,
    "wide.fbin": write_wide_bin,
    "a.fvecs": write_vecs,
    "a.hdf5": write_hdf5,
    "a.safetensors": write_safetensors,
    "flat.faiss": write_flat_index,
    "ivf.index": write_ivf_index,
}
FLOAT16 = {
    "a.npy": write_npy,
    "a.npz": write_npz,
    "fixed.parquet": write_parquet_fixed,
    "lists.parquet": write_parquet_lists,
    "a.feather": write_feather,
    "a.f16bin": write_bin,
    "a.hdf5": write_hdf5,
    "a.safetensors": write_safetensors,
    "half.faiss": write_half_index,
}
FOLDERS = {"saved": write_dataset, "a.lance": write_lance}
"""float32 or float16."""
