"""RedisConnection: one process's way to Redis, shared by every adapter that keeps something there.

redis-py's asyncio client works under asyncio only, so all of this does. Nothing here shows the URL or a password:
errors and logs name the server by host, port and database number.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import quote

from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from sandbox_adapters.redis_errors import translated
from sandbox_adapters.redis_url import read_redis_url
from sandbox_core.domain.errors import StoreUnavailable

_log = logging.getLogger("sandbox_adapters.redis")

CONNECTED: Final = "Redis connected - distributed mode enabled"
"""What the log says when Redis answers, at the start and after it was away."""


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How to reach Redis, and where in it our keys are.

    Args:
        url: `redis://`, `rediss://` (TLS; `?ssl_ca_certs=/path` names the authority) or `unix://`, with user, password
            and database number. With Sentinel the host and port are not used.
        prefix: begins every key and channel, with a colon after it; empty for the names of the guide.
        hash_tag: put the prefix in braces, so that a Redis Cluster keeps all keys of this prefix in one slot.
        timeout_seconds: for connecting, for one answer, and for a free connection.
        max_connections: of this process, apart from the few that listen.
        sentinels: `host:port` of each Sentinel; empty for a server at `url`.
        sentinel_service: what the Sentinels call the server.
        sentinel_password: of the Sentinels themselves.
    """

    url: SecretStr
    prefix: str = ""
    hash_tag: bool = False
    timeout_seconds: float = 2.0
    max_connections: int = 50
    sentinels: tuple[str, ...] = ()
    sentinel_service: str = "mymaster"
    sentinel_password: SecretStr | None = None

    @property
    def namespace(self) -> str:
        """What every key and channel begins with: "", `prefix:` or `{prefix}:`."""
        if self.hash_tag:
            return f"{{{self.prefix or 'sandbox'}}}:"
        return f"{self.prefix}:" if self.prefix else ""

    @property
    def address(self) -> str:
        """Where the server is, in a form that can be shown. Raises ValueError for what is no Redis URL."""
        parts = read_redis_url(self.url.get_secret_value())
        database = parts.get("db", 0)
        if self.sentinels:
            return f"{self.sentinel_service} by Sentinel, database {database}"
        if "path" in parts:
            return f"{parts['path']}, database {database}"
        return f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}, database {database}"

    def check_tls(self) -> None:
        """Try what the URL says of TLS. Raises OSError for a file that cannot be used, ValueError for other values."""
        given = read_redis_url(self.url.get_secret_value())
        tls = {name: value for name, value in given.items() if name.startswith("ssl_")}
        if tls:
            try:
                SSLConnection(**tls).ssl_context.get()
            except (RedisError, TypeError) as error:
                raise ValueError("has a TLS option that cannot be used") from error


@dataclass(frozen=True, slots=True)
class LuaScript:
    """A script that runs atomically in Redis. `sha` is its name there."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        """Work out the name as Redis does."""
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


def key_part(text: str) -> str:
    """Return text for use between the colons of a key: different texts stay different, and none holds `:{}*` or `|`."""
    return quote(text, safe="@")


class RedisConnection:
    """The commands of one process, over a bounded pool. Enter it before use; leaving closes every connection.

    Entering asks Redis once. Redis being away is no error then: a warning is logged and every call raises
    StoreUnavailable until it is back. A refused password is an error.
    """

    def __init__(self, options: RedisOptions) -> None:
        self.options = options
        self.namespace = options.namespace
        self.address = options.address
        self.asked = 0
        """How many commands and scripts were sent, those of listeners apart."""
        self.failed = 0
        """How often Redis was away, or refused."""
        self._is_told = False
        self._client: Redis | None = None
        self._opened: list[Redis] = []
        self._sentinels: list[Sentinel] = []

    async def __aenter__(self) -> Self:
        refuse_other_loops()
        self._client = self._open(max_connections=self.options.max_connections, answer_bound=True)
        try:
            await self.command("PING")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, AuthenticationError):
                await self.__aexit__()
                raise
            _log.warning("Redis is not there yet: %s", error)
        else:
            self.tell_connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        opened, self._opened, self._client = self._opened, [], None
        for client in opened:
            await client.aclose()
            await client.connection_pool.disconnect()
        for sentinel in self._sentinels:
            await sentinel.aclose()
        self._sentinels = []

    def tell_connected(self, *, again: bool = False) -> None:
        """Say in the log that Redis answers: for the first time, or `again` after it was away."""
        if again or not self._is_told:
            _log.info("%s (%s)", CONNECTED, self.address)
        self._is_told = True

    async def command(self, *parts: str | bytes | int | float) -> Any:
        """Run one command and return Redis's answer, bytes undecoded. Raises StoreUnavailable, StoredDataCorrupt."""
        try:
            return await self._ask(self._entered, *parts)
        except (RedisError, OSError, TimeoutError) as error:
            raise self.explain(error) from error

    async def run(self, script: LuaScript, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """Run a script in one round trip (two the first time), and return its answer. Raises as `command` does.

        It is sent again, once, when a connection turns out to be dead: let a script tell a repetition.
        """
        client = self._entered
        try:
            try:
                return await self._ask(client, "EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await self._ask(client, "EVAL", script.source, len(keys), *keys, *args)
        except (RedisError, OSError, TimeoutError) as error:
            raise self.explain(error) from error

    def listener(self) -> Redis:
        """Return a client of its own for blocking commands or subscriptions: answers may take any time.

        It is closed with this connection.
        """
        return self._open(max_connections=4, answer_bound=False)

    def explain(self, error: BaseException) -> Exception:
        """Return the error of ours that an error of redis-py means here; it shows no secret."""
        self.failed += 1
        return translated(error, self.address, self.options.timeout_seconds)

    async def _ask(self, client: Redis, *parts: str | bytes | int | float) -> Any:
        self.asked += 1
        return await client.execute_command(*parts)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    @property
    def _entered(self) -> Redis:
        if self._client is None:
            raise StoreUnavailable(f"the connection to Redis at {self.address} is closed")
        return self._client

    def _open(self, *, max_connections: int, answer_bound: bool) -> Redis:
        options, timeout = self.options, self.options.timeout_seconds
        given: dict[str, Any] = {
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout if answer_bound else None,
            "retry": Retry(NoBackoff(), 1 if answer_bound else 0, supported_errors=(RedisConnectionError,)),
            "protocol": 2,
            "max_connections": max_connections,
        }
        url = options.url.get_secret_value()
        if not url.startswith("unix:"):
            given["socket_keepalive"] = True
        pool: ConnectionPool
        if options.sentinels:
            pool = self._sentinel_pool(given | dict(read_redis_url(url)))
        else:
            pool = BlockingConnectionPool.from_url(url, timeout=timeout, **given)
        client = Redis(connection_pool=pool)
        if answer_bound:
            client.response_callbacks.clear()  # answers as Redis gives them
        self._opened.append(client)
        return client

    def _sentinel_pool(self, given: Mapping[str, Any]) -> ConnectionPool:
        connection = {name: value for name, value in given.items() if name not in ("host", "port", "connection_class")}
        connection["ssl"] = self.options.url.get_secret_value().startswith("rediss:")
        password = self.options.sentinel_password
        timeout = self.options.timeout_seconds
        asked: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        if password is not None:
            asked["password"] = password.get_secret_value()
        servers = [_host_and_port(text) for text in self.options.sentinels]
        sentinel = Sentinel(servers, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        self._sentinels.append(sentinel)
        service = self.options.sentinel_service
        return SentinelConnectionPool(service, sentinel, **connection)  # type: ignore[no-untyped-call]  # as above


def refuse_other_loops() -> None:
    """Raise RuntimeError under another event loop than asyncio's, such as trio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "State in Redis works under asyncio only, and this program runs another event loop: redis-py has no other "
            "client. Run it under asyncio, or keep the state in memory (state='memory')."
        ) from None


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if host else (text, 26379)
