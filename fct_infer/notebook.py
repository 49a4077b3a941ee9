"""Progress of a call in a notebook that was given no ``progress``: a bar under the cell, which stays there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SECONDS = 0.2  # between two updates: each is a message to the browser


def shows_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that shows a bar in a notebook where its keyword ``progress`` is left out.

    ``progress=lambda *_: None`` shows none. Outside of notebooks nothing changes.
    """

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        if options.get("progress") is not None or not is_notebook():
            return function(*arguments, **options)
        bar = options["progress"] = Bar()
        result = function(*arguments, **options)
        bar.finish()
        return result

    return call


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")  # which every kernel has imported
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class Bar:
    """What is called as ``progress(stage, done, whole)`` and shows it in one place under the cell."""

    def __init__(self) -> None:
        self._start, self._shown, self._stage = time.monotonic(), 0.0, ""
        self._place: Any = None

    def __call__(self, stage: str, done: int, whole: int) -> None:
        """Show it, if it says something new and not too soon after the one before."""
        now = time.monotonic()
        if stage == self._stage and done < whole and now - self._shown < _SECONDS:
            return
        self._stage, self._shown = stage, now
        self._show(f"{stage}: {done:,} of {whole:,}, {now - self._start:.0f} s", done, whole)

    def finish(self) -> None:
        """Show that all is done; after an error it stays where it stood."""
        self._show(f"done in {time.monotonic() - self._start:.1f} s", 1, 1)

    def _show(self, text: str, done: int, whole: int) -> None:
        html = f'<progress max="{max(whole, 1)}" value="{done}"></progress> {escape(text)}'
        said = {"text/plain": text, "text/html": html}
        if self._place is None:
            from IPython.display import display

            self._place = display(said, raw=True, display_id=True)
        else:
            self._place.update(said, raw=True)
