"""Certificate authorities for tests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Made:
    """Certificates and the key of the first, as files have them."""

    pem: bytes
    key_pem: bytes


def make_authority(
    name: str,
    *,
    is_authority: bool = True,
    expired: bool = False,
    key_of_another: bool = False,
    intermediate: bool = False,
    without_root: bool = False,
) -> Made:
    """Return an authority, or one that lacks something; `intermediate`: signed by a root that follows it."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    own_key = ec.generate_private_key(ec.SECP256R1()) if intermediate or without_root else root_key
    root = _certificate("The root", root_key, "The root", root_key)
    if intermediate or without_root:
        own = _certificate(name, own_key, "The root", root_key)
    else:
        own = _certificate(name, own_key, name, own_key, is_authority=is_authority, expired=expired)
    chain = [own, root] if intermediate else [own]
    key = ec.generate_private_key(ec.SECP256R1()) if key_of_another else own_key
    return Made(
        b"".join(item.public_bytes(serialization.Encoding.PEM) for item in chain),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool = True,
    expired: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC) - timedelta(days=10 if expired else 0)
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
            "decipher_only",
        ),
        False,
    )  # fmt: skip
    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=is_authority, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
