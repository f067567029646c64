"""What may pass through a tunnel (CONNECT or SOCKS5): TLS that names the tunnel's end, or plain HTTP that does.

Nothing is sent to the destination before the client's first bytes have been judged. A protocol in which the server
speaks first therefore never starts, unless its port is one for raw traffic.

What this cannot see: the Host inside TLS. A site that serves others under the same address (a content delivery
network) can be asked for them behind an allowed server name. Only interception could tell.
"""

from __future__ import annotations

from enum import Enum, auto

import anyio

from sandbox_adapters.egress.errors import Refused
from sandbox_adapters.egress.gate import refusal
from sandbox_adapters.egress.hosts import Host, HostRefused, IpAddress, parse_host
from sandbox_adapters.egress.requests import Destination
from sandbox_adapters.egress.rules import EgressRules
from sandbox_adapters.egress.streams import TcpStream
from sandbox_adapters.egress.tls_hello import (
    TLS_HANDSHAKE_RECORD,
    ClientHello,
    Incomplete,
    NotAClientHello,
    read_client_hello,
)


class Inside(Enum):
    """What the client speaks in a tunnel."""

    NOTHING = auto()
    RAW = auto()
    TLS = auto()
    HTTP = auto()


async def inspect(client: TcpStream, destination: Destination, rules: EgressRules, *, timeout_seconds: float) -> Inside:
    """Return what the client begins to speak, once that may pass. Its bytes are pushed back onto `client`.

    Raises Refused for anything that may not pass, and anyio.BrokenResourceError when the client is gone.
    """
    if destination.port in rules.raw_ports:
        return Inside.RAW
    # Opening a tunnel ahead of its use is common, so the first byte may take as long as the idle timeout allows.
    first = await client.receive()
    if not first:
        return Inside.NOTHING
    if first[0] == TLS_HANDSHAKE_RECORD:
        try:
            with anyio.fail_after(timeout_seconds):
                await _check_hello(client, first, destination, rules)
        except TimeoutError as error:
            raise refusal(destination, "tls_client_hello", "it did not arrive in time") from error
        return Inside.TLS
    client.push_back(first)
    if first[:1].isalpha() and first[:1].isupper() and not rules.port_is_tls_only(destination.port):
        return Inside.HTTP
    wanted = "TLS" if rules.port_is_tls_only(destination.port) else "TLS or HTTP"
    raise refusal(destination, "protocol", f"only {wanted} may be spoken to this port")


async def _check_hello(client: TcpStream, start: bytes, destination: Destination, rules: EgressRules) -> None:
    data = start
    while True:
        try:
            hello = read_client_hello(data)
        except NotAClientHello as error:
            raise refusal(destination, "tls_client_hello", error.reason) from error
        if isinstance(hello, ClientHello):
            break
        data = await _receive_until(client, data, hello)
        if len(data) < hello.size:
            raise refusal(destination, "tls_client_hello", "it was not finished")
    client.push_back(data)
    judge_hello(hello, destination, rules)


async def _receive_until(client: TcpStream, data: bytes, wanted: Incomplete) -> bytes:
    pieces, size = [data], len(data)
    while size < wanted.size and (piece := await client.receive()):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def judge_hello(hello: ClientHello, destination: Destination, rules: EgressRules) -> None:
    """Raise Refused unless the hello's server name is present, allowed and the one that was asked for.

    To an address that is allowed exactly, no server name may stand there: none can name it (RFC 6066, section 3).
    """
    if hello.ech and not rules.allow_ech:
        raise refusal(destination, "tls_ech", "an encrypted ClientHello hides which server it asks for")
    if isinstance(destination.host, IpAddress):
        if hello.server_name is not None:
            raise refusal(destination, "tls_server_name", "a server name was sent to an address")
        return
    if hello.server_name is None:
        raise refusal(destination, "tls_server_name", "the ClientHello has no server name")
    named = _parse_server_name(hello.server_name, destination)
    decision = rules.decide_host(named, destination.port)
    if not decision.allowed:
        raise Refused(decision)
    if named != destination.host:
        raise refusal(destination, "tls_server_name", "the server name is not the host that was asked for")


def _parse_server_name(text: str, destination: Destination) -> Host:
    try:
        return parse_host(text)
    except HostRefused as error:
        raise refusal(destination, "tls_server_name", error.reason) from error
