"""For all tests: nothing depends on how fast the machine is."""

from contextlib import suppress

import pytest

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
