"""Tables of the keys of a configuration, made from its dataclass, for the reference."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN = {int: "integer", float: "number", bool: "true or false", str: "text", dict: "mapping", Any: "anything"}
_NOT_GIVEN = {"old_dim", "side_dim", "new_dim", "uncertainty", "training", "validation"}  # the data and `loss` say them


@dataclass(frozen=True)
class Key:
    """One row of a table, in reStructuredText."""

    name: str
    type: str
    default: str
    text: str


def keys_of(kind: type) -> list[Key]:
    """Return the keys of a configuration dataclass, those without a default first."""
    hints, texts = get_type_hints(kind), _texts(kind)
    keys = [Key(each.name, _type(hints[each.name]), _default(each), texts.get(each.name, "")) for each in fields(kind)]
    return sorted(keys, key=lambda key: bool(key.default))


def nested_in(kind: type) -> set[type]:
    """Return the dataclasses that the keys of one hold, at any depth, and itself."""
    found = {kind}
    for hint in get_type_hints(kind).values():
        for each in (hint, *get_args(hint)):
            if is_dataclass(each) and isinstance(each, type):
                found |= nested_in(each)
    return found


def arguments_of(make: Callable[..., Any]) -> str:
    """Return what a model's ``arguments`` may be, with types and defaults; what data and loss say is left out."""
    whole: Any = make.func if isinstance(make, partial) else make
    hints = get_type_hints(whole.__init__ if inspect.isclass(whole) else whole)
    shown = []
    for name, each in inspect.signature(make).parameters.items():
        if name not in _NOT_GIVEN:
            default = "" if each.default is each.empty else f" = ``{_value(each.default)}``"
            shown.append(f"``{name}``: {_type(hints.get(name, Any))}{default}")
    return "; ".join(shown) or "none"


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], widths: str) -> Iterator[str]:
    """Yield the lines of a table in reStructuredText."""
    yield from (".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", "")
    for row in (heads, *rows):
        for number, cell in enumerate(row):
            yield f"   {' ' if number else '*'} - {cell}"
    yield ""


def _texts(kind: type) -> dict[str, str]:
    """Return what the docstrings say of each attribute; a class's own words come before its bases'."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, section = (inspect.cleandoc(each.__doc__) if each.__doc__ else "").partition("Attributes:\n")
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?=    \w)", f"\n{section}")[1:]:
            names, _, text = entry.partition(":")
            found |= dict.fromkeys(re.split(r",\s*", names.strip()), " ".join(text.split()))
    return {name: _code(text) for name, text in found.items()}


def _code(text: str) -> str:
    """Return text without links to what the reference does not list, and to notes in the code."""
    text = re.sub(r"\s*See Note \[[^]]*\]\.", "", text)
    return re.sub(r":(?:class|func|meth|mod|data):`~?([^`]*)`", r"``\1``", text)


def _type(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return f":ref:`{hint.__name__} <keys-{hint.__name__}>`"
    if origin is Literal:
        return " or ".join(f"``{each}``" for each in options)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _type(each) for each in options)
    if isinstance(origin, type) and issubclass(origin, Iterable) and origin is not dict:
        return f"list of {_type(options[0])}" if options else "list"
    return _PLAIN.get(origin or hint, "mapping" if "Mapping" in str(hint) else getattr(hint, "__name__", str(hint)))


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"``{_value(field.default)}``"
    return f"``{_value(field.default_factory())}``" if field.default_factory is not MISSING else ""


def _value(value: Any) -> str:
    """Return a value as YAML has it; of a nested configuration, what is not its default."""
    if is_dataclass(value) and not isinstance(value, type):
        given = {each.name: getattr(value, each.name) for each in fields(value)}
        own = {each.name: each.default for each in fields(value)}
        return "{" + ", ".join(f"{key}: {_value(v)}" for key, v in given.items() if v not in (own[key], {})) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
