"""What is upgraded: a folder of .npy shards, its layout and its checks."""

from fct_infer.gallery.layout import Gallery, Shard, ShardReader, fingerprint
from fct_infer.gallery.npy import NpyHeader, npy_header_bytes, read_npy_header
from fct_infer.gallery.writer import GalleryWriter, NpyShardWriter, write_npy

__all__ = [
    "Gallery",
    "GalleryWriter",
    "NpyHeader",
    "NpyShardWriter",
    "Shard",
    "ShardReader",
    "fingerprint",
    "npy_header_bytes",
    "read_npy_header",
    "write_npy",
]
