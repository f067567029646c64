"""`/metrics`: counts for Prometheus. Off by default, and never more open than the operator said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_adapters.auth_tokens import load_auth_tokens
from sandbox_adapters.sandbox import Sandbox
from sandbox_adapters.settings import Settings, SettingsError, is_usable_token
from sandbox_core.domain.ids import Principal
from sandbox_mcp.auth import RequireToken, TokenTable
from sandbox_mcp.http_errors import refuse

if TYPE_CHECKING:
    from sandbox_adapters.metrics.exposition import Metrics

METRICS_PATH: Final = "/metrics"
_SCRAPER: Final = Principal("metrics")


def check_metrics(settings: Settings) -> None:
    """Raise SettingsError for metrics that only a token opens, without one, and for a token that opens more."""
    token = settings.metrics_token
    if settings.metrics == "token":
        if token is None:
            raise SettingsError(
                "SANDBOX_METRICS is token, and SANDBOX_METRICS_TOKEN is not set. Set it, or say open where only those "
                "who may read the counts reach the port."
            )
        if not is_usable_token(token.get_secret_value()):
            raise SettingsError("SANDBOX_METRICS_TOKEN: must be 1 to 4096 printable ASCII characters without spaces")
    if token is not None and token in load_auth_tokens(settings).values():
        raise SettingsError("SANDBOX_METRICS_TOKEN is also a caller's token, which runs code; give it its own.")


def metrics_app(sandbox: Sandbox, settings: Settings) -> ASGIApp | None:
    """Return what answers `/metrics`; None when it is off."""
    if sandbox.metrics is None:
        return None
    app = _MetricsApp(sandbox.metrics)
    if settings.metrics == "open":
        return app
    tokens = {} if settings.metrics_token is None else {_SCRAPER: settings.metrics_token}
    return RequireToken(app, TokenTable(tokens))


class _MetricsApp:
    """Answers a scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI
        """Answer one request, in the format that it accepts."""
        if scope["method"] not in {"GET", "HEAD"}:
            await refuse(send, 405, "method_not_allowed", "Use GET.", headers=[(b"allow", b"GET, HEAD")], close=True)
            return
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        text, content_type = await self._metrics.render(accept.decode("latin-1"))
        headers = [
            (b"content-type", content_type.encode("latin-1")),
            (b"content-length", str(len(text)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})
