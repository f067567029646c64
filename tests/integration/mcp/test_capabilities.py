"""get_capabilities over real HTTP, in both eras: the facts of a server, and of what it then runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
from mcp import Client

from sandbox_adapters.policy_input import parse_policy
from tests.integration.mcp.harness import MODES, Served, call, connected, refusal, serving, text

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

TOKEN = "t" * 32
SECRET = "k3pt-value"
CEILING = {
    "network": {"denied_domains": ["bad.example"]},
    "filesystem": {"deny_read": ["/home/somebody"]},
    "resource_limits": {"max_memory_mb": 777},
    "isolation": {"require": ["seccomp"]},
}


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    secrets = tmp_path_factory.mktemp("kept") / "secrets.json"
    secrets.touch(mode=0o600)
    secrets.write_text(json.dumps({"forge": {"value": SECRET, "domains": ["api.example"]}}))
    settings = {
        "SANDBOX_SECRETS_FILE": str(secrets),
        "SANDBOX_EGRESS_CA_CERT": "auto",
        "SANDBOX_CEILING": json.dumps(CEILING),
        "SANDBOX_AUTH_TOKEN": TOKEN,
        "SANDBOX_READ_ONLY_PATHS": "/opt",
    }
    with serving(tmp_path_factory.mktemp("walled"), **settings) as served:
        yield served


@pytest.fixture(params=MODES)
async def client(request: pytest.FixtureRequest, walled: Served) -> AsyncIterator[Client]:
    async with connected(walled.url, request.param, TOKEN) as connection:
        yield connection


async def test_it_says_what_every_execution_then_has(client: Client) -> None:
    able = await call(client, "get_capabilities")
    done = await call(client, "execute_code", command="true")
    isolation = done["isolation"]
    assert (able["runner"], able["runner_version"]) == (isolation["runner"], isolation["version"])
    assert (able["isolated"], able["network"]) == (True, isolation["network"])
    assert able["layers"] == isolation["layers"]
    assert isolation["facts"].items() <= able["facts"].items()
    assert able["facts"]["egress_ports"] == "80, 443"
    assert able["facts"]["seccomp_sha256"]
    assert isolation["limits"].items() <= able["limits"].items()
    assert {"max_memory_mb", "timeout_seconds", "max_output_bytes"} <= able["limits"].keys()


async def test_any_layer_it_names_can_be_required_and_no_other(client: Client) -> None:
    layers = (await call(client, "get_capabilities"))["layers"]
    done = await call(client, "execute_code", command="true", sandbox_config={"isolation": {"require": layers}})
    assert done["exit_code"] == 0
    error = await refusal(client, "execute_code", command="true", sandbox_config={"isolation": {"require": ["moat"]}})
    assert error["code"] == "policy_refused"
    assert "isolation.require: asked moat" in error["message"]


async def test_ceiling_and_defaults_have_the_shape_of_sandbox_config(client: Client) -> None:
    able = await call(client, "get_capabilities")
    ceiling, defaults = parse_policy(able["ceiling"]), parse_policy(able["defaults"])
    assert ceiling.resource_limits.max_memory_mb == 777
    assert ceiling.network.denied_domains == ("bad.example",)
    assert defaults.resource_limits.max_memory_mb == 777
    assert defaults.isolation.require == ("seccomp",)


async def test_it_fits_its_schema_and_tells_no_secret_and_no_other_path(client: Client) -> None:
    (schema,) = [tool.output_schema for tool in (await client.list_tools()).tools if tool.name == "get_capabilities"]
    result = await client.call_tool("get_capabilities", {})
    assert result.structured_content is not None
    jsonschema.validate(result.structured_content, schema)
    said = json.dumps(result.structured_content) + text(result)
    for hidden in (TOKEN, SECRET, "forge", "secrets.json", "/opt"):
        assert hidden not in said
    assert str(Path.home()) not in said.replace("/home/somebody", "")


async def test_the_text_says_it_in_a_few_lines(client: Client) -> None:
    lines = text(await client.call_tool("get_capabilities", {})).splitlines()
    assert lines[0].startswith("bubblewrap ")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "layers",
        "facts",
        "limits",
        "labels",
        "grants",
        "ceiling",
        "defaults",
    ]


async def test_it_tells_which_grants_are_possible(client: Client) -> None:
    able = await call(client, "get_capabilities")
    assert [able[name] for name in ("network_grants", "filesystem_grants", "interception")] == [True, True, True]


async def test_it_takes_no_arguments(client: Client) -> None:
    assert (await refusal(client, "get_capabilities", runner="local"))["code"] == "invalid_argument"
