"""`/health`: counts and a status, for balancers and probes; no token. Of a worker also what `sandbox workers` tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_adapters.fleet.record import record_fields
from sandbox_adapters.sandbox import Sandbox
from sandbox_mcp.http_errors import answer_json, refuse
from sandbox_mcp.metrics import METRICS_PATH

HEALTH_PATH: Final = "/health"


async def answer_health(
    sandbox: Sandbox, scope: Scope, send: Send, *, facts: Mapping[str, object] | None = None
) -> None:
    """Answer how the sandbox is, with these facts beside it: 200 when it takes work, else 503."""
    if scope["method"] not in {"GET", "HEAD"}:
        await refuse(send, 405, "method_not_allowed", "Use GET.", headers=[(b"allow", b"GET, HEAD")], close=True)
        return
    health = await sandbox.health()
    await answer_json(
        send,
        200 if health.status == "ok" else 503,
        {**asdict(health), **(facts or {})},
        headers=[(b"cache-control", b"no-store")],
    )


class HealthApp:
    """The ASGI application of a worker: `/health`, `/metrics` where it is on, and nothing else."""

    def __init__(self, sandbox: Sandbox, metrics: ASGIApp | None = None) -> None:
        self._sandbox = sandbox
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == HEALTH_PATH:
            await answer_health(self._sandbox, scope, send, facts=record_fields(self._sandbox.back.record))
        elif scope["path"] == METRICS_PATH and self._metrics is not None:
            await self._metrics(scope, receive, send)
        else:
            await refuse(send, 404, "not_found", f"There is only {HEALTH_PATH}.", close=True)
