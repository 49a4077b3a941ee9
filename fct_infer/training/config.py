"""Configurations: YAML files and ``--set`` on top of the defaults that stand in dataclasses."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fct_infer.artifacts.files import read_file
from fct_infer.errors import ArtifactError, UsageError, import_error

Config = TypeVar("Config")

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


MAX_CONFIG_CHARACTERS, MAX_ALIASES, MAX_DEPTH = 1 << 20, 8, 64
MAX_CONFIG_BYTES = 4 * MAX_CONFIG_CHARACTERS  # as long as UTF-8 makes them


def shipped_recipes() -> dict[str, Path]:
    """Return the configurations that come with the package, by name: ``imagenet/old``."""
    package = Path(__file__).parents[1]
    folder = next((each for each in (package / "configs", package.parent / "configs") if each.is_dir()), None)
    found = sorted(folder.rglob("*.yaml")) if folder else []  # beside the package in a source tree
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found if folder}


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and put ``a.b=value`` overrides on top; values are YAML too.

    Args:
        path: a file, or the name of one of :func:`shipped_recipes`.
        overrides: as ``training.epochs=10``.

    Raises:
        UsageError: the file is missing or not a YAML mapping, or an override is not of that form.
        MissingExtraError: PyYAML is not installed.
        ResourceError: the machine failed.
    """
    try:
        text = read_file(_config_file(path), MAX_CONFIG_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read: is not UTF-8: {error}") from error
    except ArtifactError as error:
        raise UsageError(str(error)) from error
    values = _parse_yaml(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UsageError(f"{path}: holds a {type(values).__name__}, wanted a mapping of keys to values")
    for override in overrides:
        _override(values, override)
    return values


def _config_file(path: str | Path) -> Path:
    if Path(path).exists() or Path(path).suffix:
        return Path(path)
    recipes = shipped_recipes()
    if str(path) not in recipes:
        raise UsageError(f"{path}: no such file or recipe{hint(path, recipes)}")
    return recipes[str(path)]


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return a mapping of plain values as YAML, keys in the order given."""
    text: str = _yaml().safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text


def to_plain(config: Any) -> dict[str, Any]:
    """Return a configuration as a mapping that YAML and JSON can hold: :func:`from_plain` reads it back."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def from_plain(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build a configuration dataclass, nested ones included, from what a YAML file says.

    Args:
        kind: the dataclass; its defaults stand in for keys that are not given.
        values: key -> plain value.
        where: key of the whole, for messages.

    Raises:
        UsageError: a key is unknown or missing, or a value has the wrong type; the message names the key.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where or 'the configuration'}: got {_shown(values)}, wanted a mapping of keys to values")
    prefix = f"{where}." if where else ""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass by contract
    for key in values:
        if key not in known:
            raise UsageError(f"{prefix}{key}: unknown key{hint(key, known)}")
    missing = [prefix + name for name, field in known.items() if name not in values and _is_required(field)]
    if missing:
        raise UsageError(f"{', '.join(missing)}: missing, and has no default")
    hints = get_type_hints(kind)
    arguments = {key: _convert(value, hints[key], prefix + key) for key, value in values.items()}
    try:
        return kind(**arguments)
    except UsageError as error:
        raise UsageError(f"{prefix}{error}") from error


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Check what a configuration wants a function or class to be called with, as far as its signature tells.

    Raises:
        UsageError: there is no such argument, or it has another type; the message names it after ``where``.
    """
    parameters = inspect.signature(function).parameters
    whole: Any = function.func if isinstance(function, partial) else function
    hints = get_type_hints(whole.__init__ if inspect.isclass(whole) else whole)
    for name, value in arguments.items():
        if name not in parameters:
            raise UsageError(f"{where}: unknown argument {name!r}{hint(name, parameters)}")
        if _is_plain(hints.get(name)):
            _convert(value, hints[name], f"{where}: {name}")


def hint(name: Any, known: Iterable[str]) -> str:
    """Return the end of a message about a name that is not known."""
    known = list(known)
    guess = get_close_matches(str(name), known, n=1)
    return f"; did you mean {guess[0]!r}?" if guess else f"; known are {', '.join(known)}"


def _is_plain(kind: Any) -> bool:
    """Whether :func:`_convert` knows values of this type."""
    if get_origin(kind) in (Union, types.UnionType, tuple, list, Sequence):
        return all(map(_is_plain, get_args(kind)))
    return kind in (*_NAMES, type(None)) or get_origin(kind) is Literal


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Return ``value`` as ``kind``, a type as dataclass fields of configurations have it."""
    origin, options = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return from_plain(kind, value, where)
    if origin is Literal:
        if value in options and type(value) in map(type, options):
            return value
        raise UsageError(f"{where}: got {_shown(value)}, wanted {_either(map(repr, options))}")
    if origin in (Union, types.UnionType):
        return _convert_union(value, options, where)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: got {_shown(value)}, wanted a list")
        return (list if origin is list else tuple)(
            _convert(each, options[0], f"{where}[{row}]") for row, each in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where}: got {_shown(value)}, wanted a mapping of keys to values")
        return value
    return _convert_scalar(value, kind, where)


def _convert_scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float:
        try:
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                return float(value)  # a string: YAML 1.1 takes 1e-3 for one
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise UsageError(f"{where}: got {_shown(value)}, wanted {_NAMES.get(kind, kind.__name__)}")


def _convert_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    wanted = [option for option in options if option is not type(None)]
    nested = [option for option in wanted if is_dataclass(option)]
    if len(wanted) == 1 or (isinstance(value, Mapping) and len(nested) == 1):
        return _convert(value, (nested or wanted)[0], where)
    reasons = []
    for option in wanted:
        try:
            return _convert(value, option, where)
        except UsageError as error:
            reasons.append(str(error).rpartition("wanted ")[2])
    raise UsageError(f"{where}: got {_shown(value)}, wanted {_either(reasons)}")


def _either(names: Any) -> str:
    return " or ".join(names)


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {override}: wanted KEY=VALUE, such as training.epochs=10")
    for depth, key in enumerate(keys[:-1]):
        below = values.setdefault(key, {})
        if not isinstance(below, dict):
            raise UsageError(f"--set {override}: {'.'.join(keys[: depth + 1])} is {_shown(below)}, not a mapping")
        values = below
    values[keys[-1]] = _parse_yaml(text, f"--set {override}")


def _parse_yaml(text: str, where: str) -> Any:
    yaml = _yaml()
    try:
        if len(text) > MAX_CONFIG_CHARACTERS:
            raise ValueError(f"has {len(text):,} characters, at most {MAX_CONFIG_CHARACTERS:,} are read")
        _check_events(yaml, text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: is not YAML: {' '.join(str(error).split())}") from error


def _check_events(yaml: Any, text: str) -> None:
    """Refuse a few lines that are billions of values, or take minutes: the parser's time grows with depth squared."""
    aliases = depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
    if aliases > MAX_ALIASES:
        raise ValueError(f"has {aliases:,} aliases, at most {MAX_ALIASES} are followed")


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise import_error("pyyaml", "train", error) from error
    return yaml
