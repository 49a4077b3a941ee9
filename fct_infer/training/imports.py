"""Objects that a configuration names as ``module:name``. This runs the user's code, as the user asked."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from fct_infer.errors import UsageError


def import_object(name: str) -> Any:
    """Return what ``module:name`` names; the working directory is searched too, as with ``python -m``.

    Raises:
        UsageError: there is no such module, or it has no such name.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{name}: cannot be imported: {error}") from error
    return found
