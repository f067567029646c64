"""The server name in a TLS ClientHello. Pure; reads what RFC 8446 (4.1.2, 5.1) and RFC 6066 (3) define, strictly.

Anything that two readers could understand differently is refused: two names, an extension given twice, bytes left
over, another record in between.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_HELLO_BYTES = 32 * 1024
"""Longest ClientHello; those with post-quantum key shares are about 2 KiB."""

TLS_HANDSHAKE_RECORD = 0x16
ALERT_ACCESS_DENIED = bytes.fromhex("15 03 01 00 02 02 31")
"""A fatal access_denied alert (RFC 8446, 6.2), which clients show to their user."""

_MAX_RECORDS = 64
_MAX_RECORD_BYTES = 1 << 14
_CLIENT_HELLO = 1
_EXTENSION_SERVER_NAME = 0
_EXTENSION_ECH = 0xFE0D
_HOST_NAME = 0
_MAX_NAME_BYTES = 255


class NotAClientHello(ValueError):
    """The bytes are not one well-formed ClientHello. `reason` says what is wrong."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Incomplete:
    """More bytes are needed: at least `size` in all."""

    size: int


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the hello says.

    `server_name` is as sent, in ASCII; None when there is none. `ech`: it carries an encrypted hello
    (`encrypted_client_hello` in IANA's registry), whose server name may be another one.
    """

    server_name: str | None
    ech: bool


def read_client_hello(data: bytes) -> ClientHello | Incomplete:
    """Read the ClientHello at the start of `data`, which may span several records.

    Raises NotAClientHello as soon as the bytes so far rule one out.
    """
    message = b""
    position = 0
    for _ in range(_MAX_RECORDS):
        if len(data) < position + 5:
            _check_record_start(data[position:])
            return Incomplete(position + 5)
        _check_record_start(data[position : position + 5])
        length = int.from_bytes(data[position + 3 : position + 5])
        if not 0 < length <= _MAX_RECORD_BYTES:
            raise NotAClientHello("a record of an impossible length")
        end = position + 5 + length
        message += data[position + 5 : end]
        if message and message[0] != _CLIENT_HELLO:
            raise NotAClientHello("not a ClientHello")
        if len(message) >= 4 and int.from_bytes(message[1:4]) > MAX_HELLO_BYTES:
            raise NotAClientHello(f"longer than {MAX_HELLO_BYTES} bytes")
        if len(data) < end:
            return Incomplete(end)
        if len(message) >= 4 and len(message) >= (size := 4 + int.from_bytes(message[1:4])):
            if len(message) > size:
                raise NotAClientHello("something follows in its record")
            return _read_body(message[4:])
        position = end
    raise NotAClientHello(f"in more than {_MAX_RECORDS} records")


def _check_record_start(start: bytes) -> None:
    if start[:1] not in (b"", bytes([TLS_HANDSHAKE_RECORD])):
        raise NotAClientHello("not a handshake record")
    if start[1:2] not in (b"", b"\x03"):
        raise NotAClientHello("not TLS 1.0 or later")


class _Reader:
    """Takes fields off the front; a field that is not all there is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def empty(self) -> bool:
        return self._position == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise NotAClientHello("a field is cut short")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, length_size: int) -> bytes:
        return self.take(self.number(length_size))


def _read_body(body: bytes) -> ClientHello:
    reader = _Reader(body)
    if reader.take(2)[:1] != b"\x03":
        raise NotAClientHello("not TLS 1.0 or later")
    reader.take(32)
    if len(reader.vector(1)) > 32:
        raise NotAClientHello("a session identifier that is too long")
    ciphers = reader.vector(2)
    if not ciphers or len(ciphers) % 2:
        raise NotAClientHello("a list of cipher suites of an impossible length")
    if not reader.vector(1):
        raise NotAClientHello("no compression method")
    if reader.empty:
        return ClientHello(server_name=None, ech=False)
    extensions = _Reader(reader.vector(2))
    if not reader.empty:
        raise NotAClientHello("bytes after the extensions")
    seen: set[int] = set()
    server_name = None
    while not extensions.empty:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise NotAClientHello("an extension given twice")
        seen.add(kind)
        if kind == _EXTENSION_SERVER_NAME:
            server_name = _read_server_name(content)
    return ClientHello(server_name, _EXTENSION_ECH in seen)


def _read_server_name(content: bytes) -> str:
    outer = _Reader(content)
    names = _Reader(outer.vector(2))
    if not outer.empty:
        raise NotAClientHello("bytes after the server name list")
    if names.number(1) != _HOST_NAME:
        raise NotAClientHello("a server name of an unknown type")
    name = names.vector(2)
    if not names.empty:
        raise NotAClientHello("more than one server name")
    if not 0 < len(name) <= _MAX_NAME_BYTES or not name.isascii():
        raise NotAClientHello("a server name that is empty, too long or not ASCII")
    return name.decode("ascii")
