"""docs/scaling.md: its links lead somewhere, and its numbers are of the order that Redis counts now."""

from __future__ import annotations

import re

import pytest

from benchmarks.scaling import IDLE_WORKERS, SLOTS, execution_cost, idle_cost
from sandbox_adapters.settings import Settings
from sandbox_core.testing.samples import NODE, WIDE, pending, place_of
from tests.integration.docs.markdown import ROOT
from tests.integration.redis.conftest import CLOCK, opened
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
DOCUMENT = ROOT / "docs" / "scaling.md"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_every_link_and_path_leads_somewhere() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`(deploy/[^`]+)`", text):
        assert (ROOT / path).exists(), path


def recorded(what: str) -> tuple[float, float]:
    """Return the round trips and commands that the document shows."""
    found = re.search(
        rf"^\| \*{what}\*[^|]*\| ([\d.]+) \| ([\d.]+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return float(found[1]), float(found[2])


async def test_an_execution_costs_what_the_document_says(own_redis: RedisServer) -> None:
    cost = await execution_cost(own_redis, count=64)
    round_trips, commands = recorded("e")
    assert cost.round_trips <= 1.25 * round_trips
    assert cost.commands <= 1.25 * commands


async def test_what_goes_on_running_costs_what_the_document_says(own_redis: RedisServer) -> None:
    async with opened(own_redis) as store:
        leases = []
        for _ in range(SLOTS):
            execution = await store.create(pending(CLOCK))
            await store.reserve(place_of(execution), WIDE, lease_seconds=60)
            leases.append((await store.claim(execution.id, NODE, lease_seconds=60)).lease)
        await store.renew(leases, lease_seconds=60)
        before = own_redis.commands()
        await store.renew(leases, lease_seconds=60)
        used = own_redis.commands() - before
    each_renewal = (used.total() - used["info"]) / SLOTS
    _, commands = recorded("r")
    assert each_renewal / (Settings().lease_seconds / 3) <= 1.25 * commands


async def test_fifty_idle_workers_cost_under_150_commands_a_second(own_redis: RedisServer) -> None:
    cost = await idle_cost(own_redis, seconds=9, settle=2)
    assert IDLE_WORKERS == 50
    assert cost.commands / cost.seconds < 150
