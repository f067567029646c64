"""What a Redis URL says, read strictly: a password that was not percent-encoded must not pass for a host or a path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

_USER: Final = r"(?:[^/?#@\[\]:]*(?::[^/?#@\[\]]*)?@)?"
_NETWORK: Final = re.compile(
    rf"(?i:rediss?)://{_USER}(?:[A-Z0-9._-]*|\[[0-9A-F:.]+\])(?::[0-9]{{1,5}})?(?:/[0-9]*)?(?:\?[^#]*)?", re.IGNORECASE
)
_SOCKET: Final = re.compile(rf"(?i:unix)://{_USER}/[^?#]+(?:\?[^#]*)?")
_OPTIONS: Final = frozenset({"db", "username", "password", "client_name", "health_check_interval"})
_TLS_OPTIONS: Final = frozenset(
    name for name in inspect.signature(SSLConnection.__init__).parameters if name.startswith("ssl_")
)


def read_redis_url(url: str) -> Mapping[str, Any]:
    """Return the parts as redis-py names them. Raises ValueError, in words that quote nothing of the URL.

    Refused are also a database that is no number, a second `@`, a fragment, and options that redis-py does not know or
    that settings of ours are for.
    """
    if not (_NETWORK.fullmatch(url) or _SOCKET.fullmatch(url)):
        raise ValueError("is not a Redis URL")
    parts = urlsplit(url)
    known = _OPTIONS | _TLS_OPTIONS if parts.scheme == "rediss" else _OPTIONS
    if any(name not in known for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError("has an option that is not known")
    return cast("Mapping[str, Any]", parse_url(url))
