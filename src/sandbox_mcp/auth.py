"""Bearer tokens: who a request comes from. Static tokens only; the operator gives each principal one."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_core.domain.ids import Principal
from sandbox_mcp.http_errors import refuse

_SCHEME = b"bearer "


class TokenTable:
    """Maps tokens to principals, in a time that does not depend on how much of a token was right."""

    def __init__(self, tokens: Mapping[Principal, SecretStr]) -> None:
        self._digests = [(_digest(token.get_secret_value().encode()), name) for name, token in tokens.items()]

    def principal_of(self, token: bytes) -> Principal | None:
        """Return whose token this is; None when it is nobody's. Never raises."""
        asked = _digest(token)
        found: Principal | None = None
        for digest, principal in self._digests:
            if hmac.compare_digest(digest, asked):
                found = principal
        return found


class RequireToken:
    """ASGI wrapper: lets requests with a known token through, as their principal; 401 for everybody else.

    Only the Authorization header counts (RFC 6750, section 2.1), and only when there is exactly one.
    """

    def __init__(self, app: ASGIApp, tokens: TokenTable) -> None:
        self._app = AuthContextMiddleware(app)
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) > 1:
            await refuse(send, 400, "invalid_request", "The Authorization header was sent more than once.", close=True)
            return
        principal = None
        if values and values[0][: len(_SCHEME)].lower() == _SCHEME:
            principal = self._tokens.principal_of(values[0][len(_SCHEME) :])
        if principal is None:
            challenge = b"Bearer" if not values else b'Bearer error="invalid_token"'
            await refuse(
                send,
                401,
                "invalid_token",
                "Send a valid token: `Authorization: Bearer <token>`.",
                headers=[(b"www-authenticate", challenge)],
                close=True,
            )
            return
        # The SDK binds an older client's session to this user, and hands it to the handlers.
        access = AccessToken(token="", client_id=principal, scopes=[])
        scope["user"] = AuthenticatedUser(access)
        await self._app(scope, receive, send)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
