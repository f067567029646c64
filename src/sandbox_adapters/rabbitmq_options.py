"""RabbitOptions: how to reach RabbitMQ, read strictly from one URL, and what of it may be shown."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import SecretStr

RABBITMQ_SCHEMES: Final = ("amqp", "amqps")
TLS_OPTIONS: Final = frozenset({"cafile", "certfile", "keyfile"})

_URL: Final = re.compile(
    r"amqps?://(?:[^/?#@\[\]:]*(?::[^/?#@\[\]]*)?@)?(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?:/[^/?#]*)?(?:\?[^#]*)?",
    re.IGNORECASE,
)
_PORTS: Final = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class RabbitOptions:
    """How to reach RabbitMQ, and what the queues there are called.

    Args:
        url: `amqp://` or `amqps://` (TLS, verified), with user, password and, after the slash, the virtual host, every
            special character percent-encoded. `?cafile=`, `certfile=` and `keyfile=` name files in PEM for TLS.
        prefix: in the names of queues, after `sandbox`.
        timeout_seconds: for connecting, and for one answer.
    """

    url: SecretStr
    prefix: str = ""
    timeout_seconds: float = 2.0

    @property
    def base(self) -> str:
        """What the name of every queue and exchange begins with."""
        return f"sandbox.{self.prefix}" if self.prefix else "sandbox"

    @property
    def address(self) -> str:
        """Where the broker is, in a form that can be shown. Raises ValueError for what is no AMQP URL."""
        return f"{self.host}:{self.port}, virtual host {self.virtual_host}"

    @property
    def host(self) -> str:
        """The name or number of the machine. Raises ValueError as above, as do all that follow."""
        host = self._parts().hostname or ""
        return f"[{host}]" if ":" in host else host

    @property
    def port(self) -> int:
        """The port."""
        parts = self._parts()
        return parts.port or _PORTS[parts.scheme]

    @property
    def virtual_host(self) -> str:
        """The virtual host, decoded; `/` when the URL has none."""
        path = self._parts().path
        return unquote(path[1:]) if len(path) > 1 else "/"

    @property
    def user(self) -> str:
        """The user, decoded."""
        return unquote(self._parts().username or "guest")

    @property
    def password(self) -> str:
        """The password, decoded."""
        return unquote(self._parts().password or "guest")

    @property
    def wants_tls(self) -> bool:
        """Whether nothing may be sent in clear text."""
        return self._parts().scheme == "amqps"

    @property
    def tls_files(self) -> dict[str, str]:
        """What the options of the URL say."""
        return dict(parse_qsl(self._parts().query, keep_blank_values=True, strict_parsing=True)) if self._query else {}

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what TLS is spoken with, from the files of the URL; None without TLS. Raises OSError for a file."""
        if not self.wants_tls:
            return None
        files = self.tls_files
        context = ssl.create_default_context(cafile=files.get("cafile"))
        if "certfile" in files:
            context.load_cert_chain(files["certfile"], files.get("keyfile"))
        return context

    @property
    def _query(self) -> str:
        return urlsplit(self.url.get_secret_value()).query

    def _parts(self) -> SplitResult:
        text = self.url.get_secret_value()
        if not _URL.fullmatch(text):
            raise ValueError("is not an AMQP URL")
        parts = urlsplit(text)
        known = TLS_OPTIONS if parts.scheme == "amqps" else frozenset[str]()
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        if any(name not in known or not value for name, value in given) or parts.port == 0:
            raise ValueError("has an option that is not known")
        return parts
