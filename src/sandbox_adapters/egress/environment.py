"""The variables that tell programs in a sandbox of the proxy. Pure."""

from __future__ import annotations

_DIRECT = "localhost,127.0.0.1,::1"


def proxy_environment(port: int, host: str = "127.0.0.1") -> dict[str, str]:
    """Return the variables for a proxy that listens at `host` and `port` as the sandbox sees them.

    Both spellings of each, since programs differ. `ALL_PROXY` names HTTP and not SOCKS: some clients stop with an error
    when it names SOCKS and their optional SOCKS package is missing. A program that wants SOCKS finds it at the same
    place, `socks5h://host:port`. What the command itself serves on its own loopback is reached directly.
    """
    proxy = f"http://{host}:{port}"
    variables = {"NODE_USE_ENV_PROXY": "1"}
    for name, value in (("HTTP_PROXY", proxy), ("HTTPS_PROXY", proxy), ("ALL_PROXY", proxy), ("NO_PROXY", _DIRECT)):
        variables[name] = variables[name.lower()] = value
    return variables
