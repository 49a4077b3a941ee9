"""Arrow columns as NumPy arrays, with suspicion: nulls shift rows, lists may be ragged, offsets hostile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fct_infer.connectors.options import (
    Columns,
    SourceOptions,
    check_shape,
    find_columns,
    integer_or_text,
    optional,
    read_dtype,
)
from fct_infer.errors import ArtifactError, GalleryError
from fct_infer.gallery.source import Schema
from fct_infer.identity import ModelId
from fct_infer.storage.strict_json import parse_strict

EXTRA = "parquet"
MODEL_KEY = b"fct_infer.model"  # in metadata of a schema or a column: whose vectors they are, as JSON
MAX_ID = 1 << 16  # characters, or bytes: all ids are held as wide as the longest
_VIEWS = {"string_view": "large_string", "binary_view": "large_binary"}  # for which Arrow has few kernels
_TEXT = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")


def pyarrow(module: str = "") -> Any:
    """Return pyarrow, or one of its modules.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional(f"pyarrow.{module}" if module else "pyarrow", EXTRA)


def _plain(kind: Any) -> Any:
    """Return the storage type of an extension type."""
    return kind.storage_type if isinstance(kind, pyarrow().BaseExtensionType) else kind


def is_vector(kind: Any) -> bool:
    """Whether a type is a list, or list of fixed size, of numbers."""
    types, kind = pyarrow("types"), _plain(kind)
    if not (types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)):
        return False
    child = _plain(kind.value_type)
    return bool(types.is_floating(child) or types.is_integer(child))


def is_id(kind: Any) -> bool:
    """Whether a type is whole numbers, text or bytes."""
    types, kind = pyarrow("types"), _plain(kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_fixed_size_binary(kind) or str(kind) in (*_TEXT, *_BYTES))


def columns_of(file: Path, schema: Any, options: SourceOptions) -> Columns:
    """Return which columns of an Arrow schema are read; errors as of :func:`find_columns`.

    Raises:
        GalleryError: two have the same name.
    """
    kinds = {field.name: field.type for field in schema}
    if len(kinds) != len(schema):
        raise GalleryError(f"{file}: two columns have the same name")
    vectors = [name for name, kind in kinds.items() if is_vector(kind)]
    scalars = [name for name, kind in kinds.items() if is_id(kind)]
    unfit = {name: kind for name, kind in kinds.items() if name not in (*vectors, *scalars)}
    return find_columns(file, vectors, scalars, options, unfit)


def stored_dtype(kind: Any) -> np.dtype[Any]:
    """Return the dtype of a vector type's numbers."""
    dtype: np.dtype[Any] = np.dtype(_plain(_plain(kind).value_type).to_pandas_dtype())
    return dtype


def schema_of(
    rows: int,
    columns: Columns,
    kinds: Mapping[str, Any],
    width_of: Callable[[str, str], int],
    where: Path | str,
    allow_cast: bool,
) -> Schema:
    """Return the schema of Arrow columns.

    Args:
        rows: there are.
        columns: which are read in which role.
        kinds: types by column.
        width_of: says how wide the vectors of a role in a column are; asked once its type is known to be fit.
        where: they lie, for messages.
        allow_cast: see :class:`~fct_infer.connectors.options.SourceOptions`.

    Raises:
        GalleryError: a type or a shape is not accepted.
    """
    dtypes, widths = {}, {}
    for role, name in columns.roles.items():
        if role != "id":
            column = f"{where}, column {name!r}"
            dtypes[role] = read_dtype(stored_dtype(kinds[name]), column, allow_cast)
            widths[role] = width_of(role, name)
            check_shape(rows, widths[role], column)
    return Schema(
        rows,
        widths["embedding"],
        dtypes["embedding"],
        widths.get("side"),
        dtypes.get("side"),
        None if columns.id is None else id_dtype(kinds[columns.id]),
        columns.roles,
        columns.other,
    )


def fixed_dim(kind: Any) -> int | None:
    """Return the width that a vector type itself tells."""
    kind = _plain(kind)
    return int(kind.list_size) if pyarrow("types").is_fixed_size_list(kind) else None


def id_dtype(kind: Any) -> np.dtype[Any]:
    """Return int64, bytes of a fixed width, or text or bytes of unknown width (size 0)."""
    types, kind = pyarrow("types"), _plain(kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind):
        return np.dtype(np.int64)
    if types.is_fixed_size_binary(kind):
        return np.dtype(f"S{kind.byte_width}")
    return np.dtype("U" if str(kind) in _TEXT else "S")


def vectors(array: Any, dim: int | None, where: str | Callable[[int], str], first: int, file: Path) -> NDArray[Any]:
    """Return the rows of one array of vectors as a read-only (n, dim) view.

    Args:
        array: an Arrow array of a type that :func:`is_vector`.
        dim: the width every row must have; None takes that of the first row.
        where: the part's words, for messages; or gives those of a row by its number.
        first: number of the array's first row in that part.
        file: for messages about no row in particular.

    Raises:
        GalleryError: a row or a number in it is null, or a row has another width; names the row.
    """
    array = _storage(array, file)
    if array.null_count:
        row = first + int(np.argmax(np.asarray(array.is_null())))
        raise GalleryError(f"{_row(where, row)}: is null, wanted a vector")
    if pyarrow("types").is_fixed_size_list(array.type):
        width = int(array.type.list_size)
        begin, end = array.offset * width, (array.offset + len(array)) * width
        if dim is not None and width != dim:
            raise GalleryError(f"{_row(where, first)}: is {width} wide, wanted {dim}")
    else:
        offsets = np.asarray(array.offsets)
        widths = np.diff(offsets)
        width = int(widths[0]) if dim is None else dim
        if (ragged := widths != width).any():
            row = int(np.argmax(ragged))
            raise GalleryError(f"{_row(where, first + row)}: is {widths[row]} wide, wanted {width}")
        begin, end = int(offsets[0]), int(offsets[-1])
    values = _storage(array.values, file)
    if end > len(values):
        raise GalleryError(f"{_row(where, first)}: lists reach behind their numbers; the file is damaged")
    values = values.slice(begin, end - begin)
    if values.null_count:
        row = first + int(np.argmax(np.asarray(values.is_null()))) // width
        raise GalleryError(f"{_row(where, row)}: holds a null, wanted numbers")
    return np.asarray(values.to_numpy(zero_copy_only=True)).reshape(len(array), width)


def _row(where: str | Callable[[int], str], row: int) -> str:
    return f"{where}, row {row}" if isinstance(where, str) else where(row)


def ids(array: Any, where: str, first: int, file: Path) -> NDArray[Any]:
    """Return the ids in one array as int64, bytes or str.

    Raises:
        GalleryError: an id is null, does not fit int64, is a whole document, or ends with a NUL, which text loses.
    """
    arrow, array = pyarrow(), _without_views(_storage(array, file))
    if pyarrow("types").is_dictionary(array.type):
        array = arrow.DictionaryArray.from_arrays(array.indices, _without_views(array.dictionary)).dictionary_decode()
    if array.null_count:
        row = first + int(np.argmax(np.asarray(array.is_null())))
        raise GalleryError(f"{where}, row {row}: has no id (null)")
    if pyarrow("types").is_integer(array.type):
        return integer_or_text(array.to_numpy(zero_copy_only=False), where, first)
    if (dtype := id_dtype(array.type)).itemsize:
        return np.array(array.to_pylist(), dtype)
    try:
        values = array.to_pylist()
    except UnicodeDecodeError as error:
        raise GalleryError(f"{where}: an id from row {first} on is not UTF-8") from error
    return text_ids(values, dtype.kind, where, first)


def _without_views(array: Any) -> Any:
    """Return text and bytes that lie as views, as Polars writes them, one after the other."""
    plain = _VIEWS.get(str(array.type))
    return array if plain is None else array.cast(plain)


def text_ids(values: list[Any], kind: str, where: str, first: int) -> NDArray[Any]:
    """Return text or bytes as an array of fixed width; refuses what it would change, or make too wide."""
    end = "\0" if kind == "U" else b"\0"
    if (width := max(map(len, values), default=1) or 1) > MAX_ID:
        long = next(row for row, value in enumerate(values) if len(value) > MAX_ID)
        raise GalleryError(f"{where}, row {first + long}: its id is {len(values[long]):,} long, more than {MAX_ID:,}")
    row = next((row for row, value in enumerate(values) if value.endswith(end)), None)
    if row is not None:
        raise GalleryError(f"{where}, row {first + row}: id {values[row]!r} ends with a NUL byte")
    return np.array(values, dtype=f"{kind}{width}")


def _storage(array: Any, file: Path) -> Any:
    """Return the array beneath an extension type, with its offsets and lengths proven to lie inside its buffers."""
    array = getattr(array, "storage", array)
    try:
        array.validate(full=False)
    except pyarrow().ArrowInvalid as error:
        raise GalleryError(f"{file}: is damaged: {error}") from error
    return array


def model_said(metadata: Mapping[bytes, bytes] | None, where: object) -> ModelId | None:
    """Return whose vectors a column or a file holds, as its metadata says.

    Raises:
        ArtifactError: that is malformed; names ``where``.
    """
    said = (metadata or {}).get(MODEL_KEY)
    if said is None:
        return None
    try:
        return ModelId.parse(parse_strict(said), MODEL_KEY.decode())
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error
