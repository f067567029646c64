"""RedisPlaces: how many executions run, per node, principal and session, counted over all replicas.

A scope is a sorted set of its places, scored by when each lapses by Redis's clock: what a crashed replica held is free
again without anybody's help.
"""

from __future__ import annotations

from sandbox_adapters.redis_connection import key_part
from sandbox_adapters.stores.redis_call import StoreCalls, milliseconds, session_parts
from sandbox_core.ports.store import Place, Quota, Scope

_SCOPES = (Scope.NODE, Scope.PRINCIPAL, Scope.SESSION)


class RedisPlaces:
    """The places of one store."""

    def __init__(self, calls: StoreCalls) -> None:
        self._calls = calls

    async def reserve(
        self, place: Place, quota: Quota, lease_seconds: float, *, with_document: bool = False
    ) -> Scope | bytes | None:
        """Hold a place, or return the first full scope; `with_document`: the document of what is pending."""
        limits = (quota.per_node, quota.per_principal, quota.per_session)
        scopes = [part for pair in zip(self._scopes(place), limits, strict=False) for part in pair]
        script, arguments = self._calls.scripts.reserve, (_member(place), milliseconds(lease_seconds), *scopes)
        answer = await self._calls.run(script, *arguments, keys=self._document(place) if with_document else ())
        if isinstance(answer, bytes):
            return answer
        return _SCOPES[int(answer) - 1] if answer else None

    async def release(self, place: Place) -> None:
        """Give a place back, when it is held."""
        await self._calls.run(self._calls.scripts.release, _member(place), *self._scopes(place))

    def _document(self, place: Place) -> tuple[str, str]:
        begin = self._calls.redis.namespace
        return f"{begin}execution:{place.execution_id}", f"{begin}meta:{place.execution_id}"

    def _scopes(self, place: Place) -> list[str]:
        begin, principal = f"{self._calls.redis.namespace}places:", key_part(place.principal)
        scopes = [f"{begin}node:{key_part(place.node)}", f"{begin}principal:{principal}"]
        if place.session_id is not None:
            scopes.append(f"{begin}session:{principal}:{session_parts(place.session_id)[0]}")
        return scopes


def _member(place: Place) -> str:
    return f"{place.execution_id}|{key_part(place.node)}"
