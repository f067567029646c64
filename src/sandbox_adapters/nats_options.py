"""NatsOptions: how to reach NATS, read from one URL, and what of it may be shown."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import SecretStr

NATS_SCHEMES: Final = ("nats", "tls")
_REPLICAS: Final = ("1", "3", "5")


@dataclass(frozen=True, slots=True)
class NatsOptions:
    """How to reach NATS, and what the streams there are called.

    Args:
        url: `nats://` or `tls://`, with `user:password@` or `token@`, every special character percent-encoded; several
            servers of one cluster are separated by commas, and the first names the user for all. At the end
            `?replicas=3`: how many servers keep each stream that is created (1, 3 or 5); and
            `?ssl_ca_certs=/path`: the authority of their certificates, instead of those that the system trusts.
        prefix: begins the names of streams and subjects, after `sandbox`.
        timeout_seconds: for connecting, and for one answer.
    """

    url: SecretStr
    prefix: str = ""
    timeout_seconds: float = 2.0

    @property
    def base(self) -> str:
        """What every stream and subject begins with: letters, digits and `_-~` only."""
        quoted = self.prefix.replace(".", "~d").replace(":", "~c")
        return f"sandbox-{quoted}" if quoted else "sandbox"

    @property
    def servers(self) -> list[str]:
        """Where to connect, without user and password. Raises ValueError for what is no NATS URL."""
        return [f"{parts.scheme}://{_host(parts)}" for parts in self._parts()]

    @property
    def address(self) -> str:
        """Where the servers are, in a form that can be shown. Raises ValueError for what is no NATS URL."""
        return ", ".join(_host(parts) for parts in self._parts())

    @property
    def wants_tls(self) -> bool:
        """Whether nothing may be sent in clear text. Raises ValueError as above."""
        return any(parts.scheme == "tls" for parts in self._parts())

    @property
    def replicas(self) -> int:
        """How many servers keep a stream. Raises ValueError as above."""
        return int(self._options().get("replicas", "1"))

    @property
    def authority(self) -> str | None:
        """The file with the authority of the servers' certificates. Raises ValueError as above."""
        return self._options().get("ssl_ca_certs")

    @property
    def credentials(self) -> tuple[str | None, str | None]:
        """Return user and password, decoded; only a user is a token. Raises ValueError as above."""
        first = self._parts()[0]
        user, password = first.username, first.password
        return (unquote(user) if user else None, None if password is None else unquote(password))

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what TLS is spoken with; None without TLS. Raises OSError for a file that cannot be used."""
        return ssl.create_default_context(cafile=self.authority) if self.wants_tls else None

    def _split(self) -> tuple[str, str]:
        servers, _, query = self.url.get_secret_value().partition("?")
        return servers, query

    def _parts(self) -> list[SplitResult]:
        servers, query = self._split()
        found = [urlsplit(text.strip()) for text in servers.split(",")]
        for parts in found:
            usable = parts.scheme in NATS_SCHEMES and parts.hostname and parts.path in ("", "/") and not parts.fragment
            if not usable or parts.port == 0:
                raise ValueError("not a NATS URL")
        for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
            if not (value in _REPLICAS if name == "replicas" else name == "ssl_ca_certs" and value.startswith("/")):
                raise ValueError("not an option of a NATS URL")
        return found

    def _options(self) -> dict[str, str]:
        self._parts()
        return dict(parse_qsl(self._split()[1]))


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]:{parts.port or 4222}" if ":" in host else f"{host}:{parts.port or 4222}"
