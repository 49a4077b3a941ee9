"""What the user may choose of an upgrade, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fct_infer.connectors import SINKS
from fct_infer.cuda import device_numbers
from fct_infer.errors import UsageError
from fct_infer.upgrade.probe import Probe

METRICS = ("l2", "ip", "cosine")
DTYPES = ("float32", "float16")
MAX_BLOCK_ROWS = 1 << 20
MAX_SHARDS_AT_ONCE = 64


@dataclass(frozen=True)
class Settings:
    """What the user may choose. The first four decide the bytes of the result and are part of its identity.

    Attributes:
        index: FAISS factory string, ``auto`` or ``none``.
        metric: ``l2``, ``ip``, or ``cosine`` (rows are L2-normalised on their way into the index).
        normalize: L2-normalise the new embeddings themselves; see also
            :func:`~fct_infer.backends.loading.load_transformation`.
        dtype: ``float32`` or ``float16`` of the new embeddings; None keeps the gallery's.
        verify_rows: rows recomputed in float64 before publishing.
        min_cosine: lowest cosine allowed between those and the published rows; None takes that of
            :data:`fct_infer.artifacts.precisions.LIMITS`.
        min_recall: lowest recall@10 allowed for the index; None reports it and allows any.
        block_rows: rows processed at once; None takes about 16 MiB a block, up to 128 MiB on a device.
        shards_at_once: shards upgraded at the same time, each read, hashed and written by threads of its own; None
            takes one, or, where a device would outrun those, as many as there are threads for. With an index, which
            takes rows in order, one.
        old_index: the index of the old embeddings, an inverted file with as many lists: training begins with its lists,
            and keeps what comes of it if that is as good as training from scratch (the report says). A FAISS file that
            is trusted, or a published folder. With ``index`` ``auto`` its number of lists is taken.
        sharded_index: publish the index as one shard for each part of the gallery, which searches open where they lie
            (an inverted file's lists stay on the disk) and search as one: for an index that no memory holds.
        keep: versions of what is replaced that are kept for :func:`fct_infer.gallery.versions.rollback`; 0 drops all.
        format: of what is published: ``npy``, or ``parquet`` with all other columns of a Parquet source.
        index_device: where the index is built: ``cpu``, ``cuda:N``, or ``auto``: on the transformation's device,
            by FAISS if it can use it, else by the core's kernels if it has some for such an index, else on the CPU.
        probe: what is known of the new model, by which the meaning of the new rows is measured before they are
            published; a path is of pairs. No better than chance is a failed gate. See :class:`Probe`.
        min_probe: lowest recall@10 allowed for the probe's vectors; None reports it.
    """

    index: str = "auto"
    metric: str = "l2"
    normalize: bool = False
    dtype: str | None = None
    verify_rows: int = 1024
    min_cosine: float | None = None
    min_recall: float | None = None
    block_rows: int | None = None
    shards_at_once: int | None = None
    index_device: str = "auto"
    format: str = "npy"
    probe: Probe | str | Path | None = None
    min_probe: float | None = None
    old_index: str | Path | None = None
    keep: int = 1
    sharded_index: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"metric is {self.metric!r}, wanted one of {', '.join(METRICS)}")
        if self.dtype not in (None, *DTYPES):
            raise UsageError(f"dtype is {self.dtype!r}, wanted one of {', '.join(DTYPES)}")
        if self.format not in SINKS:
            raise UsageError(f"format is {self.format!r}, wanted one of {', '.join(SINKS)}")
        if self.keep < 0:
            raise UsageError(f"keep is {self.keep}, wanted 0 or more")
        if self.index_device != "auto":
            device_numbers(self.index_device)
        for name, most in (
            ("verify_rows", MAX_BLOCK_ROWS),
            ("block_rows", MAX_BLOCK_ROWS),
            ("shards_at_once", MAX_SHARDS_AT_ONCE),
        ):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{name} is {value}, wanted 1 to {most:,}")
        if self.index != "none" and (self.shards_at_once or 1) > 1:
            raise UsageError(
                f"shards_at_once is {self.shards_at_once}, but an index takes rows in order: wanted 1, or index none"
            )
        if self.sharded_index and self.index == "none":
            raise UsageError("sharded_index is how an index is published, and index is none")
        if self.old_index is not None and self.index == "none":
            raise UsageError("old_index is where training of an index begins, and index is none")
        if self.min_probe is not None and self.probe is None:
            raise UsageError("min_probe is a limit on what a probe finds, and none is given")
        for name in ("min_cosine", "min_recall", "min_probe"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}, wanted a number from 0 to 1")
