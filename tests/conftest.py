"""For all tests: nothing depends on how fast the machine is."""

import signal
from contextlib import suppress

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell does to what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children inherit it, and some of them are interrupted

with suppress(ImportError):  # tests on a simulated device do without it
    from hypothesis import settings

    settings.register_profile("any-machine", deadline=None)
    settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server with pgvector."""
    from support.postgres import Server

    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True, scope="session")
def _few_random_rows():
    """Files are tried on fewer rows than in production: of 4,096 the neighbours take most of an export here."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError):
            from fct_infer.export import probe

            patch.setattr(probe, "LARGE_BATCH", 64)
        yield
