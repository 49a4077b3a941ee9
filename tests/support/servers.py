"""Local servers that galleries are read from: HTTP with byte ranges, S3 (moto), Google's (an emulator)."""

from __future__ import annotations

import logging
import re
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.request import Request, urlopen

import pytest


class HttpFiles:
    """Files behind ``http://127.0.0.1:PORT/NAME``.

    Attributes:
        files: name to content; change it while it is read.
        requests: (method, name, first byte, last byte + 1) of each answer, in order; None without a range.
        failures: statuses to answer the next GETs with, before anything else; -1 closes the connection half-way.
        ranges: whether ranges are understood.
        modified: the time of every change, without which s3fs takes it for no object of a bucket.
        password: in the query, without which the answer is 403.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.failures, self.ranges, self.password, self.modified = files, [], True, "", ""
        self.requests: list[tuple[str, str, int | None, int | None]] = []
        self._lock = Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                outer._answer(self)

            def do_GET(self):
                outer._answer(self)

            def handle(self):
                with suppress(OSError):  # a reader that had enough
                    super().handle()

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    @property
    def bytes_sent(self) -> int:
        return sum((stop or 0) - (start or 0) for method, _, start, stop in self.requests if method == "GET")

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, _, query = handler.path.lstrip("/").partition("?")
        method, found = handler.command, re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        data = self.files.get(name)
        with self._lock:
            failure = self.failures.pop(0) if self.failures and method == "GET" else 0
        if failure > 0 or data is None or (self.password and self.password not in query):
            self._send(handler, failure if failure > 0 else 404 if data is None else 403, b"", {})
            return
        part, headers, status = data, {"ETag": f'"{len(data)}-{zlib.crc32(data[-99_999:]):x}"'}, 200
        if self.modified:
            headers["Last-Modified"] = self.modified
        if self.ranges and found:
            start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
            if start >= len(data):
                self._send(handler, 416, b"", {})
                return
            part, status = data[start:stop], 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self.requests.append((method, name, start, stop))
        else:
            self.requests.append((method, name, None, None))
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        self._send(handler, status, part, headers, torn=failure < 0)

    def _send(self, handler, status, body, headers, torn=False) -> None:
        handler.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "GET":
            try:
                handler.wfile.write(body[: len(body) // 2] if torn else body)
                if torn:
                    handler.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the reader did not want it

    def __enter__(self) -> HttpFiles:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def s3_bucket() -> Iterator[Any]:
    """Let ``s3://bucket`` be an empty bucket on this machine, here and in processes begun meanwhile; yield its view."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    # An earlier server of this process left its buckets, and s3fs what it knew of them.
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", address)
            patch.setenv("AWS_ACCESS_KEY_ID", "a")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "b")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            filesystem = s3fs.S3FileSystem()
            filesystem.mkdir("bucket")
            yield filesystem
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def gcs_server(*, keeps_conditions: bool = True) -> Iterator[dict[str, str]]:
    """Yield the environment in which ``gs://bucket`` is a server on this machine.

    Args:
        keeps_conditions: whether an object that is only to be created replaces none; Google's server keeps to that, the
            emulator by itself does not.
    """
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    def conditional(upload):
        def handle(request, response, storage):
            name = request.query["name"][0] if "name" in request.query else request.data["meta"]["name"]
            if request.query.get("ifGenerationMatch") == ["0"]:
                with suppress(NotFound):
                    storage.get_file_obj(request.params["bucket_name"], name)
                    response.status = HTTPStatus.PRECONDITION_FAILED
                    return
            upload(request, response, storage)

        return handle

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    with pytest.MonkeyPatch.context() as patch:
        if keeps_conditions:
            for name in ("_media_upload", "_multipart_upload"):
                patch.setattr(objects, name, conditional(getattr(objects, name)))
        server.start()
        try:
            port = server._api._httpd.server_address[1]
            yield {
                "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks another server, by another protocol
                "GOOGLE_CLOUD_PROJECT": "project",
            }
        finally:
            server.stop()
