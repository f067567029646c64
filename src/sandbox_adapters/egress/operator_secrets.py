"""OperatorSecrets: what the operator configured, given out to the proxy of each execution."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox_adapters.egress.interception import HeaderInjector, Interception, verifying_context
from sandbox_adapters.egress.secrets import Secret, SecretHeaders
from sandbox_adapters.egress.trust import trust_bundle, trust_environment
from sandbox_core.domain.ids import Principal

if TYPE_CHECKING:
    from sandbox_adapters.egress.authority import CertificateAuthority


@dataclass(frozen=True, slots=True)
class Injection:
    """What one execution's proxy adds: to plain HTTP, and inside TLS. None for nothing."""

    inject_headers: HeaderInjector | None = None
    interception: Interception | None = None


class OperatorSecrets:
    """The secrets of one server, and the authority that lets them be added inside TLS.

    Args:
        secrets: no two of them for one field of one request; see `colliding`.
        authority: None leaves all TLS as it is: the secrets go into plain HTTP alone, where they say so.
        upstream: verifies the hosts; `verifying_context()` when not given.
    """

    def __init__(
        self,
        secrets: Sequence[Secret] = (),
        authority: CertificateAuthority | None = None,
        *,
        upstream: ssl.SSLContext | None = None,
    ) -> None:
        self._headers = SecretHeaders(secrets)
        self._authority = authority
        self._upstream = (upstream or verifying_context()) if authority is not None else None

    def for_principal(self, principal: Principal | None) -> Injection:
        """Return what executions of `principal` get; None gets only what all get."""
        headers = self._headers.for_principal(principal)
        if not headers:
            return Injection()
        if self._authority is None:
            return Injection(headers.plain)
        return Injection(headers.plain, Interception(self._authority, headers.secure, self._upstream))

    @property
    def intercepts(self) -> bool:
        """True where TLS ends here for the hosts that secrets are for."""
        return self._authority is not None

    def trust_bundle(self) -> bytes | None:
        """Return the certificates that sandboxes must trust, PEM, None when no TLS ends here. Raises OSError."""
        return None if self._authority is None else trust_bundle(self._authority.pem)

    def environment(self) -> dict[str, str]:
        """Return the variables that lead programs with a network to the certificates, as trust_bundle puts them."""
        return {} if self._authority is None else trust_environment()
