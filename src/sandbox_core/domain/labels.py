"""Labels: what an execution needs of the machine that runs it, and what a machine offers, in plain names like `gpu`."""

from __future__ import annotations

import re
from collections.abc import Collection

from sandbox_core.domain.errors import InvalidArgument

MAX_LABELS = 8
"""Of one execution."""

MAX_OFFERED = 16
"""Of one back."""

_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def parse_labels(labels: Collection[object], *, name: str = "labels", most: int = MAX_LABELS) -> frozenset[str]:
    """Check a caller's labels; twice the same is once. Raises InvalidArgument for too many and for what is no label."""
    if isinstance(labels, str) or not isinstance(labels, Collection):
        raise InvalidArgument(name, "must be a list of labels")
    if len(labels) > most:
        raise InvalidArgument(name, f"are {len(labels)}; at most {most} are taken")
    checked = set()
    for label in labels:
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise InvalidArgument(
                name, "each must be 1 to 63 characters of a-z 0-9 . _ - and begin with a letter or digit"
            )
        checked.add(label)
    return frozenset(checked)
