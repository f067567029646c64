"""Diagnosis: whether the chosen runner and Redis can work on this machine, with the fix for each lack."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from sandbox_adapters.capabilities import Capabilities
from sandbox_adapters.container import SandboxContainer, redis_connection
from sandbox_adapters.queue_engines import engine_check
from sandbox_adapters.redis_options import check_redis
from sandbox_adapters.runners.probes import Check, probe
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_adapters.visible_paths import visible_paths
from sandbox_core.domain.errors import InfrastructureError, RunnerUnavailable, StoreUnavailable

if TYPE_CHECKING:
    from sandbox_adapters.redis_connection import RedisConnection

REDIS_TIMEOUT_SECONDS = 3.0

_NO_REDIS = Check(
    "Redis",
    True,
    "not used: executions are in the memory of one server, and a restart forgets them",
    "Set REDIS_URL to share them between servers.",
    in_use=False,
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked at. `works` tells whether the chosen runner can."""

    runner: str
    works: bool
    checks: tuple[Check, ...]
    capabilities: Capabilities | None = None
    """What a server with these settings can enforce here; None when it could not start."""


async def diagnose(settings: Settings) -> Diagnosis:
    """Look at everything; takes a second or two, and starts sandboxes of its own for the self-tests.

    Raises SettingsError for settings that nothing can be looked at with.
    """
    checks = await probe(bwrap_path=settings.bwrap_path, read_only_paths=visible_paths(settings))
    # One program that passes is enough: the runner takes the first that does.
    works = any(check.ok for check in checks if check.name.startswith("bubblewrap"))
    if settings.runner == "local":
        works = True
        checks = [Check("local runner", True, "chosen; it isolates nothing", required=True), *checks]
    if not settings.local_runner:
        works = True
        checks = [Check("workers", True, "this server runs nothing itself, and needs no isolation"), *checks]
    checks = [*checks, await redis_check(settings) if settings.state == "redis" else _NO_REDIS]
    if (queue := await engine_check(settings)) is not None:
        checks = [*checks, queue]
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


async def _told_of_itself(redis: RedisConnection) -> str:
    """Return what INFO says; nothing where the user may not ask, who may do all that is needed without."""
    try:
        answer: bytes = await redis.command("INFO")
    except StoreUnavailable:
        return ""
    return answer.decode()


async def redis_check(settings: Settings) -> Check:
    """Ask the server at REDIS_URL; neither the URL nor an error that might quote it is shown."""
    # Imported here, since most programs keep their state in memory.
    from sandbox_adapters.stores.redis import RedisStateStore

    try:
        check_redis(settings)
        connection = redis_connection(settings)
        with anyio.fail_after(REDIS_TIMEOUT_SECONDS):
            async with connection as redis:
                await RedisStateStore(redis).ping()
                answer = await _told_of_itself(redis)
    except (SettingsError, InfrastructureError, TimeoutError) as error:
        said = str(error) or f"does not answer within {REDIS_TIMEOUT_SECONDS:g} s"
        return Check("Redis", False, said, "Start Redis, or correct REDIS_URL.")
    info = dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)
    found = f"{info.get('redis_version', 'it')} answers at {connection.address}"
    if not info:
        found += "; its user may not ask whether it keeps everything (INFO): see docs/deployment.md"
    evicts = info.get("maxmemory_policy", "noeviction")
    if evicts != "noeviction":
        fix = "Set maxmemory-policy to noeviction: a full Redis then slows programs down and loses nothing."
        return Check("Redis", False, f"{found}; maxmemory-policy {evicts} lets it drop what is in use", fix)
    if info.get("aof_enabled") == "0":
        found += "; without appendonly yes a restart forgets every execution"
    return Check("Redis", True, found)
