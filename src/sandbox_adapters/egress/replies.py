"""What the sandbox is told over HTTP when a request goes no further: a status and a text that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from sandbox_adapters.egress.errors import EgressFailure, MalformedRequest, Refused, Trouble, Unreachable

_REASONS = {
    400: b"Bad Request",
    403: b"Forbidden",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    502: b"Bad Gateway",
    504: b"Gateway Timeout",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the proxy's own. `proxy_status` is the error type of RFC 9209, section 2.3."""

    status: int
    text: str
    proxy_status: str

    @property
    def reason(self) -> bytes:
        """The reason phrase."""
        return _REASONS[self.status]

    @property
    def body(self) -> bytes:
        """The text, as sent."""
        return f"{self.text}\n".encode()

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields."""
        return [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(self.body)).encode("ascii")),
            (b"Cache-Control", b"no-store"),
            (b"Proxy-Status", f"sandbox; error={self.proxy_status}".encode("ascii")),
        ]


def reply_to(failure: EgressFailure) -> Reply:
    """Return the answer to `failure`."""
    if isinstance(failure, Refused):
        decision = failure.decision
        return Reply(
            403,
            f"The sandbox's network policy refused {decision.host}:{decision.port}.\n"
            f"Rule: {decision.rule}. Reason: {decision.reason}.\n{_advice(decision.rule, decision.host)}",
            "destination_ip_prohibited" if decision.rule.startswith("address") else "http_request_denied",
        )
    if isinstance(failure, MalformedRequest):
        return Reply(
            failure.status,
            f"The sandbox's proxy did not take this request: {failure.problem}.",
            "http_request_error",
        )
    assert isinstance(failure, Unreachable), failure  # noqa: S101 - the tree has no other leaf
    return _unreachable(failure.trouble)


def _advice(rule: str, host: str) -> str:
    kind = rule.partition(":")[0]
    if kind == "allowed_domains":
        return (
            f'To reach it, run again with network.allowed_domains including "{host}" in the policy; '
            "the operator's ceiling may limit what can be asked for."
        )
    if kind == "denied_domains":
        return "Only whoever wrote that entry, in the request or in the operator's ceiling, can take it out."
    if kind == "address":
        return "No policy opens private, local or translated addresses."
    return "The operator of the sandbox decides on this; a request cannot widen it."


def _unreachable(trouble: Trouble) -> Reply:
    text = f"The sandbox's network policy allows this host, but {trouble.value}."
    match trouble:
        case Trouble.NAME:
            return Reply(502, text, "dns_error")
        case Trouble.REFUSED:
            return Reply(502, text, "connection_refused")
        case Trouble.TIMEOUT:
            return Reply(504, text, "connection_timeout")
        case Trouble.CERTIFICATE:
            return Reply(502, text, "tls_certificate_error")
        case Trouble.PROTOCOL:
            return Reply(502, text, "http_protocol_error")
        case Trouble.INJECTION:
            return Reply(502, text, "proxy_configuration_error")
        case _:
            assert_never(trouble)
