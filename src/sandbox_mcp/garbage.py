"""The garbage collector of a process that serves: it looks seldom, and never at what the start made."""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 10_000
"""Objects made and not yet freed until it looks. One execution makes a few thousand, which counting references frees
nearly all; looking several times during each, as by default, finds nothing."""


def settle() -> None:
    """Take what there is out of its sight, since it lives as long as the process, and have it look seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)
