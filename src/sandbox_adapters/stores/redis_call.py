"""StoreCalls: RedisStateStore's scripts, called with what each of them begins with, and their refusals as errors."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

from sandbox_adapters.redis_connection import LuaScript, RedisConnection, key_part
from sandbox_adapters.redis_time import REDIS_TIME
from sandbox_adapters.stores.redis_scripts import scripts
from sandbox_core.domain.errors import ClaimRefused, ExecutionNotFound, StoredDataCorrupt
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, SessionId
from sandbox_core.domain.status import ExecutionStatus

RUNNING_TTL_SECONDS: Final = 7 * 86_400
"""What the keys of a running execution have left after each renewal of its lease, beyond the time to live."""

_EXECUTION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GUIDE_SESSION = re.compile(r"[A-Za-z0-9._:-]{1,128}")

Value = str | bytes | int


class StoreCalls:
    """One store's scripts on one connection."""

    def __init__(self, redis: RedisConnection, *, ttl_seconds: float, time: str = REDIS_TIME) -> None:
        self.redis = redis
        self.scripts = scripts(time)
        ttl_ms = max(1, round(ttl_seconds * 1000))
        self._begin: tuple[Value, ...] = (redis.namespace, ttl_ms, ttl_ms + RUNNING_TTL_SECONDS * 1000)

    async def run(self, script: LuaScript, *args: Value, keys: Sequence[str] = ()) -> Any:
        """Run a script that does not answer for one execution alone. Raises StoreUnavailable, StoredDataCorrupt."""
        return await self.redis.run(script, keys, (*self._begin, *args))

    async def run_on(self, script: LuaScript, execution_id: ExecutionId, *args: Value) -> list[Any]:
        """Run a script on one execution and return its answer, the word first.

        Raises ExecutionNotFound, also for what cannot be an id, StoredDataCorrupt, StoreUnavailable.
        """
        if not _EXECUTION_ID.fullmatch(execution_id):
            raise ExecutionNotFound(execution_id)
        keys = [f"{self.redis.namespace}{name}" for name in _keys(execution_id)]
        try:
            answer = await self.redis.run(script, keys, (*self._begin, execution_id, *args))
        except StoredDataCorrupt as error:
            raise StoredDataCorrupt(f"execution {execution_id}", "a key of it holds a value of another type") from error
        match answer:
            case [b"NOT_FOUND", *_]:
                raise ExecutionNotFound(execution_id)
            case [b"TORN", *_]:
                raise StoredDataCorrupt(
                    f"execution {execution_id}",
                    f"some of {', '.join(keys)} is gone or damaged, by hand or since Redis evicts keys",
                )
            case [bytes(), *_]:
                return list(answer)
            case _:
                raise StoredDataCorrupt(f"execution {execution_id}", "a script gave no answer that is known")


def refusal(execution_id: ExecutionId, answer: Sequence[Any]) -> ClaimRefused:
    """Return the error for an answer that gives a reason."""
    return ClaimRefused(execution_id, bytes(answer[1]).decode())


def nonce() -> str:
    """Return a word that tells one call from every other, so that sending it twice does its work once."""
    return secrets.token_hex(8)


def status_of(raw: bytes, execution_id: ExecutionId) -> ExecutionStatus:
    """Return a stored status. Raises StoredDataCorrupt."""
    try:
        return ExecutionStatus(raw.decode())
    except ValueError as error:
        raise StoredDataCorrupt(f"execution {execution_id}", "its status is not known") from error


def session_parts(session_id: SessionId | None) -> tuple[str, str]:
    """Return a session as part of our keys and as part of the guide's, both empty for none.

    The guide's `session:{session_id}:executions` has the id as it is; one that no caller can have sent is quoted.
    """
    if session_id is None:
        return "", ""
    guide = session_id if _GUIDE_SESSION.fullmatch(session_id) else key_part(session_id) or "%"
    return f"={key_part(session_id)}", guide


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))


def may_wait_ms(execution: Execution) -> int:
    """Return how long an execution may wait for its claim, milliseconds; 0 for ever."""
    seconds = execution.policy.resource_limits.queue_timeout_seconds
    return 0 if seconds is None else milliseconds(seconds)


def _keys(execution_id: ExecutionId) -> tuple[str, str, str]:
    return f"execution:{execution_id}", f"execution:{execution_id}:output", f"meta:{execution_id}"
