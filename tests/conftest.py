"""What every test shares: how hypothesis looks for counter-examples, and what a skip means."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.skips", "tests.redis_server", "tests.nats_server", "tests.rabbitmq_server", "tests.tracks"]

# Examples take as long as the machine is busy, so there is no deadline; the number of examples is the bound. In CI the
# same examples come every time, so that a failure there is a change of the code.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs under both, unless its folder or file says otherwise."""
    return str(request.param)
