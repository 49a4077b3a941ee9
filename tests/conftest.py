"""For all tests: nothing depends on how fast the machine is."""

from contextlib import suppress

with suppress(ImportError):  # tests on a simulated card do without it
    from hypothesis import settings

    settings.register_profile("any-machine", deadline=None)
    settings.load_profile("any-machine")
