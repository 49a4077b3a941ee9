"""What is upgraded: the gallery's layout on disk, its readers and its writers."""

from fct_infer.gallery.fingerprint import fingerprint
from fct_infer.gallery.layout import Gallery, Shard
from fct_infer.gallery.reader import ShardReader, read_npy, read_rows
from fct_infer.gallery.sampling import sample_rows
from fct_infer.gallery.writer import GalleryWriter, NpyShardWriter, write_npy

__all__ = [
    "Gallery",
    "GalleryWriter",
    "NpyShardWriter",
    "Shard",
    "ShardReader",
    "fingerprint",
    "read_npy",
    "read_rows",
    "sample_rows",
    "write_npy",
]
