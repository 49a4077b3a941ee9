"""What is upgraded: the gallery's layout on disk, its readers and its writers."""

from fct_infer.gallery.fingerprint import fingerprint
from fct_infer.gallery.layout import Gallery, Shard
from fct_infer.gallery.manifest import MANIFEST_NAME, GalleryManifest, read_manifest
from fct_infer.gallery.reader import ShardReader, read_npy
from fct_infer.gallery.rows import read_row_ids, read_rows
from fct_infer.gallery.sampling import sample_rows
from fct_infer.gallery.sink import PartWriter, Sink
from fct_infer.gallery.source import Part, Schema, Source, SourceReader
from fct_infer.gallery.writer import GalleryWriter, NpyShardWriter, write_ids, write_npy

__all__ = [
    "MANIFEST_NAME",
    "Gallery",
    "GalleryManifest",
    "GalleryWriter",
    "NpyShardWriter",
    "Part",
    "PartWriter",
    "Schema",
    "Shard",
    "ShardReader",
    "Sink",
    "Source",
    "SourceReader",
    "fingerprint",
    "read_manifest",
    "read_npy",
    "read_row_ids",
    "read_rows",
    "sample_rows",
    "write_ids",
    "write_npy",
]
