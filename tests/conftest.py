"""What all tests share: the fixtures of real engines, and how hypothesis runs. A test whose engine can't be had here is
skipped, and so is one that is marked slow, unless SLOW_TESTS=1 (as in CI), or interpreted, where proxy is compiled."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import proxy.connection
import proxy.relay
import proxy.reload
from tests.engines.process import PATIENCE

pytest_plugins = ["tests.engines.fixtures"]

# How fast this machine is at the moment is nothing that a test may fail of.
settings.register_profile("illm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("illm")

# A shell's background jobs ignore interrupts, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor is how long it stands still: what the product gives up on after a second or two, it doesn't in tests of other
# things. (Where the hot path is compiled, the first of these is a constant that nothing changes.)
proxy.connection.STALE = PATIENCE
proxy.reload.PATIENCE = PATIENCE


@pytest.fixture(autouse=True)
def _what_is_logged() -> Iterator[None]:
    """A command that a test runs in this process sets it as for a terminal; the next test is not to see that."""
    logger = logging.getLogger("illm")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unwanted = {}
    if os.environ.get("SLOW_TESTS") != "1":
        unwanted["slow"] = pytest.mark.skip(reason="slow: SLOW_TESTS=1 runs it")
    if not proxy.relay.__file__.endswith(".py"):
        unwanted["interpreted"] = pytest.mark.skip(reason="puts something else in the place of a compiled part")
    for item in items:
        for name, skip in unwanted.items():
            if name in item.keywords:
                item.add_marker(skip)
