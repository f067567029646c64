"""What a sandbox refused comes back to the caller, over real HTTP and in both eras."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
from mcp import Client

from tests.integration.mcp.harness import MODES, Served, call, connected, serving, structured, text

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

CEILING = {"network": {"allowed_domains": ["allowed.example"]}}
GRANTED = {"network": {"allowed_domains": ["allowed.example"]}}
ASKS_TWICE = """
import os, socket
host, port = os.environ["https_proxy"].split("//")[1].rstrip("/").split(":")
for _ in range(2):
    with socket.create_connection((host, int(port))) as proxy:
        proxy.sendall(b"CONNECT refused.example:443 HTTP/1.1\\r\\nHost: refused.example:443\\r\\n\\r\\n")
        print(proxy.recv(100).split()[1].decode())
"""


@pytest.fixture(scope="module")
def granting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("granting"), SANDBOX_CEILING=json.dumps(CEILING)) as served:
        yield served


@pytest.fixture(params=MODES)
async def client(request: pytest.FixtureRequest, granting: Served) -> AsyncIterator[Client]:
    async with connected(granting.url, request.param) as connection:
        yield connection


async def test_a_refused_name_is_told_with_the_rule_in_fields_and_in_words(client: Client) -> None:
    arguments: dict[str, Any] = {"command": ["python3", "-c", ASKS_TWICE], "sandbox_config": GRANTED}
    result = await client.call_tool("execute_code", arguments)
    said = structured(result)
    assert said["stdout"] == "403\n403\n", said["stderr"]
    (denial,) = said["denials"]
    assert (denial["kind"], denial["target"]) == ("network", "refused.example:443")
    assert (denial["rule"], denial["count"]) == ("network.allowed_domains", 2)
    assert "denials_omitted" not in said
    assert said["isolation"]["network"] == "egress"
    last = text(result).splitlines()[-1]
    assert last.startswith("[refused: network refused.example:443 (network.allowed_domains, 2 times): ")

    schemas = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}
    for tool in ("get_execution_output", "get_execution_status"):
        again = await client.call_tool(tool, {"execution_id": said["execution_id"]})
        assert structured(again)["denials"] == [denial]
        jsonschema.validate(structured(again), schemas[tool])
        assert text(again).splitlines()[-1] == last


async def test_bytes_are_counted_only_where_there_is_a_network(client: Client) -> None:
    granted = await call(client, "execute_code", command="true", sandbox_config=GRANTED)
    assert (granted["usage"]["network_sent_bytes"], granted["usage"]["network_received_bytes"]) == (0, 0)
    plain = await call(client, "execute_code", command="true")
    assert (plain["usage"]["network_sent_bytes"], plain["usage"]["network_received_bytes"]) == (None, None)
    assert plain["denials"] == []


async def test_names_can_be_granted_where_it_says_so(client: Client) -> None:
    able = await call(client, "get_capabilities")
    assert able["network_grants"] is True
    assert able["ceiling"]["network"]["allowed_domains"] == ["allowed.example"]
    assert able["defaults"]["network"]["allowed_domains"] == []
