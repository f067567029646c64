"""Every snippet of the README does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess  # noqa: TID251  # the snippets are commands
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from examples.serving import Server, serve
from tests.integration.docs.markdown import ROOT, block, blocks
from tests.integration.mcp.harness import TOOLS

pytestmark = pytest.mark.integration

README = "README.md"
FILES = (
    "examples/cli.sh",
    "examples/agent_client.py",
    "examples/library.py",
    "examples/test_with_fixtures.py",
    "examples/configs/codex.toml",
    "examples/configs/http.json",
    "examples/configs/stdio.json",
    "examples/configs/vscode.json",
)
TOKEN_PLACES = re.compile(r"YOUR_TOKEN|\$\{input:sandbox-token\}")
SECONDS = 100


def run(argv: list[str], environment: dict[str, str]) -> str:
    """Run a command in the repository and return its output. Fails the test when the command fails."""
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def connects_over_http(server: Server, url: str, headers: dict[str, str]) -> None:
    """Connect as a host would that read this configuration, with the port and the token of the test's server."""
    assert url == "http://127.0.0.1:8080/mcp"
    mine = {name: TOKEN_PLACES.sub(server.token, value) for name, value in headers.items()}
    assert mine != headers, "the snippet has a place for the token"
    async with (
        httpx2.AsyncClient(headers=mine, timeout=SECONDS) as http,
        Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
    ):
        await shows_the_tools(client)


async def connects_over_stdio(command: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Start the command as a host would and talk to it."""
    server = StdioServerParameters(command=command, args=arguments, env=environment)
    with anyio.fail_after(SECONDS):
        async with Client(server) as client:
            await shows_the_tools(client)


async def shows_the_tools(client: Client) -> None:
    """The eight tools are there, and one works."""
    assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
    result = await client.call_tool("execute_code", {"command": "echo $((6 * 7))"})
    assert (result.structured_content or {})["stdout"] == "42\n"


def test_every_snippet_is_marked_and_so_tested() -> None:
    unmarked = [item.text for item in blocks(README)[1:] if not item.marker]
    assert unmarked == []
    known = {f"file: {name}" for name in FILES} | {
        "test: setup",
        "test: serve",
        "test: claude http",
        "test: claude stdio",
    }
    assert {item.marker for item in blocks(README)[1:]} == known


@pytest.mark.parametrize("name", FILES)
def test_snippet_from_a_file_is_that_file(name: str) -> None:
    assert block(README, f"file: {name}") == (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("marker", ["", "test: setup"])
def test_make_targets_of_the_readme_exist(marker: str) -> None:
    text = blocks(README)[0].text if not marker else block(README, marker)
    targets = re.findall(r"^make (\w+)", text, re.MULTILINE)
    assert targets
    for target in targets:
        run(["make", "--dry-run", target], dict(os.environ))


def test_command_line_example_runs(environment: dict[str, str]) -> None:
    said = run(["sh", "examples/cli.sh"], environment)
    assert said.startswith("42\n3\n2\n1\n")
    assert "exit 124" in said
    # `sandbox doctor` shows policies as JSON too, folded into lines.
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{") and '"type": ' in line]
    assert "hi\n" in {event.get("data") for event in events}


def test_library_example_runs(environment: dict[str, str]) -> None:
    said = run([sys.executable, "examples/library.py"], environment)
    assert "run: 42 exit code 0" in said
    assert "step 1" in said
    assert "step 3" in said
    assert "chat: hello world" in said


def test_fixtures_example_runs(environment: dict[str, str]) -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/test_with_fixtures.py"]
    assert " passed" in run(argv, environment)


@pytest.mark.anyio
async def test_http_snippets_connect(environment: dict[str, str], tmp_path: Path) -> None:
    generic = json.loads(block(README, "file: examples/configs/http.json"))["mcpServers"]["sandbox"]
    editor = json.loads(block(README, "file: examples/configs/vscode.json"))
    asked = {f"${{input:{item['id']}}}" for item in editor["inputs"]}
    assert TOKEN_PLACES.findall(editor["servers"]["sandbox"]["headers"]["Authorization"]) == list(asked)
    flags = claude_add(block(README, "test: claude http"))
    toml = tomllib.loads(block(README, "file: examples/configs/codex.toml"))["mcp_servers"]["sandbox"]
    assert toml["bearer_token_env_var"] in block(README, "test: serve")
    async with serve() as server:
        for entry in (generic, editor["servers"]["sandbox"]):
            await connects_over_http(server, entry["url"], entry["headers"])
        name, _, value = flags["header"].partition(": ")
        await connects_over_http(server, flags["url"], {name: value})
        await connects_over_http(server, toml["url"], {"Authorization": "Bearer YOUR_TOKEN"})
        agent = await anyio.run_process(
            [sys.executable, str(ROOT / "examples/agent_client.py"), f"{server.url}/mcp", server.token],
            env=environment,
            cwd=tmp_path,
        )
    assert agent.stdout.decode().strip() == "completed 0 42"


@pytest.mark.anyio
async def test_stdio_snippets_connect(environment: dict[str, str]) -> None:
    generic = json.loads(block(README, "file: examples/configs/stdio.json"))["mcpServers"]["sandbox"]
    await connects_over_stdio(generic["command"], generic["args"], environment)
    words = shlex.split(block(README, "test: claude stdio"))
    assert words[:4] == ["claude", "mcp", "add", "sandbox"]
    command, *arguments = words[words.index("--") + 1 :]
    assert (command, arguments) == (generic["command"], generic["args"])


def test_serve_snippet_asks_for_the_command_that_exists(environment: dict[str, str]) -> None:
    commands = [shlex.split(line, comments=True) for line in block(README, "test: serve").splitlines()]
    assert ["sandbox", "serve"] in commands
    assert "--transport" in run(["sandbox", "serve", "--help"], {**environment, "COLUMNS": "200"})


def claude_add(line: str) -> dict[str, Any]:
    """Take `claude mcp add --transport http NAME URL --header H` apart."""
    words = shlex.split(line)
    assert words[:6] == ["claude", "mcp", "add", "--transport", "http", "sandbox"]
    assert words[7] == "--header"
    return {"url": words[6], "header": words[8]}
