"""From settings to RedisOptions, with a refusal that shows no secret for what cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import unquote, unquote_plus, urlsplit

from sandbox_adapters.settings import Settings, SettingsError

_NO_URL = (
    "REDIS_URL is not a Redis URL: redis://, rediss:// or unix://, as in rediss://user:password@host:6379/0, with "
    "every character of the password that is no letter or digit percent-encoded, and no options but those of TLS."
)
_OTHER_LOOP = (
    "REDIS_URL is set, and this program does not run under asyncio: state in Redis works there only. Run it under "
    "asyncio, or choose state='memory'."
)


def check_redis(settings: Settings) -> None:
    """Raise SettingsError when the state is to be in Redis and the settings cannot say where."""
    _check_queue(settings)
    if settings.state != "redis":
        return
    from sandbox_adapters.redis_connection import RedisOptions

    if settings.redis_url is None:
        raise SettingsError("SANDBOX_STATE is redis, and REDIS_URL is not set.")
    try:
        # The parser's own words may quote the URL, so they go no further.
        if not RedisOptions(settings.redis_url).address:
            raise SettingsError(_NO_URL)
    except ValueError:
        raise SettingsError(_NO_URL) from None


def check_loop(settings: Settings) -> None:
    """Raise SettingsError when the state is to be in Redis and the event loop running now is not asyncio's."""
    if settings.state != "redis":
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise SettingsError(_OTHER_LOOP) from None


def _check_queue(settings: Settings) -> None:
    """Raise SettingsError for a queue that the state does not fit, and for a server that nobody would work for."""
    if settings.queue_url is not None:
        if settings.state != "redis":
            raise SettingsError(
                "SANDBOX_QUEUE_URL is set, and the state is in memory, where no worker sees it: set REDIS_URL too."
            )
        from sandbox_adapters.redis_connection import RedisOptions

        try:
            # As above.
            usable = bool(RedisOptions(settings.queue_url).address)
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError(_NO_URL.replace("REDIS_URL", "SANDBOX_QUEUE_URL"))
    elif not settings.local_runner:
        raise SettingsError(
            "SANDBOX_LOCAL_RUNNER is false, and without SANDBOX_QUEUE_URL no worker would run anything: set it, and "
            "start `sandbox worker` with the same."
        )


def redis_secrets(settings: Settings) -> list[str]:
    """Return what no log may show: the passwords for Redis and the Sentinels."""
    secrets = []
    for url in (settings.redis_url, settings.queue_url):
        if url is None:
            continue
        try:
            parts = urlsplit(url.get_secret_value())
            given = [parts.password, *(raw for name, _, raw in _fields(parts.query) if name == "password")]
        except ValueError:
            given = []
        for password in filter(None, given):
            secrets += [password, unquote(password), unquote_plus(password)]
    if settings.redis_sentinel_password is not None:
        secrets.append(settings.redis_sentinel_password.get_secret_value())
    return list(dict.fromkeys(secrets))


def _fields(query: str) -> Iterator[tuple[str, str, str]]:
    return (field.partition("=") for field in query.split("&"))
