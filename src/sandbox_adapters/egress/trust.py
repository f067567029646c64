"""What a sandbox must trust when TLS ends in the proxy: a file of certificates, and the variables that name it."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

BUNDLE_INSIDE = "/etc/sandbox/ca-bundle.pem"
"""Where a sandbox sees the file: the system's authorities and the proxy's. No key is in it."""

_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "DENO_CERT",
)  # fmt: skip
_USUAL_FILES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/ca-bundle.pem",
)  # fmt: skip
_LARGEST_FILE_BYTES = 8 * 1024 * 1024


def trust_environment() -> dict[str, str]:
    """Return the variables by which OpenSSL, Python, curl, git, pip, Node.js and others find the file."""
    return dict.fromkeys(_VARIABLES, BUNDLE_INSIDE)


def trust_bundle(own_pem: str) -> bytes:
    """Return the file's content: the authorities that the server itself trusts, then `own_pem`.

    Where the system has no file of authorities, it is `own_pem` alone. Raises OSError.
    """
    named = (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *_USUAL_FILES)
    for path in named:
        if path and Path(path).is_file():
            with Path(path).open("rb") as file:
                system = file.read(_LARGEST_FILE_BYTES + 1)
            if len(system) > _LARGEST_FILE_BYTES:
                raise OSError(f"{path} is over {_LARGEST_FILE_BYTES} bytes")
            return system.rstrip() + b"\n" + own_pem.encode("ascii")
    return own_pem.encode("ascii")
