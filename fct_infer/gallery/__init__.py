"""What is upgraded: the gallery's layout on disk, its readers and its writers."""

from fct_infer.gallery.fingerprint import fingerprint
from fct_infer.gallery.layout import Gallery, Shard
from fct_infer.gallery.manifest import MANIFEST_NAME, GalleryManifest, read_manifest
from fct_infer.gallery.reader import ShardReader, read_npy, read_rows
from fct_infer.gallery.sampling import sample_rows
from fct_infer.gallery.writer import GalleryWriter, NpyShardWriter, write_npy

__all__ = [
    "MANIFEST_NAME",
    "Gallery",
    "GalleryManifest",
    "GalleryWriter",
    "NpyShardWriter",
    "Shard",
    "ShardReader",
    "fingerprint",
    "read_manifest",
    "read_npy",
    "read_rows",
    "sample_rows",
    "write_npy",
]
