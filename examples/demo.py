"""What `make demo` shows: a real MCP client talks real HTTP to a real server, and each reply is printed and checked.

Ends with a non-zero code as soon as one reply is not what it should be.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from mcp import Client
from mcp.types import TextContent
from rich.console import Console

from examples.serving import Server, descendants, is_gone, serve

console = Console(markup=False, highlight=False, soft_wrap=True)
Reply = dict[str, Any]


class Surprise(Exception):
    """A reply was not what the demo promises."""


def expect(condition: bool, what: str) -> None:
    """Stop the demo unless `condition` holds."""
    if not condition:
        raise Surprise(what)


async def ask(client: Client, tool: str, **arguments: Any) -> Reply:
    """Call a tool, print what was asked and what came back, and return the structured result."""
    _show_call(tool, arguments)
    result = await client.call_tool(tool, arguments)
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    for line in text.rstrip().splitlines()[:14]:
        console.print(f"     {line}", style="red" if result.is_error else None)
    return {**(result.structured_content or {}), "is_error": result.is_error, "text": text}


async def until_printed(client: Client, execution_id: str, text: str) -> None:
    """Wait, for a minute at most, until an execution has printed `text`."""
    cursor = "0"
    with anyio.fail_after(60):
        while True:
            arguments = {"execution_id": execution_id, "last_event_id": cursor, "wait_seconds": 5}
            page = (await client.call_tool("get_execution_output", arguments)).structured_content or {}
            if text in page["stdout"]:
                return
            cursor = page["last_event_id"]


def _show_call(tool: str, arguments: dict[str, Any]) -> None:
    """Print a call; a program of several lines stands below it as it is."""
    program = arguments.get("command")
    text = program[-1] if isinstance(program, list) else program
    below = text.strip().splitlines() if isinstance(text, str) and "\n" in text else []
    shown = {name: value for name, value in arguments.items() if name != "command" or not below}
    words = [f"{name}={json.dumps(value)}" for name, value in shown.items()]
    if below:
        words.insert(0, "command=[python3, -c, ...]" if isinstance(program, list) else "command=...")
    console.print(f"  -> {tool}({', '.join(words)})", style="cyan")
    for line in below:
        console.print(f"     | {line}", style="dim cyan")


async def python_program(client: Client) -> None:
    """A Python program"""
    program = "import sys, math\nprint('pi is', round(math.pi, 5))\nprint('running as', sys.platform)\n"
    reply = await ask(client, "execute_code", command=["python3", "-c", program])
    expect(reply["exit_code"] == 0 and "pi is 3.14159" in reply["stdout"], "the program's output")


async def pipeline(client: Client) -> None:
    """A shell pipeline"""
    reply = await ask(
        client, "execute_code", command="seq 1 100 | awk '{ s += $1 } END { print s }' | tee sum.txt; wc -c < sum.txt"
    )
    expect(reply["stdout"].split() == ["5050", "5"], "the pipeline's output")


async def exit_code_and_stderr(client: Client) -> None:
    """A command that fails: its exit code and both streams are the answer, not an error"""
    reply = await ask(client, "execute_code", command="echo partial; echo 'no such thing' >&2; exit 3")
    expect(not reply["is_error"] and reply["status"] == "completed" and reply["exit_code"] == 3, "exit code 3")
    expect((reply["stdout"], reply["stderr"]) == ("partial\n", "no such thing\n"), "streams apart")


async def streamed(client: Client) -> None:
    """A long run, read in pages while it runs"""
    started = await ask(
        client, "execute_code_async", command="for i in 1 2 3 4 5; do echo step $i; sleep 0.4; done; echo done"
    )
    cursor: str | None = None
    pages, seen = 0, ""
    while True:
        more: dict[str, str] = {"last_event_id": cursor} if cursor else {}
        page = await ask(client, "get_execution_output", execution_id=started["execution_id"], wait_seconds=5, **more)
        cursor, pages, seen = page["last_event_id"], pages + 1, seen + page["stdout"]
        if page["status"] not in {"pending", "running"}:
            break
        expect(pages < 50, "the run ends")
    expect(pages >= 2, "more than one page, and so one while it ran")
    expect(seen == "".join(f"step {i}\n" for i in range(1, 6)) + "done\n", "every line once, in order")


async def interactive(client: Client) -> None:
    """A conversation over standard input"""
    program = (
        "import sys\nfor line in sys.stdin:\n    print('you said', line.strip().upper(), flush=True)\nprint('bye')"
    )
    started = await ask(client, "execute_code_async", command=["python3", "-c", program], interactive=True)
    execution = started["execution_id"]
    await ask(client, "send_stdin", execution_id=execution, input_data="hello")
    await ask(client, "send_stdin", execution_id=execution, input_data="is anybody there?", end=True)
    reply = await ask(client, "get_execution_output", execution_id=execution, wait=True)
    expect(reply["stdout"] == "you said HELLO\nyou said IS ANYBODY THERE?\nbye\n", "both answers and the end")


async def cancel(client: Client) -> None:
    """A cancel ends the whole process tree"""
    started = await ask(client, "execute_code_async", command="echo going; sleep 600 & sleep 600")
    await until_printed(client, started["execution_id"], "going")
    reply = await ask(client, "cancel_execution", execution_id=started["execution_id"])
    expect(reply["was_running"], "it was running")
    reply = await ask(client, "get_execution_output", execution_id=started["execution_id"], wait=True)
    expect(reply["status"] == "cancelled", "status cancelled")


async def timeout(client: Client) -> None:
    """A run past its time is ended, and what it printed is kept"""
    reply = await ask(client, "execute_code", command="echo before; sleep 60", timeout_seconds=3)
    expect(not reply["is_error"] and reply["status"] == "timeout", "status timeout")
    expect(reply["termination_reason"] == "wall_time" and reply["stdout"] == "before\n", "the reason and the output")


async def refused(client: Client) -> None:
    """A policy beyond the operator's ceiling is refused field by field, before anything runs"""
    wide = {
        "network": {"allowed_domains": ["example.com"]},
        "filesystem": {"allow_write": ["/etc"]},
        "resource_limits": {"timeout_seconds": 86400},
    }
    reply = await ask(client, "execute_code", command="true", sandbox_config=wide)
    expect(reply["is_error"] and "policy_refused" in reply["text"], "a refusal with its code")
    for name in ("allowed_domains", "allow_write", "timeout_seconds"):
        expect(name in reply["text"], f"the refusal names {name}")


async def isolation(client: Client) -> None:
    """A look around from inside: no network, no host files, nobody else's processes"""
    look = r"""
echo "network:   $(python3 - <<'PY'
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2); print("REACHED")
except OSError as error:
    print("refused:", error.strerror)
PY
)"
echo "passwords: $(cat /etc/shadow 2>&1 | head -c 60)"
echo "home:      $(ls -A /root /home 2>&1 | tr '\n' ' ')"
echo "processes: $(ls /proc | grep -c '^[0-9]')"
echo "system:    $(touch /usr/bin/x 2>&1)"
echo "workspace: $(pwd), $(echo kept > note && cat note)"
"""
    reply = await ask(client, "execute_code", command=look)
    expect("REACHED" not in reply["stdout"] and "refused:" in reply["stdout"], "no network")
    expect("root:" not in reply["stdout"], "host secrets are not there")
    expect("Read-only" in reply["stdout"] and "/workspace, kept" in reply["stdout"], "only the workspace is writable")
    expect(bool(reply["isolation"]["isolated"]), "the record says isolated")
    console.print(f"     isolation record: {json.dumps(reply['isolation'])}", style="dim")


async def listing(client: Client) -> None:
    """Everything that ran can be listed"""
    reply = await ask(client, "list_executions")
    expect(not reply["is_error"] and len(reply["executions"]) >= 8, "the executions so far")


STEPS: tuple[Callable[[Client], Awaitable[None]], ...] = (
    python_program,
    pipeline,
    exit_code_and_stderr,
    streamed,
    interactive,
    cancel,
    timeout,
    refused,
    isolation,
    listing,
)


async def stop_leaves_nothing(server: Server, client: Client) -> None:
    """Stop the server while something runs, and look for what is left."""
    console.print("\nSIGTERM leaves nothing behind", style="bold")
    started = await ask(client, "execute_code_async", command="trap '' TERM; echo deaf; sleep 600 & sleep 600")
    await until_printed(client, started["execution_id"], "deaf")
    below = descendants(server.pid)
    expect(bool(below), "the run has processes")
    console.print(f"     {len(below)} processes below the server; sending SIGTERM")
    code = await server.stop()
    expect(code == 0, f"exit code 0, not {code}")
    left = [pid for pid in below if not is_gone(pid)]
    expect(not left, f"no process left, but {left} are")
    files = sorted(path.name for path in server.directory.iterdir())
    expect(not files, f"no temporary file left, but {files} are")
    console.print("     exit code 0, no process left, no temporary file left")


def _flat(group: BaseExceptionGroup[Surprise]) -> list[Surprise]:
    found: list[Surprise] = []
    for error in group.exceptions:
        found += _flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def main() -> None:
    """Run every step against one server."""
    begun = time.monotonic()
    async with serve(environment={"SANDBOX_DRAIN_GRACE_SECONDS": "1", "SANDBOX_KILL_GRACE_SECONDS": "1"}) as server:
        console.print(f"sandbox serve is up at {server.url}/mcp ({time.monotonic() - begun:.1f} s)")
        async with server.client() as client:
            console.print(f"connected: protocol {client.protocol_version}")
            for number, step in enumerate(STEPS, 1):
                console.print(f"\n{number}. {step.__doc__}", style="bold")
                await step(client)
            await stop_leaves_nothing(server, client)
    console.print(f"\nAll of it as expected, in {time.monotonic() - begun:.1f} s.", style="bold green")


if __name__ == "__main__":
    surprises: list[str] = []
    try:
        anyio.run(main)
    except* Surprise as group:
        surprises = [str(error) for error in _flat(group)]
        console.print(f"\nNOT AS EXPECTED: {'; '.join(surprises)}", style="bold red")
    sys.exit(1 if surprises else 0)
