"""A search service over a gallery that is re-embedded while it serves.

    pip install 'fct-infer[cpu]' fastapi uvicorn
    DEST=my_gallery python examples/serving_fastapi.py           # what fct-upgrade-gallery published
    BACKFILL=my_gallery.new DEST=... python examples/serving_fastapi.py   # follows what fct-backfill appends

    curl -s localhost:8000/search -H 'content-type: application/json' -d '{"vectors": [[0.1, ...]], "k": 10}'

Queries are embeddings of the new model from the first minute on. Searches run in threads and wait for nobody; an answer
says of each row which model embedded it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from fct_infer.errors import FctError, InputError, UsageError
from fct_infer.serving import MixedGallery, count_parts, read_backfilled

MAX_ROWS = 4096  # of one request
COMPACT_AT = 50_000  # rows beside the big index from which on they are folded in

Vectors = Annotated[list[list[float]], Field(min_length=1, max_length=MAX_ROWS)]
Ids = (
    Annotated[list[int], Field(min_length=1, max_length=MAX_ROWS)]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_ROWS)]
)


class Query(BaseModel):
    """Embeddings of the new model, (m, dim)."""

    vectors: Vectors
    k: Annotated[int, Field(ge=1, le=1000)] = 10


class Rows(BaseModel):
    """Rows to add or replace, by the new model, or by the old one with h."""

    ids: Ids
    vectors: Vectors
    side: Vectors | None = None
    model: Literal["new", "old"] = "new"


class Names(BaseModel):
    """Rows to delete."""

    ids: Ids


def create_app(gallery: MixedGallery, backfill: Path | None = None, poll_seconds: float = 5.0) -> FastAPI:
    """Return the service.

    Args:
        gallery: what is searched and changed.
        backfill: folder that ``fct-backfill`` appends to; its rows come in as they are written.
        poll_seconds: how often it is looked at.
    """
    stop = threading.Event()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        follower = threading.Thread(target=follow, args=(gallery, backfill, stop, poll_seconds), daemon=True)
        follower.start()
        yield
        stop.set()
        follower.join()

    app = FastAPI(title="A gallery that serves while it is re-embedded", lifespan=lifespan)

    @app.exception_handler(FctError)
    def refuse(_request: Request, error: FctError) -> JSONResponse:
        """What a client can fix is its error, all else ours."""
        is_theirs = isinstance(error, InputError | UsageError)
        return JSONResponse({"error": str(error)}, 422 if is_theirs else 503)

    # Plain functions, which FastAPI runs in threads: a search takes milliseconds of CPU.
    @app.post("/search")
    def search(query: Query) -> dict[str, Any]:
        """Return the nearest rows of each query, the nearest first."""
        found = gallery.search(_array(query.vectors), query.k)
        nothing = "" if found.ids.dtype.kind in "SU" else -1
        return {
            "results": [
                [
                    {"id": name, "distance": distance, "model": "new" if is_new else "old"}
                    for name, distance, is_new in zip(*row, strict=True)
                    if name != nothing
                ]
                for row in zip(found.ids.tolist(), found.distances.tolist(), found.is_new.tolist(), strict=True)
            ]
        }

    @app.post("/upsert")
    def upsert(rows: Rows) -> dict[str, int]:
        """Add rows or replace those of the same ids; the next search finds them."""
        side = None if rows.side is None else _array(rows.side)
        return {"written": gallery.upsert(rows.ids, _array(rows.vectors), side, model=rows.model)}

    @app.post("/delete")
    def delete(names: Names) -> dict[str, int]:
        """Delete rows; the next search does not find them."""
        return {"deleted": gallery.delete(names.ids)}

    @app.get("/progress")
    def progress() -> dict[str, Any]:
        """How far the re-embedding is."""
        return gallery.progress.as_dict()

    return app


def follow(gallery: MixedGallery, backfill: Path | None, stop: threading.Event, seconds: float) -> None:
    """Take over what ``fct-backfill`` appends, and fold changed rows into the big index now and then."""
    taken = 0
    while not stop.wait(seconds):
        try:
            if backfill is not None and (backfill / "journal.jsonl").exists():
                known = count_parts(backfill)
                for ids, rows in read_backfilled(backfill, taken, known):
                    gallery.upsert(ids, rows, replacing="old")
                taken = known
            if gallery.progress.changed >= COMPACT_AT:
                gallery.compact()
        except FctError as error:  # searches go on; the next turn tries again
            print(f"warning: {error}", flush=True)


def _array(rows: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    if len({len(row) for row in rows}) > 1:
        raise UsageError("vectors are of several lengths")
    with np.errstate(over="ignore"):  # what does not fit float32 is infinite, which the gallery refuses
        return np.array(rows, np.float32)


if __name__ == "__main__":
    import uvicorn

    follows = os.environ.get("BACKFILL")
    uvicorn.run(create_app(MixedGallery.published(os.environ["DEST"]), Path(follows) if follows else None), port=8000)
