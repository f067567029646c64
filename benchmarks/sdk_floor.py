"""A server of the SDK alone. Serves at PORT.

`constant` answers with a constant, which tells what the protocol itself costs; `plain` runs `true` in bare bwrap as an
asyncio subprocess, without limits, state or any control: the naive way.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server

from benchmarks.report import bare_bwrap

TOOL, PLAIN_TOOL = "constant", "plain"


async def _call(_: ServerRequestContext[Any, Any], call: types.CallToolRequestParams) -> types.CallToolResult:
    if call.name == PLAIN_TOOL:
        process = await asyncio.create_subprocess_exec(*bare_bwrap("/bin/true"), stdin=-3, stdout=-1, stderr=-1)
        await process.communicate()
        if process.returncode:
            raise RuntimeError(f"bwrap ended with {process.returncode}")
    return types.CallToolResult(content=[types.TextContent(type="text", text="")])


async def _list(_: ServerRequestContext[Any, Any], __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    tools = [types.Tool(name=name, input_schema={"type": "object"}) for name in (TOOL, PLAIN_TOOL)]
    return types.ListToolsResult(tools=tools)


if __name__ == "__main__":
    server: Server[Any] = Server("floor", on_call_tool=_call, on_list_tools=_list)
    app = server.streamable_http_app(json_response=True, stateless_http=True)
    # What the real server runs in too; by itself uvicorn takes what else is installed.
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", loop="asyncio", http="h11")
