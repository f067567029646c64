"""`/metrics` of real servers and workers, scraped over HTTP while they work."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.integration.mcp.harness import Served, call, connected, serving, until
from tests.integration.workers.harness import LEASE_SECONDS, fleet
from tests.redis_server import RedisServer
from tests.scrapes import Scrape, read_scrape

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
TOKEN = "scraper-s3cret"
SECRET = "s3cret-of-a-caller"


def get(served: Served, token: str | None = TOKEN, method: str = "GET") -> httpx2.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx2.request(method, f"http://127.0.0.1:{served.port}/metrics", headers=headers, timeout=20)


def scrape(served: Served) -> Scrape:
    said = get(served)
    assert said.status_code == 200
    assert said.headers["content-type"].startswith("text/plain; version=")
    for hidden in (SECRET, TOKEN, "alice", "127.0.0.1", "redis:"):
        assert hidden not in said.text
    return read_scrape(said.text)


def ended(scrapes: list[Scrape], reason: str) -> float:
    return sum(told.value("sandbox_executions_total", reason=reason) for told in scrapes)


def settled(told: list[Scrape]) -> list[Scrape] | None:
    """Return them when they tell of 6 executions that ended, 4 that run and 1 that waits; None before."""
    started = sum(each.value("sandbox_start_seconds_count") for each in told)
    all_see_one = all(each.value("sandbox_queue_up") == each.value("sandbox_queue_depth") == 1 for each in told)
    return told if (started, ended(told, "exited"), all_see_one) == (10, 6, True) else None


async def test_a_fleet_counts_each_execution_once_whoever_ends_it(own_redis: RedisServer, tmp_path: Path) -> None:
    variables = {"SANDBOX_METRICS": "token", "SANDBOX_METRICS_TOKEN": TOKEN, "SANDBOX_DRAIN_GRACE_SECONDS": "600"}
    with fleet(
        own_redis, tmp_path, servers=2, workers=2, concurrency=2, lease_seconds=LEASE_SECONDS, **variables
    ) as mine:
        everyone = [*mine.servers, *mine.workers]
        async with connected(mine.servers[0].url) as first, connected(mine.servers[1].url) as second:
            for number in range(6):
                client = (first, second)[number % 2]
                await call(client, "execute_code", command=f"printf {SECRET}", session_id=f"{SECRET}-{number}")
            for _ in range(4):
                await call(first, "execute_code_async", command="echo up; sleep 300")
            await until(lambda: sum(worker.told()["running"] for worker in mine.workers) == 4, "all are busy")
            waits = await call(second, "execute_code_async", command="sleep 60")
            told = await until(lambda: settled([scrape(program) for program in everyone]), "all of it is counted")
            for each in told:
                assert each.value("sandbox_queue_oldest_age_seconds") > 0
                assert each.value("sandbox_backend_round_trips_total", connection="state") > 0
            assert [each.value("sandbox_slots_busy") for each in told] == [0, 0, 2, 2]
            assert [each.value("sandbox_slots_free") for each in told] == [0, 0, 0, 0]
            printed = sum(each.value("sandbox_output_bytes_total", stream="stdout") for each in told)
            assert printed >= 6 * len(SECRET)
            await call(first, "cancel_execution", execution_id=waits["execution_id"])
            mine.workers[1].kill()
            living = everyone[:3]
            await until(lambda: ended([scrape(program) for program in living], "lost") == 2, "the lost are marked")
            mine.workers[0].process.terminate()
            await until(lambda: scrape(mine.workers[0]).value("sandbox_draining") == 1, "it drains")
            await until(lambda: ended([scrape(program) for program in mine.servers], "cancelled") == 1, "it is counted")


async def test_a_server_by_itself_needs_the_scraper_s_token_and_takes_no_caller_s(tmp_path: Path) -> None:
    variables = {"SANDBOX_METRICS": "token", "SANDBOX_METRICS_TOKEN": TOKEN, "SANDBOX_AUTH_TOKEN": SECRET}
    with serving(tmp_path, **variables) as served:
        for wrong in (None, "x", SECRET, TOKEN + "x"):
            said = get(served, wrong)
            assert said.status_code == 401
            assert "sandbox_" not in said.text
        assert get(served, method="POST").status_code == 405
        assert "sandbox_backend_round_trips_total" not in scrape(served).names()
        refused = httpx2.post(served.url, json={}, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20)
        assert refused.status_code == 401
        assert get(served, method="HEAD").content == b""
    assert TOKEN not in served.log.read_text()


async def test_it_is_not_there_unless_it_was_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path, SANDBOX_METRICS_TOKEN=TOKEN) as served:
        assert get(served).status_code == 404


async def test_it_is_open_where_the_operator_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, SANDBOX_METRICS="open", SANDBOX_AUTH_TOKEN=SECRET) as served:
        assert read_scrape(get(served, None).text).value("sandbox_slots_free") == 10
