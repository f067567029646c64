"""The HTTP application: `/mcp` behind its checks, `/health`, and `/metrics` where it is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox_adapters.sandbox import Sandbox
from sandbox_adapters.settings import Settings
from sandbox_core.domain.ids import Principal
from sandbox_mcp.auth import RequireToken, TokenTable
from sandbox_mcp.health import HEALTH_PATH, answer_health
from sandbox_mcp.http_body import BoundBody
from sandbox_mcp.http_errors import refuse
from sandbox_mcp.http_exchange import InFlight, TrackExchanges
from sandbox_mcp.http_names import AllowedNames, CheckNames
from sandbox_mcp.metrics import METRICS_PATH, metrics_app

MCP_PATH: Final = "/mcp"


class SandboxHttpApp:
    """The ASGI application. Checks go from cheap to dear: names, token, body, protocol.

    Args:
        names: see http_names.allowed_names.
        tokens: empty when no token is asked for.
        manager: the SDK's sessions, entered by the caller.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        manager: StreamableHTTPSessionManager,
        settings: Settings,
        *,
        names: AllowedNames,
        tokens: Mapping[Principal, SecretStr],
    ) -> None:
        self.in_flight = InFlight()
        self.closing = False
        self.moving_away = False
        """Set to end each connection with its next answer, so that clients of a balancer go to another replica."""
        self._sandbox = sandbox
        inner: ASGIApp = BoundBody(
            TrackExchanges(manager.handle_request, self.in_flight),
            max_bytes=settings.max_request_bytes,
            timeout_seconds=settings.body_timeout_seconds,
        )
        if tokens:
            inner = RequireToken(inner, TokenTable(tokens))
        self._mcp = CheckNames(inner, names)
        self._metrics = metrics_app(sandbox, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        if self.moving_away:
            send = _last_answer(send)
        path = scope["path"]
        if path == HEALTH_PATH:
            await answer_health(self._sandbox, scope, send)
        elif path == METRICS_PATH and self._metrics is not None:
            await self._metrics(scope, receive, send)
        elif self.closing:
            await refuse(send, 503, "server_draining", "The server is shutting down.", close=True)
        elif path in {MCP_PATH, MCP_PATH + "/"}:
            await self._mcp(scope, receive, send)
        else:
            await refuse(send, 404, "not_found", f"There is only {MCP_PATH} and {HEALTH_PATH}.", close=True)


def _last_answer(send: Send) -> Send:
    """Return a send that says that the connection ends after this answer (RFC 9112, section 9.6)."""

    async def mark(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return mark
