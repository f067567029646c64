"""Room for an unprivileged server's own descriptors on their way to the launcher.

The kernel counts descriptors that are in AF_UNIX messages for each user, over all namespaces, and refuses to send more
once they are more than the sender's RLIMIT_NOFILE (unix(7), ETOOMANYREFS). Executions of an unprivileged server
are of its own user: one that sends itself as many as it may would keep the server from starting any other.
So the server's limit is raised as far as it goes, and a command gets half of it at most.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence

Limit = tuple[int, int, int]

_WITHOUT_LIMIT = 1 << 20


def make_room() -> int:
    """Raise this process's limit of open files to its hard limit; return how many a command may have at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return (_WITHOUT_LIMIT if hard == resource.RLIM_INFINITY else hard) // 2


def within(limits: Sequence[Limit], most: int) -> list[Limit]:
    """Return the limits, (resource, soft, hard) each, with one of open files that is `most` or lower."""
    asked = [hard for which, _, hard in limits if which == resource.RLIMIT_NOFILE]
    value = min([most, *asked])
    others = [limit for limit in limits if limit[0] != resource.RLIMIT_NOFILE]
    return [(resource.RLIMIT_NOFILE, value, value), *others]
