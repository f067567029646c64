"""Remove a directory tree that somebody hostile may have filled."""

from __future__ import annotations

import os
import stat


def remove_tree(path: str) -> None:
    """Remove `path` and everything below it. A path that does not exist is no error.

    Follows no link, needs two descriptors and no recursion however deep the tree is, and copes with directories
    whose mode forbids everything. Nothing may be writing to the tree. Raises OSError for what cannot be removed.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    moved = 0
    try:
        waiting = _empty(top)
        while waiting:
            name = waiting.pop()
            # Only the owner can be asked to let us in; a directory that is opened by name is never a link here.
            os.chmod(name, 0o700, dir_fd=top)
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                for inner in _empty(folder):
                    # Moved up to the top, a tree of any depth is worked off as a list.
                    flat = f".removing-{os.getpid()}-{moved}"
                    moved += 1
                    os.chmod(inner, 0o700, dir_fd=folder)
                    os.rename(inner, flat, src_dir_fd=folder, dst_dir_fd=top)
                    waiting.append(flat)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(folder: int) -> list[str]:
    """Remove what is no directory and return the names of the directories."""
    directories = []
    for name in os.listdir(folder):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            directories.append(name)
        else:
            os.unlink(name, dir_fd=folder)
    return directories
