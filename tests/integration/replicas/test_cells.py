"""deploy/nginx/cells.conf in a real nginx: a caller's token leads to its cell, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from tests.integration.mcp.harness import call, connected, structured
from tests.integration.replicas.harness import DEPLOY, Replica, nginx, replicas
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
ALICE, BOB, NOBODY = "a" * 43, "B" * 43, "n" * 43


@pytest.fixture(scope="module")
def cells(
    replica_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, Replica]]]:
    """The address of `/mcp`, and one server of each cell. A prefix is as good as a Redis for what is tried here."""
    text = (DEPLOY / "nginx" / "cells.conf").read_text()
    tmp_path = tmp_path_factory.mktemp("cells")
    written = tmp_path / "cells.conf"
    written.write_text(text.replace("TOKEN_OF_ALICE", ALICE).replace("TOKEN_OF_BOB", BOB))
    started: dict[str, Replica] = {}
    with ExitStack() as stack:
        for token in (ALICE, BOB):
            directory = tmp_path / token[0]
            directory.mkdir()
            of_cell = {"SANDBOX_REDIS_PREFIX": f"cell-{token[0].lower()}", "SANDBOX_AUTH_TOKEN": token}
            (started[token],) = stack.enter_context(replicas(replica_redis, directory, 1, **of_cell))
        address = stack.enter_context(nginx(written, list(started.values()), tmp_path))
        yield f"{address}/mcp", started


async def test_a_token_leads_to_its_cell(cells: tuple[str, dict[str, Replica]]) -> None:
    door, servers = cells
    ids = {}
    for token in (ALICE, BOB):
        async with connected(door, token=token) as client:
            ids[token] = (await call(client, "execute_code", command="echo in"))["execution_id"]
    for token, other in ((ALICE, BOB), (BOB, ALICE)):
        async with connected(servers[token].url, token=token) as client:
            assert (await call(client, "get_execution_status", execution_id=ids[token]))["status"] == "completed"
            said = structured(await client.call_tool("get_execution_status", {"execution_id": ids[other]}))
            assert said["error"]["code"] == "execution_not_found"


async def test_what_the_balancer_does_not_know_the_cell_refuses(cells: tuple[str, dict[str, Replica]]) -> None:
    door, _ = cells
    # nginx compares without regard to case; the cell does not.
    for headers in ({}, {"Authorization": f"Bearer {NOBODY}"}, {"Authorization": f"Bearer {BOB.lower()}"}):
        assert httpx2.post(door, json={}, headers=headers, timeout=20).status_code == 401
