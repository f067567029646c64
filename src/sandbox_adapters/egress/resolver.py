"""Resolver: looks names up, and dials only addresses that it has checked."""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

import anyio
import anyio.to_thread

from sandbox_adapters.egress.addresses import AddressPolicy
from sandbox_adapters.egress.errors import Refused, Trouble, Unreachable
from sandbox_adapters.egress.hosts import Host, IpAddress, host_text
from sandbox_adapters.egress.rules import Decision
from sandbox_adapters.egress.values import EgressLimits

Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[IpAddress]]]
"""From a canonical name and a port to addresses, the best first; raises OSError when there is none."""

_LOOKUPS_AT_ONCE, _UNFINISHED_LOOKUPS = 8, 24
_SHORTEST_ATTEMPT_SECONDS = 1.0
_BUFFER_BYTES = 512 * 1024
"""Of the kernel, for each direction of a connection; left alone it may grow to many times that while nobody reads."""


class LookupThreads:
    """Bounds the threads that look names up, also those that nobody waits for any more.

    A timeout leaves such a thread behind: it ends by itself when the C library gives up, after many seconds where a
    name server does not answer (resolv.conf(5), `timeout` and `attempts`).

    Args:
        most: threads at once.
        within: a wider bound that these count for as well.
    """

    def __init__(self, most: int, within: LookupThreads | None = None) -> None:
        self._most = most
        self._within = within
        self._taken: set[object] = set()

    @property
    def taken(self) -> int:
        """How many there are."""
        return len(self._taken)

    def take(self, thread: object) -> None:
        """Count one more. Raises OSError when there are as many as there may be."""
        if len(self._taken) >= self._most:
            raise OSError(errno.EAGAIN, "too many names are being looked up")
        if self._within is not None:
            self._within.take(thread)
        self._taken.add(thread)

    def give_back(self, thread: object) -> None:
        """Count one less; from any thread. Again is no error."""
        self._taken.discard(thread)
        if self._within is not None:
            self._within.give_back(thread)


class SystemLookup:
    """Lookup by getaddrinfo(3), in threads of its own limit: a slow name server delays only this proxy's lookups.

    `threads` is a bound that it shares with others.
    """

    def __init__(self, threads: LookupThreads | None = None) -> None:
        self._limiter = anyio.CapacityLimiter(_LOOKUPS_AT_ONCE)
        self._unlimited = anyio.CapacityLimiter(math.inf)
        self._threads = LookupThreads(_UNFINISHED_LOOKUPS, threads)

    async def __call__(self, name: str, port: int) -> list[IpAddress]:
        """Return the addresses of `name`. Raises OSError."""
        thread = object()
        begun = False

        def look_up() -> list[IpAddress]:
            nonlocal begun
            begun = True
            try:
                # The final dot keeps search domains out: `example.com` never becomes `example.com.corp.internal`.
                found = socket.getaddrinfo(f"{name}.".encode("ascii"), port, type=socket.SOCK_STREAM)
            finally:
                self._threads.give_back(thread)
            return [ip_address(entry[4][0]) for entry in found]

        async with self._limiter:
            self._threads.take(thread)
            try:
                return await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=self._unlimited)
            finally:
                if not begun:
                    self._threads.give_back(thread)


class Resolver:
    """Resolves, checks and dials.

    Args:
        addresses: judges every address, also one that was asked for as an address.
        limits: timeouts and the number of addresses tried.
        lookup: SystemLookup when not given.
    """

    def __init__(self, addresses: AddressPolicy, limits: EgressLimits, lookup: Lookup | None = None) -> None:
        self._addresses = addresses
        self._limits = limits
        self._lookup = lookup if lookup is not None else SystemLookup()

    async def resolve(
        self, host: Host, port: int, *, denied: Callable[[IpAddress], str | None] | None = None
    ) -> tuple[IpAddress, ...]:
        """Return the addresses of `host` that may be dialled, the best first, at most `max_addresses`.

        Raises Refused when there are addresses but none may be dialled, Unreachable when there is none at all.
        """
        found = await self._look_up(host, port)
        good: list[IpAddress] = []
        refusals: list[Decision] = []
        for address in dict.fromkeys(found):
            reason = self._addresses.refusal(address)
            if reason is not None:
                text = f"it leads to {address}, which is {reason}; the proxy never connects there"
                refusals.append(Decision(False, f"address: {reason}", text, host_text(host), port))
            elif denied is not None and (reason := denied(address)) is not None:
                text = f"it leads to {address}: {reason}"
                refusals.append(Decision(False, "denied_domains", text, host_text(host), port))
            else:
                good.append(address)
        if not good:
            raise Refused(refusals[0]) if refusals else Unreachable(Trouble.NAME)
        return tuple(good[: self._limits.max_addresses])

    async def connect(self, addresses: Sequence[IpAddress], port: int) -> socket.socket:
        """Return a socket connected to the first of `addresses` that answers. Raises Unreachable.

        The addresses are those that `resolve` returned: nothing is resolved again, so a name that changes its
        address between the check and the call gains nothing.
        """
        trouble = Trouble.REFUSED
        seconds = self._limits.connect_timeout_seconds
        each = max(seconds / len(addresses), min(seconds, _SHORTEST_ATTEMPT_SECONDS))
        with anyio.move_on_after(seconds):
            for address in addresses:
                with anyio.move_on_after(each) as attempt:
                    try:
                        return await _dial(address, port)
                    except OSError:
                        trouble = Trouble.REFUSED
                if attempt.cancelled_caught:
                    trouble = Trouble.TIMEOUT
            raise Unreachable(trouble)
        raise Unreachable(Trouble.TIMEOUT)

    async def _look_up(self, host: Host, port: int) -> Sequence[IpAddress]:
        if not isinstance(host, str):
            return (host,)
        try:
            with anyio.fail_after(self._limits.resolve_timeout_seconds):
                return await self._lookup(host, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            raise Unreachable(Trouble.NAME) from error


async def _dial(address: IPv4Address | IPv6Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        try:
            sock.connect((address.compressed, port))
        except BlockingIOError:
            await anyio.wait_writable(sock)
            # connect(2): after EINPROGRESS the outcome is in SO_ERROR once the socket is writable.
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, "connect") from None
    except BaseException:
        sock.close()
        raise
    return sock
