"""The environment that commands start with: a small set of our own, never the server's."""

from __future__ import annotations

from collections.abc import Mapping

SANDBOX_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base_environment(*, home: str, temporary: str, path: str = SANDBOX_PATH) -> dict[str, str]:
    """Return the variables every command gets; its own may override them."""
    return {
        "PATH": path,
        "HOME": home,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": temporary,
    }


def command_environment(base: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the base set with the command's variables over it."""
    return {**base, **own}
