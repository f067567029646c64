"""Call the server from your own Python agent with the official MCP SDK: `agent_client.py URL TOKEN`."""

import sys

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def main(url: str, token: str) -> None:
    """Run one program and print what the server says about it."""
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=330) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        result = await client.call_tool("execute_code", {"command": "python3 -c 'print(6 * 7)'"})
        reply = result.structured_content or {}
        print(reply["status"], reply["exit_code"], reply["stdout"])


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
