"""The only room that opens a file for writing, and the only one that reads gallery bytes.

Everything goes through one :class:`FileSystem`, so that a test can put a failing one in its place
(:func:`use_filesystem`) and every promise about crashes and full disks can be tried.
"""

from fct_infer.storage.destination import check_place, check_replaceable, check_text, versions_folder, work_folder
from fct_infer.storage.durable import (
    DigestedFile,
    DurableWriter,
    FileLock,
    append_line,
    copy_file,
    remove_tree,
    sha256_of_file,
    truncate_file,
    write_bytes,
    write_json,
    write_pieces,
    write_under,
)
from fct_infer.storage.exchange import can_exchange, publish_directory
from fct_infer.storage.filesystem import FileSystem, ReadFile, current_filesystem, read_error, use_filesystem
from fct_infer.storage.npy import NpyHeader, npy_header_bytes, read_npy_header
from fct_infer.storage.seekable import SeekableFile
from fct_infer.storage.staging import Staging
from fct_infer.storage.urls import RemotePath, location

__all__ = [
    "DigestedFile",
    "DurableWriter",
    "FileLock",
    "FileSystem",
    "NpyHeader",
    "ReadFile",
    "RemotePath",
    "SeekableFile",
    "Staging",
    "append_line",
    "can_exchange",
    "check_place",
    "check_replaceable",
    "check_text",
    "copy_file",
    "current_filesystem",
    "location",
    "npy_header_bytes",
    "publish_directory",
    "read_error",
    "read_npy_header",
    "remove_tree",
    "sha256_of_file",
    "truncate_file",
    "use_filesystem",
    "versions_folder",
    "work_folder",
    "write_bytes",
    "write_json",
    "write_pieces",
    "write_under",
]
