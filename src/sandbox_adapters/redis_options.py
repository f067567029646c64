"""From settings to RedisOptions, with a refusal that shows no secret for what cannot be used."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote, urlsplit

from sandbox_adapters.settings import Settings, SettingsError

_NO_URL = "REDIS_URL is not a Redis URL: redis://, rediss:// or unix://, as in rediss://user:password@host:6379/0."
_OTHER_LOOP = (
    "REDIS_URL is set, and this program does not run under asyncio: state in Redis works there only. Run it under "
    "asyncio, or choose state='memory'."
)


def check_redis(settings: Settings) -> None:
    """Raise SettingsError when the state is to be in Redis and the settings cannot say where."""
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


def redis_secrets(settings: Settings) -> list[str]:
    """Return what no log may show: the passwords for Redis and the Sentinels."""
    secrets = []
    if settings.redis_url is not None:
        try:
            password = urlsplit(settings.redis_url.get_secret_value()).password
        except ValueError:
            password = None
        if password:
            secrets += [password, unquote(password)]
    if settings.redis_sentinel_password is not None:
        secrets.append(settings.redis_sentinel_password.get_secret_value())
    return secrets
