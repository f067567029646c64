"""The kernel's calls for opening paths without links and for moving mounts by descriptor, which Python lacks.

Numbers are the same on every machine but alpha. See openat2(2), open_tree(2), move_mount(2), mount_setattr(2),
unshare(2), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8

_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_AT_FDCWD = -100
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 0x1, 0x2, 0x4, 0x00100000
_MOUNT_ATTR = struct.Struct("=QQQQ")
"""struct mount_attr: attr_set, attr_clr, propagation, userns_fd."""
_OPEN_HOW = struct.Struct("=QQQ")
"""struct open_how: flags, mode, resolve."""
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def open_path(path: str, *, below: int = _AT_FDCWD, flags: int = os.O_PATH, resolve: int = 0) -> int:
    """Open a path no component of which is a symbolic link; the descriptor is close-on-exec.

    Args:
        path: absolute, or below `below`, which it then cannot leave.
        below: a directory's descriptor.
        flags: of open(2), beside O_CLOEXEC.
        resolve: further RESOLVE_* flags.

    Raises OSError: ELOOP for a link, and what open(2) raises.
    """
    resolve |= RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    if below != _AT_FDCWD:
        resolve |= RESOLVE_BENEATH
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    return _call(_OPENAT2, ctypes.c_int(below), os.fsencode(path), ctypes.c_char_p(how), ctypes.c_size_t(len(how)))


def can_open_paths() -> bool:
    """False where nobody can `open_path`: before Linux 5.6, or under a filter that takes openat2(2) away."""
    try:
        os.close(open_path("/"))
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def clone_mount(descriptor: int) -> int:
    """Return a detached mount of what an O_PATH descriptor names, without the mounts below it. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    return _call(_OPEN_TREE, ctypes.c_int(descriptor), b"", ctypes.c_uint(flags))


def limit_mount(mount: int, *, read_only: bool, id_map: int = -1) -> None:
    """Make a detached mount nosuid and nodev, read-only or writable, and give it a user namespace's map of ids.

    Raises OSError.
    """
    wanted = _ATTR_NOSUID | _ATTR_NODEV | (_ATTR_RDONLY if read_only else 0) | (_ATTR_IDMAP if id_map >= 0 else 0)
    cleared = 0 if read_only else _ATTR_RDONLY
    attributes = _MOUNT_ATTR.pack(wanted, cleared, 0, max(id_map, 0))
    _call(
        _MOUNT_SETATTR, ctypes.c_int(mount), b"", ctypes.c_uint(_AT_EMPTY_PATH),
        ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)),
    )  # fmt: skip


def attach_mount(mount: int, place: int) -> None:
    """Put a detached mount on what an O_PATH descriptor names. Raises OSError."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _call(_MOVE_MOUNT, ctypes.c_int(mount), b"", ctypes.c_int(place), b"", ctypes.c_uint(flags))


def mount_tmpfs(path: str, options: str) -> None:
    """Mount a tmpfs. Raises OSError."""
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _checked(_libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, options.encode()))


def make_private() -> None:
    """Cut every mount of this mount namespace off from the one that it was copied from. Raises OSError."""
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces. Raises OSError."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def _call(number: int, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
