"""Diagnosis: whether the chosen runner and Redis can work on this machine, with the fix for each lack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

import anyio
from pydantic import SecretStr

from sandbox_adapters.capabilities import Capabilities
from sandbox_adapters.container import SandboxContainer
from sandbox_adapters.runners.probes import Check, probe
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_core.domain.errors import RunnerUnavailable

REDIS_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked at. `works` tells whether the chosen runner can."""

    runner: str
    works: bool
    checks: tuple[Check, ...]
    capabilities: Capabilities | None = None
    """What a server with these settings can enforce here; None when it could not start."""


async def diagnose(settings: Settings) -> Diagnosis:
    """Look at everything; takes a second or two, and starts sandboxes of its own for the self-tests."""
    paths = [str(path) for path in settings.read_only_paths]
    checks = await probe(bwrap_path=settings.bwrap_path, read_only_paths=paths)
    # One program that passes is enough: the runner takes the first that does.
    works = any(check.ok for check in checks if check.name.startswith("bubblewrap"))
    if settings.runner == "local":
        works = True
        checks = [Check("local runner", True, "chosen; it isolates nothing", required=True), *checks]
    if settings.redis_url is not None:
        checks = [*checks, await redis_check(settings.redis_url)]
    capabilities = None
    if works:
        try:
            capabilities = await _capabilities(settings)
        except (SettingsError, RunnerUnavailable) as error:
            works = False
            fix = "Correct the settings, or mend what they need."
            checks = [*checks, Check("settings", False, str(error), fix, required=True)]
    return Diagnosis(runner=settings.runner, works=works, checks=tuple(checks), capabilities=capabilities)


async def _capabilities(settings: Settings) -> Capabilities:
    """Open the runner as a server would, and ask it."""
    container = SandboxContainer(settings=settings)
    runner = container.runner()
    async with AsyncExitStack() as stack:
        if isinstance(runner, AbstractAsyncContextManager):
            await stack.enter_async_context(runner)
        return container.capabilities()


async def redis_check(url: SecretStr) -> Check:
    """Ask the server at REDIS_URL; neither the URL nor an error that might quote it is shown."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    fix = "Start Redis, or correct REDIS_URL. This version refuses to serve while it is set."
    try:
        client = Redis.from_url(url.get_secret_value(), socket_timeout=2, socket_connect_timeout=2)
    except ValueError:
        return Check("Redis", False, "REDIS_URL is not a Redis URL", fix)
    ask: Callable[[], Awaitable[object]] = client.ping
    try:
        with anyio.fail_after(REDIS_TIMEOUT_SECONDS):
            await ask()
    except (RedisError, OSError, TimeoutError) as error:
        return Check("Redis", False, f"does not answer ({type(error).__name__})", fix)
    finally:
        with anyio.move_on_after(REDIS_TIMEOUT_SECONDS, shield=True):
            await client.aclose()
    return Check("Redis", True, "answers; shared state is not built in yet, so unset REDIS_URL to serve")
