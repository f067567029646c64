"""Host and Origin: which names this server answers to (the defence against DNS rebinding)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_adapters.settings import Settings, SettingsError, is_address, is_loopback, variable_name
from sandbox_mcp.http_errors import refuse

ANY = "*"
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>.+)")


@dataclass(frozen=True, slots=True)
class AllowedNames:
    """What Host and Origin may say.

    Args:
        hosts: names without a port (any port goes), or `name:port`; lower case.
        origins: whole origins, for example `https://app.example`; lower case.
        any_host: every Host goes.
        any_address: a Host that is an IP address goes: rebinding needs a name.
        any_origin: every Origin goes.
        local_origins: pages served from this machine's loopback go.
    """

    hosts: frozenset[str]
    origins: frozenset[str]
    any_host: bool = False
    any_address: bool = False
    any_origin: bool = False
    local_origins: bool = False

    def host_goes(self, value: str) -> bool:
        """True when a request may name this Host (RFC 9110, section 7.2)."""
        if self.any_host:
            return True
        parts = _HOST.fullmatch(value)
        if parts is None:
            return False
        name = parts["name"].strip("[]").lower()
        if name in self.hosts or value.lower() in self.hosts:
            return True
        return self.any_address and is_address(name)

    def origin_goes(self, value: str) -> bool:
        """True when a page of this Origin may send requests (RFC 6454, section 7)."""
        if self.any_origin or value.lower() in self.origins:
            return True
        parts = _ORIGIN.fullmatch(value)
        host = None if parts is None else _HOST.fullmatch(parts["host"])
        return self.local_origins and host is not None and host["name"].strip("[]").lower() in _LOOPBACK_NAMES


def allowed_names(settings: Settings) -> AllowedNames:
    """Return what the settings allow.

    On loopback: the loopback names and what is listed. Elsewhere: the bound address, addresses, and what is listed;
    every Host when nothing is listed and tokens are required, since a rebound page has no token.

    Raises SettingsError for `*` without a token.
    """
    for name in ("allowed_hosts", "allowed_origins"):
        if ANY in getattr(settings, name) and not settings.has_tokens:
            raise SettingsError(f"{variable_name(name)} is *, which needs a token: any web page could run code here.")
    local = is_loopback(settings.host)
    listed = {host.strip("[]").lower() for host in settings.allowed_hosts}
    return AllowedNames(
        hosts=frozenset({settings.host.lower(), *_LOOPBACK_NAMES, *listed}),
        origins=frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins),
        any_host=ANY in settings.allowed_hosts or (not local and settings.has_tokens and not settings.allowed_hosts),
        any_address=not local,
        any_origin=ANY in settings.allowed_origins,
        local_origins=local,
    )


class CheckNames:
    """ASGI wrapper: 421 for a Host and 403 for an Origin that is not allowed."""

    def __init__(self, app: ASGIApp, names: AllowedNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if len(hosts) != 1 or not self._names.host_goes(hosts[0].decode("latin-1")):
            await refuse(
                send, 421, "host_refused", f"This Host is not served; see {variable_name('allowed_hosts')}.", close=True
            )
        elif len(origins) > 1 or (origins and not self._names.origin_goes(origins[0].decode("latin-1"))):
            await refuse(
                send,
                403,
                "origin_refused",
                f"This Origin is not allowed; see {variable_name('allowed_origins')}.",
                close=True,
            )
        else:
            await self._app(scope, receive, send)
