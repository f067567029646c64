"""ExecutionNetwork: the proxy of one execution, from the listener made inside its sandbox to what it reports."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

import anyio
import anyio.abc

from sandbox_adapters.egress import Denial as ProxyDenial
from sandbox_adapters.egress import EgressProxy, EgressRules, proxy_environment
from sandbox_adapters.egress.hosts import HostRefused, authority_text, parse_host
from sandbox_adapters.runners.child.inside import LISTENER_MADE
from sandbox_core.domain.denial import Denial, DenialKind
from sandbox_core.domain.errors import LaunchFailed
from sandbox_core.domain.isolation import Isolation
from sandbox_core.ports.runner import ProcessExit

_log = logging.getLogger("sandbox_adapters.runners")

PROXY_PORT = 3128
"""Where the proxy is, on the loopback of each sandbox; nothing else can be there before it."""

_START_SECONDS = 30
"""The helper gives up by itself after twenty."""
_INTERCEPTED = "ends in the proxy for hosts that get a secret of the operator's"
_RULES = {"address": "addresses"}


class ExecutionNetwork:
    """Owns the proxy and its sockets. `start` once, then `close`; `close` also without `start`.

    Args:
        proxy: serves this execution alone; not served yet.
        rules: those that it serves by.
        release: called once, at the end.
        environment: variables that the command gets beside those that name the proxy.
        intercepts: the proxy ends TLS to some hosts, which the record then says.

    Raises OSError.
    """

    def __init__(
        self,
        proxy: EgressProxy,
        rules: EgressRules,
        *,
        release: Callable[[], None],
        environment: Mapping[str, str] | None = None,
        intercepts: bool = False,
    ) -> None:
        self._ours, self._launchers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._proxy = proxy
        self._release = release
        self._environment = dict(environment or {})
        self._facts = proxy_facts(rules.ports) | ({"egress_tls": _INTERCEPTED} if intercepts else {})
        self._scope = anyio.CancelScope()
        self._ended: anyio.Event | None = None
        self._closed = False

    @property
    def port(self) -> int:
        """Where the proxy is inside, on 127.0.0.1."""
        return PROXY_PORT

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that lead programs to it."""
        return {**proxy_environment(PROXY_PORT), **self._environment}

    def recorded(self, isolation: Isolation) -> Isolation:
        """Return the record of an execution that has this way out and no other."""
        return replace(isolation, network="egress", facts={**isolation.facts, **self._facts})

    def detach_launchers_end(self) -> int:
        """Return the descriptor that the listener is to be sent to, now the caller's."""
        return self._launchers.detach()

    async def start(self, tasks: anyio.abc.TaskGroup, wait_for_end: Callable[[], Awaitable[object]]) -> None:
        """Take the listener and serve it in `tasks`; without one, wait for the end of the process that has none.

        Raises LaunchFailed when neither comes.
        """
        try:
            with anyio.fail_after(_START_SECONDS):
                listener = await self._receive_listener()
                if listener is None:
                    await wait_for_end()
                    return
        except TimeoutError:
            raise LaunchFailed("The sandbox got no network proxy in time. Try again later.") from None
        self._ended = anyio.Event()
        await tasks.start(self._serve, listener)

    def stop(self) -> None:
        """End the proxy; `close` waits for it. Again is no error."""
        self._scope.cancel()

    async def close(self) -> None:
        """End the proxy and let go of everything, also under cancellation. Again is no error."""
        self.stop()
        try:
            if self._ended is not None:
                with anyio.CancelScope(shield=True):
                    await self._ended.wait()
        finally:
            if not self._closed:
                self._closed = True
                self._ours.close()
                self._launchers.close()
                self._release()

    def told(self, exit_: ProcessExit) -> ProcessExit:
        """Return `exit_` with what went through and what was refused; after the end."""
        usage, kept = self._proxy.usage(), self._proxy.denials()
        return replace(
            exit_,
            denials=(*exit_.denials, *map(_denial, kept)),
            denials_omitted=exit_.denials_omitted + usage.denied - sum(denial.count for denial in kept),
            network_sent_bytes=usage.bytes_to_network,
            network_received_bytes=usage.bytes_from_network,
        )

    async def _receive_listener(self) -> socket.socket | None:
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._ours, len(LISTENER_MADE), 1, socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                await anyio.wait_readable(self._ours)
        if message == LISTENER_MADE and len(descriptors) == 1:
            return socket.socket(fileno=descriptors[0])
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    async def _serve(self, listener: socket.socket, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        assert self._ended is not None  # noqa: S101 - set by the only caller
        try:
            with self._scope:
                await self._proxy.serve(listener, task_status=task_status)
        except Exception:  # noqa: BLE001 - one execution's proxy never ends the runner; nothing gets out without it
            _log.exception("the proxy of an execution ended")
        finally:
            self._ended.set()


def proxy_facts(ports: Iterable[int]) -> dict[str, str]:
    """Return what a record says of a proxy that reaches these ports."""
    return {
        "egress_ports": ", ".join(map(str, sorted(ports))),
        "egress_proxy": f"http, connect and socks5 at 127.0.0.1:{PROXY_PORT}",
    }


def _denial(denial: ProxyDenial) -> Denial:
    rule = denial.rule.partition(":")[0]
    try:
        target = authority_text(parse_host(denial.host), denial.port)
    except HostRefused:
        target = f"{denial.host}:{denial.port}"
    return Denial(
        kind=DenialKind.NETWORK,
        target=target,
        rule=f"network.{_RULES.get(rule, rule)}",
        message=f"{target} was refused: {denial.reason}.",
        count=denial.count,
    )
