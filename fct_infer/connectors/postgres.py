"""A table in PostgreSQL as the user names it, and connections to its server.

``postgresql://user@host/db?table=items&schema=public``: what follows the ``?`` and is not ours goes to libpq. A
password in a URL is accepted, as libpq does, and never shown or kept: names are made without it, and it is cut out of
what the server's messages say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from fct_infer.connectors.options import optional
from fct_infer.errors import FctError, GalleryError, OutputError, ResourceError, UsageError
from fct_infer.storage.closing import closed_if_refused

SCHEMES = ("postgresql", "postgres")
MAX_NAME = 63  # bytes of an identifier; PostgreSQL cuts off the rest without a word
_OURS = ("table", "schema", "column", "view")
_SECRET = ("password", "sslpassword")
_SESSION = {
    "application_name": "fct_infer",
    "statement_timeout": "0",  # one page may take minutes; a role's default would end it for ever
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "lock_timeout": "0",
    "client_min_messages": "warning",
    "DateStyle": "ISO, YMD",  # keys are kept as text
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}


@dataclass(frozen=True)
class TableUrl:
    """What a URL names.

    Attributes:
        conninfo: for libpq; may hold a password. Kept out of ``repr``.
        name: the URL without a password.
        table, schema: ``schema`` is None where the server's search path finds it.
        column, view: of a destination: the new column, and the view that is published.
    """

    conninfo: str = field(repr=False)
    name: str
    table: str
    schema: str | None = None
    column: str | None = None
    view: str | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def scrubbed(self, text: str) -> str:
        """Return a message without the password, however it is written."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def parse_url(url: str) -> TableUrl:
    """Take a URL apart.

    Raises:
        UsageError: it names no table, or says something twice; the message does not repeat the URL's password.
    """
    scheme, _, rest = url.partition("://")
    rest, _, fragment = rest.partition("#")
    where, _, query = rest.partition("?")
    if scheme.lower() not in SCHEMES or fragment:
        raise UsageError("wanted postgresql://user@host/database?table=NAME, without a #")
    pairs = parse_qsl(query, keep_blank_values=True)
    ours = {key: value for key, value in pairs if key in _OURS}
    if len(ours) != sum(key in _OURS for key, _ in pairs):
        raise UsageError("the URL names table, schema, column or view twice")
    # quote, not quote_plus: libpq takes a + for itself
    theirs = [(key, value) for key, value in pairs if key not in _OURS]
    netloc, slash, database = where.partition("/")
    user_info, at, hosts = netloc.rpartition("@")
    user, colon, password = user_info.partition(":")
    shown = [(key, value) for key, value in theirs if key not in _SECRET]
    name = f"postgresql://{user}{at}{hosts}{slash}{database}"
    secrets = {password, unquote(password), *(value for key, value in theirs if key in _SECRET)} - {""}
    table = TableUrl(
        f"postgresql://{user}{colon}{password}{at}{hosts}{slash}{database}?{urlencode(theirs, quote_via=quote)}",
        name + "?" + urlencode([*shown, *ours.items()], quote_via=quote, safe="/"),
        ours.get("table", ""),
        ours.get("schema") or None,
        ours.get("column") or None,
        ours.get("view") or None,
        tuple(sorted(secrets, key=len, reverse=True)),
    )
    if not table.table:
        raise UsageError(f"{table.name}: names no table; add ?table=NAME")
    for key, value in ours.items():
        if len(value.encode()) > MAX_NAME or "\0" in value:
            raise UsageError(f"{table.name}: {key} is no name that PostgreSQL has: at most {MAX_NAME} bytes")
    return table


def psycopg() -> Any:
    """Return psycopg 3, with its module ``sql``.

    Raises:
        MissingExtraError: it is not installed.
    """
    optional("psycopg.sql", "postgres")
    return optional("psycopg", "postgres")


@contextmanager
def server_errors(url: TableUrl, at_work: str = "") -> Iterator[None]:
    """Turn what the server or the connection raises into an error that says what to do.

    Raises:
        ResourceError: the connection is lost, a lock or time limit was hit, or the server's disk is full.
        UsageError: the role may not do that.
        GalleryError: anything else that the server refuses.
    """
    errors = psycopg().errors
    try:
        yield
    except psycopg().Error as error:
        raise _translated(url, error, errors, at_work) from None  # what it was raised from may hold the password


def _translated(url: TableUrl, error: Any, errors: Any, at_work: str) -> FctError:
    words = url.scrubbed(str(error)).strip().splitlines()
    text = f"{url.name}: {at_work}{words[0] if words else type(error).__name__}"
    if isinstance(error, errors.InsufficientPrivilege):
        return UsageError(f"{text}; docs/postgres.md lists what the role needs")
    if isinstance(error, errors.LockNotAvailable | errors.DeadlockDetected | errors.QueryCanceled):
        return ResourceError(f"{text}; nothing is lost, the same command goes on")
    if isinstance(error, errors.DiskFull | errors.OutOfMemory | errors.ConfigurationLimitExceeded):
        return ResourceError(f"the server of {text}; nothing is lost, the same command goes on")
    if isinstance(error, psycopg().OperationalError):
        return ResourceError(f"{text}; if work was begun, the same command goes on with it")
    if isinstance(error, errors.DuplicateObject | errors.DuplicateTable):
        return OutputError(text)
    return GalleryError(text)


def connect(url: TableUrl) -> Any:
    """Return a connection in autocommit mode that no default of the role or the server interrupts.

    Raises:
        ResourceError: the server cannot be reached or refuses the role.
    """
    library = psycopg()
    with server_errors(url):
        try:
            connection = library.connect(url.conninfo, autocommit=True, connect_timeout=10)
        except library.ProgrammingError:  # libpq's words repeat the piece that it could not read
            raise UsageError(f"{url.name}: libpq cannot read this URL; check its options and %-signs") from None
        with closed_if_refused(connection):
            # All in one round trip; what this server does not know is left out.
            connection.execute(
                "SELECT set_config(s.name, w.value, false) FROM pg_catalog.pg_settings s "
                "JOIN unnest(%s::text[], %s::text[]) AS w (name, value) ON s.name = w.name",
                (list(_SESSION), list(_SESSION.values())),
            )
        return connection


def pin_search_path(connection: Any) -> None:
    """Let no schema that others may write into decide what a name or an operator means; pgvector's stays."""
    found = connection.execute(
        "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'vector'"
    ).fetchone()
    sql = psycopg().sql
    names = [sql.Identifier("pg_catalog")] + ([sql.Identifier(found[0])] if found else []) + [sql.Identifier("pg_temp")]
    connection.execute(sql.SQL("SET search_path = {}").format(sql.SQL(", ").join(names)))


def literals(*values: Any) -> Any:
    """Return constants with commas between them."""
    sql = psycopg().sql
    return sql.SQL(", ").join(map(sql.Literal, values))
