"""The certificates that stand for hosts inside a sandbox."""

from __future__ import annotations

import ssl
from collections import Counter
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from sandbox_adapters.egress.authority import LEAF_LIFETIME, CertificateAuthority
from sandbox_adapters.egress.hosts import Host
from sandbox_adapters.egress.rules import read_entries
from tests.unit.egress.authorities import make_authority

NOW = datetime.now(UTC).replace(microsecond=0)


class Wall:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def generated(*domains: str, now: Wall | None = None) -> CertificateAuthority:
    return CertificateAuthority.generate(read_entries("domains", domains), now=now or Wall())


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Do a handshake in memory; return the client's side. Raises what the client raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    done = [False, False]
    for _ in range(10):
        for index, side in enumerate((theirs, ours)):
            if not done[index]:
                try:
                    side.do_handshake()
                    done[index] = True
                except ssl.SSLWantReadError:
                    pass
    assert all(done)
    return theirs


def shown(authority: CertificateAuthority, host: Host, name: str | None = None) -> x509.Certificate:
    client = ssl.create_default_context(cadata=authority.pem)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    binary = handshake(authority.context_for(host), client, name or str(host)).getpeercert(binary_form=True)
    assert binary is not None
    return x509.load_der_x509_certificate(binary)


def unverified(authority: CertificateAuthority, host: str) -> x509.Certificate:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    binary = handshake(authority.context_for(host), client, host).getpeercert(binary_form=True)
    assert binary is not None
    return x509.load_der_x509_certificate(binary)


@pytest.mark.parametrize("host", ["api.test", "a_b.api.test", "x" * 63 + ".api.test", ip_address("192.0.2.1")])
def test_a_host_is_shown_a_certificate_for_itself_alone(host: Host) -> None:
    certificate = shown(generated("api.test", "*.api.test", "192.0.2.1"), host)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [host]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert certificate.not_valid_after_utc - NOW == LEAF_LIFETIME == timedelta(hours=24)


def test_a_generated_authority_is_believed_for_its_domains_alone() -> None:
    authority = generated("api.test", "*.example.com")
    for host in ("api.test", "a.b.example.com"):
        shown(authority, host)
    for host in ("other.test", "example.org", "xapi.test"):
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
            shown(authority, host)


def test_a_certificate_is_not_taken_for_another_name() -> None:
    authority = generated("*.test")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shown(authority, "a.test", "b.test")


def test_two_authorities_do_not_believe_each_other() -> None:
    one, two = generated("api.test"), generated("api.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(one.context_for("api.test"), ssl.create_default_context(cadata=two.pem), "api.test")


def test_a_certificate_is_kept_for_half_its_life_and_then_made_anew() -> None:
    now = Wall()
    authority = generated("api.test", now=now)
    first = authority.context_for("api.test")
    now.now = NOW + timedelta(hours=11, minutes=59)
    assert authority.context_for("api.test") is first
    now.now = NOW + timedelta(hours=12)
    assert authority.context_for("api.test") is not first


def test_names_without_end_do_not_fill_the_memory() -> None:
    authority = generated("*.test")
    first = authority.context_for("first.test")
    for number in range(300):
        authority.context_for(f"n{number}.test")
    assert len(authority._leaves) <= 256
    assert authority.context_for("first.test") is not first


def test_the_operators_intermediate_is_shown_with_the_certificate() -> None:
    made = make_authority("Ours", intermediate=True)
    authority = CertificateAuthority.from_pem(made.pem, made.key_pem)
    root = x509.load_pem_x509_certificates(made.pem)[-1]
    client = ssl.create_default_context(cadata=root.public_bytes(Encoding.PEM).decode())
    assert handshake(authority.context_for("api.test"), client, "api.test").getpeercert()
    assert authority.pem.encode() == made.pem


def test_a_certificate_does_not_outlive_its_authority() -> None:
    made = make_authority("Ours")
    end = x509.load_pem_x509_certificate(made.pem).not_valid_after_utc
    now = Wall()
    now.now = end - timedelta(minutes=5)
    authority = CertificateAuthority.from_pem(made.pem, made.key_pem, now=now)
    assert unverified(authority, "api.test").not_valid_after_utc == end
    now.now = end + timedelta(days=2)
    assert unverified(authority, "late.test").not_valid_after_utc <= now.now


def test_nothing_shows_the_key() -> None:
    made = make_authority("Ours")
    authority = CertificateAuthority.from_pem(made.pem, made.key_pem)
    assert "PRIVATE" not in authority.pem + repr(authority)
    assert authority.pem.encode() == made.pem


class Noting(CertificateAuthority):
    """Notes in which turn of another task each certificate was asked for."""

    turn = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.noted: list[int] = []

    def context_for(self, host: Host) -> ssl.SSLContext:
        self.noted.append(self.turn)
        return super().context_for(host)

    async def take_turns(self) -> None:
        while True:
            self.turn += 1
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_many_names_at_once_leave_other_tasks_their_turn_after_each() -> None:
    authority = Noting.generate(read_entries("domains", ("*.test",)))
    assert isinstance(authority, Noting)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(authority.take_turns)
            async with anyio.create_task_group() as asking:
                for number in range(20):
                    asking.start_soon(authority.context_in_turn, f"n{number}.test")
            tasks.cancel_scope.cancel()
    # Two, since trio runs what is ready in any order.
    assert len(authority.noted) == 20
    assert max(Counter(authority.noted).values()) <= 2
