"""Runs on a server: what `sandbox run --server` does instead of running here, with the same tools as any MCP client."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

import anyio
import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from pydantic import TypeAdapter

from sandbox_adapters.policy_input import LIMITS, policy_as_given
from sandbox_core.application.service import Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import Denial
from sandbox_core.domain.errors import (
    ExecutionFinished,
    InfrastructureError,
    InputClosed,
    InputFull,
    InvalidArgument,
    SandboxError,
)
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import Outcome, ResourceUsage, TerminationReason
from sandbox_core.domain.policy import LARGEST_LIMIT, ExecutionPolicy
from sandbox_core.domain.status import ExecutionStatus

TRY_AGAIN_SECONDS = 30.0
"""How long a call that may be repeated is repeated: another server answers, or the state is back."""

WAIT_SECONDS = 20.0
PAGE_BYTES = 1024 * 1024
_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 60.0
_PAUSE_SECONDS = 0.2
_PASSING = frozenset({"store_unavailable", "server_draining", "internal_error"})

_ISOLATION: TypeAdapter[Isolation | None] = TypeAdapter(Isolation | None)
_USAGE: TypeAdapter[ResourceUsage | None] = TypeAdapter(ResourceUsage | None)
_DENIALS: TypeAdapter[tuple[Denial, ...]] = TypeAdapter(tuple[Denial, ...])
_TIME: TypeAdapter[datetime | None] = TypeAdapter(datetime | None)


class ServerUnusable(InfrastructureError):
    """The server does not answer, or not as a sandbox does."""

    code: ClassVar[str] = "server_unusable"


class ServerRefused(SandboxError):
    """The server refused, in its words."""

    code: ClassVar[str] = "server_refused"


class ServerIsFull(ServerRefused):
    """No place, or no room to wait for one."""

    code: ClassVar[str] = "server_full"


class ServerRuns:
    """Executions on a server. Calls that change nothing, or nothing twice, are made again when a server dies."""

    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        self._url = url

    async def submit(self, submission: Submission) -> Execution:
        """Start an execution. Asking again uses the same key, so that it starts once."""
        command = submission.command
        arguments: dict[str, Any] = {
            "command": command.shell if command.shell is not None else list(command.argv or ()),
            "interactive": command.interactive,
            "environment": dict(command.environment),
            "sandbox_config": policy_as_given(await self._with_whole_output(submission.policy)),
            "idempotency_key": submission.idempotency_key or str(uuid.uuid4()),
            "retry_safe": submission.retry_safe,
            "labels": sorted(submission.labels),
        }
        if command.working_directory is not None:
            arguments["working_directory"] = command.working_directory
        started = await self._call("execute_code_async", arguments)
        return await self.get(ExecutionId(started["execution_id"]))

    async def get(self, execution_id: ExecutionId) -> Execution:
        """Return an execution as it is now."""
        return _execution(await self._call("get_execution_status", {"execution_id": execution_id}))

    async def follow(self, execution_id: ExecutionId) -> AsyncGenerator[OutputEvent, None]:
        """Yield every event as it comes; ends after the terminal one."""
        arguments = {
            "execution_id": execution_id,
            "last_event_id": "0",
            "wait_seconds": WAIT_SECONDS,
            "max_bytes": PAGE_BYTES,
            "include_text": False,
            "encoding": "base64",
        }
        while True:
            page = await self._call("get_execution_output", arguments)
            for item in page["output"]:
                yield _event(item)
            if ExecutionStatus(page["status"]).is_terminal and not page["has_more"]:
                return
            arguments["last_event_id"] = page["last_event_id"]

    async def cancel(self, execution_id: ExecutionId, *, force: bool = False) -> None:
        """Ask it to end."""
        await self._call("cancel_execution", {"execution_id": execution_id, "force": force})

    async def send_stdin(self, execution_id: ExecutionId, data: bytes, *, end: bool = False) -> None:
        """Send bytes as they are, once it has started. Not made again: they might arrive twice; an end alone may."""
        arguments = {
            "execution_id": execution_id,
            "input_data": base64.b64encode(data).decode(),
            "encoding": "base64",
            "end": end,
        }
        while True:
            try:
                await self._call("send_stdin", arguments, again=end and not data)
            except ServerIsFull:
                # It waits in the queue, and the server waited for its start already: nothing was sent.
                await anyio.sleep(_PAUSE_SECONDS)
            else:
                return

    async def _with_whole_output(self, policy: ExecutionPolicy) -> ExecutionPolicy:
        """Ask for all the output that may be had: it is passed on at once, not kept for somebody to read."""
        asked = policy.resource_limits
        if asked.max_output_bytes is not None:
            return policy
        ceiling = (await self._call("get_capabilities", {}))["ceiling"].get(LIMITS) or {}
        most = ceiling.get("max_output_bytes") or LARGEST_LIMIT
        return replace(policy, resource_limits=replace(asked, max_output_bytes=most))

    async def _call(self, tool: str, arguments: Mapping[str, Any], *, again: bool = True) -> dict[str, Any]:
        give_up = anyio.current_time() + (TRY_AGAIN_SECONDS if again else 0.0)
        while True:
            try:
                result = await self._client.call_tool(tool, dict(arguments))
            except MCPError as error:
                failure: SandboxError = ServerUnusable(f"The server at {self._url} did not answer: {error}")
            else:
                content = result.structured_content or {}
                if not result.is_error:
                    return content
                refused = content.get("error") or {"code": "", "message": "The server gave no reason."}
                failure = _refusal(refused, arguments)
                again = again and refused["code"] in _PASSING
            if not again or anyio.current_time() >= give_up:
                raise failure
            await anyio.sleep(_PAUSE_SECONDS)


@asynccontextmanager
async def open_server(url: str, token: str | None) -> AsyncIterator[ServerRuns]:
    """Connect to a server: `http(s)://host[:port]`, at `/mcp` unless a path is given.

    Raises InvalidArgument for what is no such URL, ServerUnusable.
    """
    address = server_address(url)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    timeout = httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
    failure: SandboxError | None = None
    refused = 0

    async def note(response: httpx2.Response) -> None:
        nonlocal refused
        refused = response.status_code if response.is_error else 0

    try:
        async with (
            httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks={"response": [note]}) as http,
            Client(streamable_http_client(address, http_client=http)) as client,
        ):
            try:
                yield ServerRuns(client, address)
            except SandboxError as error:
                # Kept out of the task groups of the client, which would wrap it.
                failure = error
    except* (MCPError, httpx2.HTTPError) as group:
        failure = ServerUnusable(f"The server at {address} cannot be used: {_refused(refused, token) or _first(group)}")
    if failure is not None:
        raise failure


def server_address(url: str) -> str:
    """Return the URL of the MCP endpoint. Raises InvalidArgument."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidArgument("--server", "must be the URL of a server, for example http://localhost:8080")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument("--server", "must hold no password; give the token in SANDBOX_AUTH_TOKEN")
    path = parts.path if parts.path not in ("", "/") else "/mcp"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _refused(status: int, token: str | None) -> str | None:
    """Return what an HTTP status means here; None for one that says nothing of its own."""
    match status:
        case 401 if token is None:
            return "it wants a token; set SANDBOX_AUTH_TOKEN."
        case 401:
            return "it refuses the token in SANDBOX_AUTH_TOKEN."
        case 404:
            return "nothing is at this path; without one in the URL it is /mcp."
        case 421:
            return "it does not know this name as its own; add it to SANDBOX_ALLOWED_HOSTS there."
        case _:
            return None


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


def _refusal(error: Mapping[str, Any], arguments: Mapping[str, Any]) -> SandboxError:
    execution_id = ExecutionId(arguments.get("execution_id", ""))
    match error["code"]:
        case "invalid_argument":
            return InvalidArgument(str(error.get("field")), str(error.get("problem")))
        case "input_closed":
            return InputClosed(execution_id)
        case "input_full":
            return InputFull(execution_id, int(error.get("limit_bytes") or 0))
        case "server_full":
            return ServerIsFull(str(error["message"]))
        case "execution_finished":
            return ExecutionFinished(execution_id, ExecutionStatus(error["status"]))
        case _:
            return ServerRefused(str(error["message"]))


def _event(item: Mapping[str, Any]) -> OutputEvent:
    kind = EventKind(item["type"])
    data = base64.b64decode(item["data"]) if kind.is_output else str(item["data"]).encode()
    known = ("type", "data", "ts", "event_id")
    return OutputEvent(
        seq=int(item["event_id"]),
        kind=kind,
        at=datetime.fromtimestamp(item["ts"], UTC),
        data=data,
        fields={name: value for name, value in item.items() if name not in known},
    )


def _execution(payload: Mapping[str, Any]) -> Execution:
    """Return what a server tells of an execution, without its policy."""
    command, reason, usage = payload["command"], payload["termination_reason"], _USAGE.validate_python(payload["usage"])
    outcome = None
    if reason is not None:
        outcome = Outcome(
            reason=TerminationReason(reason),
            exit_code=payload["exit_code"],
            signal=payload["signal"],
            message=payload["message"],
            usage=usage or ResourceUsage(),
            denials=_DENIALS.validate_python(payload["denials"]),
            denials_omitted=payload.get("denials_omitted", 0),
        )
    return Execution(
        id=ExecutionId(payload["execution_id"]),
        principal=LOCAL_PRINCIPAL,
        session_id=None,
        command=Command(shell=command) if isinstance(command, str) else Command(argv=tuple(command)),
        policy=ExecutionPolicy(),
        created_at=datetime.fromisoformat(payload["created_at"]),
        status=ExecutionStatus(payload["status"]),
        started_at=_TIME.validate_python(payload["started_at"]),
        ended_at=_TIME.validate_python(payload["ended_at"]),
        isolation=_ISOLATION.validate_python(payload["isolation"]),
        outcome=outcome,
    )
