"""The end of a runtime directory."""

from __future__ import annotations

from .remove_tree import remove_tree


def end_directory(path: str) -> None:
    """Do what executions left to do, and remove a runtime directory that nobody uses any more.

    Raises OSError for what cannot be removed.
    """
    # Imported only here: while it serves, the launcher stays small.
    from .grant_check import recover

    recover(path)
    remove_tree(path)
