"""Clients that ask for the largest answers and never read them: nobody else waits, and memory stays bounded."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.integration.mcp.harness import Served, call, connected, modern_headers, serving, tool_request
from tests.integration.mcp.test_lifetime import raw_post

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SECONDS = 120
READERS = 12
LARGEST = 8 << 20
WORST = "head -c 8388608 /dev/zero | tr '\\0' '\\1'"
"""Control characters: each is six bytes of JSON, three times."""
MOST_GROWTH_MB = 700
"""Each answer of all of them would take about 145 MB."""


def resident_mb(served: Served) -> int:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) // 1024


async def read_all(client: Any, execution_id: str) -> int:
    """Read an execution's output as a reader would, in the largest pages; return its size."""
    size, cursor, has_more = 0, "0", True
    while has_more:
        page = await call(
            client, "get_execution_output", execution_id=execution_id, last_event_id=cursor, max_bytes=LARGEST
        )
        size, cursor, has_more = size + len(page["stdout"]), page["last_event_id"], page["has_more"]
    return size


async def test_they_hold_up_nobody_and_take_a_bounded_memory(tmp_path: Path) -> None:
    with serving(tmp_path) as served, anyio.fail_after(SECONDS):
        async with connected(served.url) as client, AsyncExitStack() as unread:
            asked = (await call(client, "execute_code", command=WORST, max_bytes=10))["execution_id"]
            assert await read_all(client, asked) == LARGEST
            before = resident_mb(served)
            body = tool_request("get_execution_output", {"execution_id": asked, "max_bytes": LARGEST})
            for _ in range(READERS):
                stream = await raw_post(served, modern_headers("tools/call", "get_execution_output"), body)
                await unread.enter_async_context(stream)
            for _ in range(5):
                assert (await call(client, "execute_code", command="echo served"))["stdout"] == "served\n"
            assert resident_mb(served) - before < MOST_GROWTH_MB
            await unread.aclose()
            assert await read_all(client, asked) == LARGEST
