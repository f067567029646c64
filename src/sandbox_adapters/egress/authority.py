"""CertificateAuthority: signs short-lived certificates for the hosts whose TLS ends in the proxy."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import anyio
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.egress.hosts import Host, IpAddress
from sandbox_adapters.egress.rules import DomainEntry

LEAF_LIFETIME = timedelta(hours=24)
"""How long a certificate for a host is valid; it is made anew after half of that."""

_OWN_LIFETIME = timedelta(days=3650)
"""Of a generated authority, whose key ends with the server."""

_CLOCKS_DIFFER = timedelta(hours=1)
_MAX_CACHED = 256

_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, eq=False)
class _Leaf:
    context: ssl.SSLContext
    renew_at: datetime


class CertificateAuthority:
    """Use `generate` or `from_pem`. The key stays in this object; nothing shows it.

    Args:
        certificates: the authority's own, then those that signed it up to its root.
        key: of the first certificate.
        now: aware time in UTC.
    """

    def __init__(
        self, certificates: Sequence[x509.Certificate], key: _Key, *, now: Callable[[], datetime] | None = None
    ) -> None:
        self._certificates = tuple(certificates)
        self._key = key
        self._now = now if now is not None else SystemClock().now
        self._leaves: OrderedDict[Host, _Leaf] = OrderedDict()
        self._turn = anyio.Lock()

    @classmethod
    def generate(
        cls, domains: Sequence[DomainEntry], *, now: Callable[[], datetime] | None = None
    ) -> CertificateAuthority:
        """Return a fresh authority that programs believe for `domains` alone (RFC 5280, section 4.2.1.10)."""
        now = now if now is not None else SystemClock().now
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sandbox egress proxy")])
        builder = (
            _builder(name, key, now(), _OWN_LIFETIME)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.NameConstraints(permitted_subtrees=[_subtree(entry) for entry in domains], excluded_subtrees=None),
                critical=True,
            )
        )
        return cls([builder.sign(key, hashes.SHA256())], key, now=now)

    @classmethod
    def from_pem(
        cls, certificates: bytes, key: bytes, *, now: Callable[[], datetime] | None = None
    ) -> CertificateAuthority:
        """Return the operator's authority.

        Args:
            certificates: its certificate, followed by those that signed it up to the root, PEM.
            key: its private key, RSA or elliptic curve, without a password, PEM.
            now: aware time in UTC.

        Raises ValueError, which says what is wrong and shows nothing of the key.
        """
        try:
            chain = x509.load_pem_x509_certificates(certificates)
        except ValueError:
            raise ValueError("the certificate file has no certificate in PEM form") from None
        authority = cls(chain, _read_key(key), now=now)
        authority._check()
        return authority

    @property
    def pem(self) -> str:
        """The certificates, and no key: what a sandbox must trust."""
        return "".join(item.public_bytes(serialization.Encoding.PEM).decode("ascii") for item in self._certificates)

    def context_for(self, host: Host) -> ssl.SSLContext:
        """Return the server's side of TLS for `host`: TLS 1.2 or later, HTTP/1.1 alone, no session kept."""
        leaf = self._leaves.get(host)
        if leaf is None or leaf.renew_at <= self._now():
            leaf = self._leaves[host] = self._sign(host)
        self._leaves.move_to_end(host)
        if len(self._leaves) > _MAX_CACHED:
            self._leaves.popitem(last=False)
        return leaf.context

    async def context_in_turn(self, host: Host) -> ssl.SSLContext:
        """Return `context_for(host)` after those that asked before, with a turn for all other tasks after each.

        To sign takes milliseconds, and sandboxes can ask for hundreds of names at the same moment.
        """
        async with self._turn:
            return self.context_for(host)

    def _check(self) -> None:
        own, root = self._certificates[0], self._certificates[-1]
        if own.public_key() != self._key.public_key():
            raise ValueError("the key is not the key of the first certificate")
        if not own.not_valid_before_utc <= self._now() < own.not_valid_after_utc:
            raise ValueError("the certificate is not valid now")
        try:
            is_authority = own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            signs = own.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        except x509.ExtensionNotFound:
            is_authority = signs = False
        if not (is_authority and signs):
            raise ValueError("the certificate is not one of an authority (CA:TRUE, keyCertSign)")
        for signed, signer in zip(self._certificates, (*self._certificates[1:], root), strict=True):
            try:
                signed.verify_directly_issued_by(signer)
            except (ValueError, TypeError, InvalidSignature):
                raise ValueError("the certificates are not a chain up to a root, each followed by its signer") from None

    def _sign(self, host: Host) -> _Leaf:
        now, issuer = self._now(), self._certificates[0]
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sandbox egress proxy, for one host")])
        lifetime = max(timedelta(0), min(LEAF_LIFETIME, issuer.not_valid_after_utc - now))
        shown = x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)
        certificate = (
            _builder(name, key, now, lifetime)
            .issuer_name(issuer.subject)
            .add_extension(x509.SubjectAlternativeName([shown]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_authority_identifier(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        shown_chain = (certificate, *self._certificates[:-1])  # the root is what the client has
        return _Leaf(_server_context(shown_chain, key), now + lifetime / 2)


def _read_key(pem: bytes) -> _Key:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("the key has a password; give one without") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("the key file has no private key in PEM form") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ValueError("the key is neither RSA nor elliptic curve")  # noqa: TRY004 - it is the operator's value
    return key


def _builder(name: x509.Name, key: _Key, now: datetime, lifetime: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _subtree(entry: DomainEntry) -> x509.GeneralName:
    if isinstance(entry.host, IpAddress):
        return x509.IPAddress(ipaddress.ip_network(entry.host))
    return x509.DNSName(entry.host)


def _server_context(chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # The ssl module reads files alone; this one is never on a disk, and has no name that outlives it.
    descriptor = os.memfd_create("sandbox-egress-leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, b"".join((pem, *(item.public_bytes(encoding) for item in chain))))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
