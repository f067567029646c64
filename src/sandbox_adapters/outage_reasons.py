"""Why a server cannot be reached, in words that show no secret: what the system says of names, ports and TLS.

Nothing a client library or a server puts into its errors is repeated: those may quote a URL or a user.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterable, Iterator
from typing import Final

_DEEPEST: Final = 8
"""Errors behind one another, at most."""

_NUMBER: Final = re.compile(r"\[Errno ([0-9]{1,3})\]")


def reason_of(errors: BaseException | Iterable[BaseException]) -> str:
    """Return the first known reason of the errors and what is behind each, else the name of the first one's class."""
    given = [errors] if isinstance(errors, BaseException) else list(errors)
    for error in given:
        for behind in _chain(error):
            if (reason := _known(behind)) is not None:
                return reason
    return type(given[0]).__name__ if given else "no reason is known"


def _chain(error: BaseException) -> Iterator[BaseException]:
    behind: BaseException | None = error
    for _ in range(_DEEPEST):
        if behind is None:
            return
        yield behind
        behind = behind.__cause__ or behind.__context__


def _known(error: BaseException) -> str | None:
    # Client libraries make errors of their own of OSError, whose texts are theirs; the system's own are underneath.
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS fails: {error.reason or error.strerror}"
        case socket.gaierror():
            return f"its name cannot be resolved: {error.strerror}"
        case UnicodeError():
            return "its name is no host name"
        case OSError() if type(error).__module__ == OSError.__module__:
            return _of_the_system(error)
        case _:
            return None


def _of_the_system(error: OSError) -> str | None:
    if error.errno is not None:
        return os.strerror(error.errno)
    # asyncio tells of several addresses in one text.
    found = _NUMBER.search(str(error))
    return None if found is None else os.strerror(int(found.group(1)))
