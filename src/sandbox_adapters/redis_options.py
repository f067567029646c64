"""From settings to RedisOptions, with a refusal that shows no secret for what cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.parse import unquote, unquote_plus, urlsplit

from pydantic import SecretStr

from sandbox_adapters.nats_options import NATS_SCHEMES, NatsOptions
from sandbox_adapters.outage_reasons import reason_of
from sandbox_adapters.rabbitmq_options import RabbitOptions
from sandbox_adapters.settings import Settings, SettingsError

_NO_URL = (
    "REDIS_URL is not a Redis URL: redis://, rediss:// or unix://, as in rediss://user:password@host:6379/0, with "
    "every character of the password that is no letter or digit percent-encoded, and no options but those of TLS."
)
_NO_QUEUE_URL = {
    "redis": _NO_URL.replace("REDIS_URL", "SANDBOX_QUEUE_URL"),
    "nats": "SANDBOX_QUEUE_URL is not a NATS URL: nats:// or tls://, as in tls://user:password@one:4222,tls://two:4222 "
    "with every character of the password that is no letter or digit percent-encoded, and no option "
    "but replicas and ssl_ca_certs.",
    "rabbitmq": "SANDBOX_QUEUE_URL is not a RabbitMQ URL: amqp:// or amqps://, as in amqps://user:password@host/vhost "
    "with every character of the password that is no letter or digit percent-encoded, and no options but those of TLS: "
    "cafile, certfile, keyfile.",
}
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
    with _telling_of_tls("REDIS_URL"):
        RedisOptions(settings.redis_url).check_tls()


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
        try:
            # As above.
            usable = bool(_queue_address(settings))
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError(_NO_QUEUE_URL[settings.queue_engine or "redis"])
        with _telling_of_tls("SANDBOX_QUEUE_URL"):
            _try_queue_tls(settings.queue_engine, settings.queue_url)
    elif not settings.local_runner:
        raise SettingsError(
            "SANDBOX_LOCAL_RUNNER is false, and without SANDBOX_QUEUE_URL no worker would run anything: set it, and "
            "start `sandbox worker` with the same."
        )


def _queue_address(settings: Settings) -> str:
    """Return where the queue is. Raises ValueError when the URL does not say, SettingsError without the client."""
    url = settings.queue_url or SecretStr("")
    if settings.queue_engine == "nats":
        if find_spec("nats") is None:
            raise SettingsError(
                "SANDBOX_QUEUE_URL names NATS, and its client is missing: pip install sandbox-mcp[nats]"
            )
        options = NatsOptions(url)
        return f"{options.address} {options.replicas} {options.credentials[0]}"
    if settings.queue_engine == "rabbitmq":
        if find_spec("aio_pika") is None:
            raise SettingsError(
                "SANDBOX_QUEUE_URL names RabbitMQ, and its client is missing: pip install sandbox-mcp[rabbitmq]"
            )
        return RabbitOptions(url).address
    from sandbox_adapters.redis_connection import RedisOptions

    return RedisOptions(url).address


def _try_queue_tls(engine: str | None, url: SecretStr) -> None:
    if engine == "nats":
        NatsOptions(url).tls_context()
    elif engine == "rabbitmq":
        RabbitOptions(url).tls_context()
    else:
        from sandbox_adapters.redis_connection import RedisOptions

        RedisOptions(url).check_tls()


@contextmanager
def _telling_of_tls(variable: str) -> Iterator[None]:
    """Raise SettingsError where what the URL of this variable says of TLS cannot be used, now or later."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{variable}: a file for TLS cannot be used: {reason_of(error)}") from None
    except ValueError:
        raise SettingsError(f"{variable}: an option for TLS has a value that cannot be used") from None


def redis_secrets(settings: Settings) -> list[str]:
    """Return what no log may show: the passwords for Redis, the Sentinels and the queue, and its token."""
    secrets = []
    urls = [url.get_secret_value() for url in (settings.redis_url, settings.queue_url) if url is not None]
    if settings.queue_engine == "nats":
        urls += urls.pop().split(",")
    for url in urls:
        try:
            parts = urlsplit(url)
            given = [parts.password, *(raw for name, _, raw in _fields(parts.query) if name == "password")]
            if parts.scheme in NATS_SCHEMES and parts.password is None:
                given.append(parts.username)
        except ValueError:
            given = []
        for password in filter(None, given):
            secrets += [password, unquote(password), unquote_plus(password)]
    if settings.redis_sentinel_password is not None:
        secrets.append(settings.redis_sentinel_password.get_secret_value())
    return list(dict.fromkeys(secrets))


def _fields(query: str) -> Iterator[tuple[str, str, str]]:
    return (field.partition("=") for field in query.split("&"))
