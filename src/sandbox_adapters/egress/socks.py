"""The SOCKS5 handshake (RFC 1928): no authentication, CONNECT only, names and addresses."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from sandbox_adapters.egress.errors import EgressFailure, MalformedRequest, Refused, Trouble, Unreachable
from sandbox_adapters.egress.requests import Destination, read_destination
from sandbox_adapters.egress.streams import TcpStream

VERSION = 5
_NO_AUTHENTICATION = 0
_NO_ACCEPTABLE_METHOD = 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4


class SocksReply(IntEnum):
    """Codes of section 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class SocksUnsupported(MalformedRequest):
    """Well-formed, and something that this proxy does not do."""

    def __init__(self, problem: str, code: SocksReply) -> None:
        super().__init__(problem)
        self.code = code


async def read_request(client: TcpStream) -> Destination | None:
    """Do the handshake up to the request and return where it asks to go; None when it ended without one.

    Raises MalformedRequest and Refused; answer both with `reply`. Raises anyio.BrokenResourceError when the client is
    gone.
    """
    version, count = await client.receive_exactly(2)
    methods = await client.receive_exactly(count)
    if version != VERSION or _NO_AUTHENTICATION not in methods:
        await client.send(bytes([VERSION, _NO_ACCEPTABLE_METHOD]))
        return None
    await client.send(bytes([VERSION, _NO_AUTHENTICATION]))
    version, command, reserved, kind = await client.receive_exactly(4)
    if version != VERSION or reserved != 0:
        raise MalformedRequest("not a SOCKS5 request")
    host = await _read_host(client, kind)
    port = int.from_bytes(await client.receive_exactly(2))
    if command != _CONNECT:
        raise SocksUnsupported("only CONNECT is supported", SocksReply.COMMAND_NOT_SUPPORTED)
    return read_destination(host, port)


def reply(outcome: EgressFailure | None) -> bytes:
    """Return the reply to send: success for None. The bound address is not told (it is the host's)."""
    return bytes([VERSION, _code(outcome), 0, _IPV4, 0, 0, 0, 0, 0, 0])


async def _read_host(client: TcpStream, kind: int) -> str:
    if kind == _IPV4:
        return IPv4Address(await client.receive_exactly(4)).compressed
    if kind == _IPV6:
        return IPv6Address(await client.receive_exactly(16)).compressed
    if kind != _NAME:
        raise SocksUnsupported("the address type is unknown", SocksReply.ADDRESS_TYPE_NOT_SUPPORTED)
    name = await client.receive_exactly((await client.receive_exactly(1))[0])
    # What is not UTF-8 stays visible as such, and no host name has a replacement character.
    return name.decode("utf-8", errors="replace")


def _code(outcome: EgressFailure | None) -> SocksReply:
    match outcome:
        case None:
            return SocksReply.SUCCEEDED
        case Refused():
            return SocksReply.NOT_ALLOWED
        case SocksUnsupported():
            return outcome.code
        case Unreachable(trouble=Trouble.REFUSED):
            return SocksReply.CONNECTION_REFUSED
        case Unreachable(trouble=Trouble.TIMEOUT):
            return SocksReply.TTL_EXPIRED
        case Unreachable():
            return SocksReply.HOST_UNREACHABLE
        case _:
            return SocksReply.GENERAL_FAILURE
