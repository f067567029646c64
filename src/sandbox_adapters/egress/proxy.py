"""EgressProxy: the only way out of one sandbox. Accepts connections on a listener and serves each by the rules."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import anyio
import anyio.abc

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.egress.addresses import AddressPolicy
from sandbox_adapters.egress.connection import Connection
from sandbox_adapters.egress.gate import Gate
from sandbox_adapters.egress.interception import HeaderInjector, Interception
from sandbox_adapters.egress.ledger import Ledger
from sandbox_adapters.egress.resolver import Lookup, Resolver
from sandbox_adapters.egress.rules import EgressRules
from sandbox_adapters.egress.streams import Activity, TcpStream
from sandbox_adapters.egress.values import Denial, EgressLimits, EgressUsage
from sandbox_adapters.h11_bounds import bound_h11

_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PEER_GAVE_UP = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EPERM})
_WAIT_WHEN_FULL_SECONDS = 0.05
_LONGEST_WATCH_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Live:
    scope: anyio.CancelScope
    activity: Activity


class EgressProxy:
    """Serves one execution. The listener may belong to another network namespace: only accepted sockets do as well.

    Args:
        rules: what may be reached.
        addresses: what may be dialled; the default refuses all that is not the public internet.
        limits: timeouts and bounds.
        lookup: turns names into addresses; the system's resolver when not given.
        inject_headers: adds the operator's header fields to plain HTTP requests; see HeaderInjector.
        interception: ends TLS to the hosts that get header fields inside it; None leaves all TLS as it is.
        now: aware time in UTC, for denials.

    Start it with `await task_group.start(proxy.serve, listener)`, end it with `aclose` or by cancelling it.
    """

    def __init__(
        self,
        rules: EgressRules,
        *,
        addresses: AddressPolicy | None = None,
        limits: EgressLimits | None = None,
        lookup: Lookup | None = None,
        inject_headers: HeaderInjector | None = None,
        interception: Interception | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        bound_h11()
        self._limits = limits if limits is not None else EgressLimits()
        self._ledger = Ledger(now if now is not None else SystemClock().now, self._limits.max_denials)
        resolver = Resolver(addresses if addresses is not None else AddressPolicy(), self._limits, lookup)
        self._gate = Gate(rules, resolver, self._ledger)
        self._inject = inject_headers
        self._interception = interception
        self._live: set[_Live] = set()
        self._scope: anyio.CancelScope | None = None
        self._ended: anyio.Event | None = None
        self._closed = False

    def usage(self) -> EgressUsage:
        """Return what went through so far; also after the end."""
        return self._ledger.usage()

    def denials(self) -> tuple[Denial, ...]:
        """Return what was refused so far, the earliest first; also after the end."""
        return self._ledger.denials()

    @property
    def open_connections(self) -> int:
        """Connections from the sandbox that are being served."""
        return len(self._live)

    async def serve(
        self, listener: socket.socket, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept and serve until `aclose`. Owns `listener`, a bound and listening TCP socket, and closes it.

        No connection's failure ends it. Every socket is closed when this returns. May be called once.
        """
        if self._closed or self._ended is not None:
            listener.close()
            raise RuntimeError("this proxy has been closed, or has served already")
        self._ended, self._scope = anyio.Event(), anyio.CancelScope()
        places = anyio.CapacityLimiter(self._limits.max_connections)
        try:
            with listener, self._scope:
                listener.setblocking(False)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._end_idle_ones)
                    task_status.started()
                    while True:
                        # The next one waits in the kernel's queue while all places are taken.
                        ticket = object()
                        await self._take_place(places, ticket, listener)
                        tasks.start_soon(self._serve_one, await self._accept(listener), places, ticket)
        finally:
            self._ended.set()

    async def aclose(self) -> None:
        """End it and wait until every socket is closed. A second call is harmless; one before `serve` forbids it."""
        self._closed = True
        if self._scope is not None and self._ended is not None:
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._ended.wait()

    async def _take_place(self, places: anyio.CapacityLimiter, ticket: object, listener: socket.socket) -> None:
        """Wait for a place; clients keep connections open unused, which must not keep their next one waiting."""
        patience = self._limits.crowded_idle_seconds
        while True:
            with anyio.move_on_after(patience):
                await places.acquire_on_behalf_of(ticket)
                return
            idlest = min(self._live, key=lambda live: live.activity.last, default=None)
            if (
                idlest is not None
                and idlest.activity.last <= anyio.current_time() - patience
                and _someone_waits(listener)
            ):
                idlest.scope.cancel()

    async def _accept(self, listener: socket.socket) -> socket.socket:
        while True:
            try:
                return listener.accept()[0]
            except BlockingIOError:
                await anyio.wait_readable(listener)
            except OSError as error:
                # accept(2): errors of the one connection are reported here too.
                if error.errno in _FULL:
                    await anyio.sleep(_WAIT_WHEN_FULL_SECONDS)
                elif error.errno not in _PEER_GAVE_UP:
                    raise

    async def _serve_one(self, sock: socket.socket, places: anyio.CapacityLimiter, ticket: object) -> None:
        activity = Activity()
        deadline = anyio.current_time() + self._limits.total_timeout_seconds
        live = _Live(anyio.CancelScope(deadline=deadline), activity)
        self._live.add(live)
        self._ledger.connections += 1
        try:
            with live.scope, sock, TcpStream(sock, activity) as client:
                await Connection(client, self._gate, self._limits, self._inject, self._interception).serve()
        except anyio.BrokenResourceError:
            return
        except Exception:  # noqa: BLE001 - the outermost handler: one connection never ends the proxy of a sandbox
            self._ledger.faults += 1
        finally:
            self._live.discard(live)
            places.release_on_behalf_of(ticket)

    async def _end_idle_ones(self) -> None:
        idle = self._limits.idle_timeout_seconds
        while True:
            await anyio.sleep(min(idle / 4, _LONGEST_WATCH_INTERVAL_SECONDS))
            before = anyio.current_time() - idle
            for live in tuple(self._live):
                if live.activity.last < before:
                    live.scope.cancel()


def _someone_waits(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
