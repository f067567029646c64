"""What an HTTP request to the proxy asks for. Pure; whatever could be understood in two ways is refused.

Sources: RFC 9112 (messages, target forms in 3.2, request smuggling in 11.2), RFC 9110 (Host 7.2, Connection 7.6.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from sandbox_adapters.egress.errors import MalformedRequest, Refused
from sandbox_adapters.egress.hosts import (
    Host,
    HostRefused,
    authority_text,
    parse_host,
    printable_host,
    split_authority,
)
from sandbox_adapters.egress.rules import Decision

HTTP_PORT = 80
HTTPS_PORT = 443
MAX_FIELDS = 128

_HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization",
        b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
    }
)  # fmt: skip
_NEVER_HOP_BY_HOP = frozenset({b"host", b"content-length", b"cookie", b"authorization", b"expect", b"set-cookie"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MAX_METHOD_BYTES = 32
_ECHOING = frozenset({b"TRACE", b"TRACK"})
"""Would send back what the proxy added for the destination only (RFC 9110, section 9.3.8). TRACK is one server's name
for the same, and some do not mind small letters."""

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Destination:
    """A canonical host and a port."""

    host: Host
    port: int


def read_destination(host: str, port: int) -> Destination:
    """Return what `host`, as asked for, and `port` name. Raises Refused when the host cannot be judged."""
    try:
        return Destination(parse_host(host), port)
    except HostRefused as refusal:
        raise Refused(Decision(False, "host_syntax", refusal.reason, printable_host(host), port)) from refusal


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """One request to pass on: where to, and its target in origin-form."""

    destination: Destination
    target: bytes


def check_head(request: h11.Request, max_head_bytes: int) -> None:
    """Raise MalformedRequest for a head that is too large or whose framing has two readings."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise MalformedRequest("it is not HTTP/1.0 or HTTP/1.1")
    fields = list(request.headers)
    size = len(request.method) + len(request.target) + sum(len(name) + len(value) + 4 for name, value in fields)
    if size > max_head_bytes or len(fields) > MAX_FIELDS:
        raise MalformedRequest(f"the head has more than {max_head_bytes} bytes or {MAX_FIELDS} fields")
    if len(request.method) > _MAX_METHOD_BYTES:
        raise MalformedRequest("the method is not known")
    if request.method.upper() in _ECHOING:
        raise MalformedRequest("TRACE is not passed on", status=405)
    names = [name for name, _ in fields]
    if b"transfer-encoding" in names:
        if b"content-length" in names:
            raise MalformedRequest("Content-Length and Transfer-Encoding together have two readings")
        if request.http_version != b"1.1":
            raise MalformedRequest("Transfer-Encoding needs HTTP/1.1")
    if names.count(b"content-length") > 1:
        raise MalformedRequest("more than one Content-Length")
    if _connection_options(fields) & _NEVER_HOP_BY_HOP:
        raise MalformedRequest("Connection names a field that belongs to the whole request")


def read_connect(request: h11.Request) -> Destination:
    """Return where a CONNECT asks to go. Raises MalformedRequest, and Refused for a host that cannot be judged."""
    names = [name for name, _ in request.headers]
    if b"content-length" in names or b"transfer-encoding" in names:
        raise MalformedRequest("CONNECT has no body")
    target = request.target.decode("ascii")
    destination = _read_authority(target, None)
    named = _host_field(request, destination.port)
    if named is not None and named != destination:
        raise MalformedRequest("Host is not the host that CONNECT names")
    return destination


def read_forward(request: h11.Request, tunnel: Destination | None) -> ForwardRequest:
    """Return what any other request asks for. Raises MalformedRequest, and Refused for a host that cannot be judged.

    Outside a tunnel the target is a full `http://` address. Inside one (`tunnel` is where it leads) it is a path, and
    Host names the tunnel's end.
    """
    target = request.target.decode("ascii")
    for mark, problem in (("\\", "a backslash"), ("#", "a fragment")):
        if mark in target:
            raise MalformedRequest(f"the address has {problem}")
    if tunnel is not None and (target.startswith("/") or target == "*"):
        destination, rest = tunnel, target
    else:
        authority, rest = _split_absolute(target)
        destination = _read_authority(authority, HTTP_PORT)
    named = _host_field(request, HTTP_PORT if tunnel is None else tunnel.port)
    if tunnel is not None and (named is None or destination != tunnel):
        raise MalformedRequest("the request is for another host than this connection was asked for")
    if named is not None and named != destination:
        raise MalformedRequest("Host is not the host that the address names")
    if rest == "*" and request.method != b"OPTIONS":
        raise MalformedRequest("only OPTIONS may ask for *")
    if not rest.startswith(("/", "*")):
        rest = "*" if request.method == b"OPTIONS" and not rest else f"/{rest}"
    return ForwardRequest(destination, rest.encode("ascii"))


def forwarded_fields(
    request: h11.Request, destination: Destination, injected: Fields, *, default_port: int = HTTP_PORT
) -> Fields:
    """Return the fields to send on: without those of this connection, with the canonical Host, `injected` on top.

    An injected field replaces every field of its name that the client sent. `default_port` is the one of the scheme,
    which Host does not repeat.
    """
    fields = list(request.headers.raw_items())
    replaced = {name.lower() for name, _ in injected} | {b"host"}
    kept = [(name, value) for name, value in end_to_end(fields) if name.lower() not in replaced]
    host = authority_text(destination.host, destination.port, default_port).encode("ascii")
    framing = [(b"Transfer-Encoding", b"chunked")] if is_chunked(request) else []
    return [(b"Host", host), *kept, *injected, *framing, (b"Connection", b"close")]


def end_to_end(fields: Fields) -> Fields:
    """Return `fields` without those that are for one connection only (RFC 9110, section 7.6.1)."""
    dropped = (_HOP_BY_HOP | _connection_options(fields)) - _NEVER_HOP_BY_HOP
    return [(name, value) for name, value in fields if name.lower() not in dropped]


def is_chunked(message: h11.Request | h11.Response) -> bool:
    """True when the body comes in chunks."""
    return any(name == b"transfer-encoding" for name, _ in message.headers)


def may_be_injected(name: bytes) -> bool:
    """True for a field that an operator may add: nothing that frames or routes the message."""
    return name.lower() not in _HOP_BY_HOP | {b"host", b"content-length", b"expect"}


def _connection_options(fields: Fields) -> frozenset[bytes]:
    return frozenset(
        option.strip().lower()
        for name, value in fields
        if name.lower() in (b"connection", b"proxy-connection")
        for option in value.split(b",")
    )


def _host_field(request: h11.Request, default_port: int) -> Destination | None:
    values = [value for name, value in request.headers if name == b"host"]
    if not values:
        return None
    try:
        host, port = split_authority(values[0].decode("ascii"), default_port)
        return Destination(parse_host(host), port)
    except ValueError as error:
        raise MalformedRequest("Host is not a host that can be judged") from error


def _read_authority(text: str, default_port: int | None) -> Destination:
    try:
        host, port = split_authority(text, default_port)
    except ValueError as error:
        raise MalformedRequest(str(error)) from error
    return read_destination(host, port)


def _split_absolute(target: str) -> tuple[str, str]:
    scheme = _SCHEME.match(target)
    if scheme is None:
        raise MalformedRequest("this is a proxy: it takes full http:// addresses, CONNECT and SOCKS5")
    if scheme.group().lower() != "http:" or not target[scheme.end() :].startswith("//"):
        raise MalformedRequest("only http:// addresses are taken here; anything with TLS goes through CONNECT")
    rest = target[scheme.end() + 2 :]
    end = min((index for mark in "/?" if (index := rest.find(mark)) >= 0), default=len(rest))
    return rest[:end], rest[end:]
