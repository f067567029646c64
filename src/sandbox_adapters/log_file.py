"""RotatingLogFile: a log file that is rotated by size, compressed, and forgotten after a week."""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import re
import shutil
import stat
import threading
import time
from pathlib import Path

MAX_BYTES = 10_000_000
KEEP_SECONDS = 7 * 24 * 3600
KEEP_FILES = 50
MODE = 0o600


class RotatingLogFile(logging.Handler):
    """Appends to `path`; past `max_bytes` the file becomes `path.<time>.gz` and a new one begins.

    Rotated files go when they are older than `keep_seconds` or when there are more than `keep_files`. Several
    processes may share the file: each notices when another one has rotated it. Files are made readable by the
    owner only. Compression has a thread of its own, so that a server does not pause for it.

    Args:
        max_bytes: size past which the file is rotated, bytes.
        keep_seconds: age at which a rotated file goes, seconds.
        keep_files: how many rotated files are kept at most.

    Raises OSError when the file cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int = MAX_BYTES,
        keep_seconds: float = KEEP_SECONDS,
        keep_files: int = KEEP_FILES,
    ) -> None:
        super().__init__()
        self._path = Path(path).resolve()
        self._max_bytes = max_bytes
        self._keep_seconds = keep_seconds
        self._keep_files = keep_files
        self._compressing: threading.Thread | None = None
        self._file = self._open()
        self._prune()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as one line."""
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            self._follow()
            if self._is_over(len(line)):
                self._rotate()
            self._file.write(line)
        except Exception:  # noqa: BLE001  # a handler reports its own failures to stderr and never raises (logging docs)
            self.handleError(record)

    def close(self) -> None:
        """Close the file and wait for a compression under way."""
        with self.lock or contextlib.nullcontext():
            self._file.close()
            if self._compressing is not None:
                self._compressing.join()
        super().close()

    def _open(self) -> io.FileIO:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        return io.FileIO(descriptor, "a")

    def _follow(self) -> None:
        """Reopen when another process rotated the file, or somebody removed it."""
        ours = os.fstat(self._file.fileno())
        try:
            named = self._path.stat()
        except FileNotFoundError:
            named = None
        if named is None or (named.st_ino, named.st_dev) != (ours.st_ino, ours.st_dev):
            self._file.close()
            self._file = self._open()

    def _is_over(self, added: int) -> bool:
        status = os.fstat(self._file.fileno())
        return stat.S_ISREG(status.st_mode) and status.st_size > 0 and status.st_size + added > self._max_bytes

    def _rotate(self) -> None:
        if self._compressing is not None:
            self._compressing.join()
        rotated = self._path.with_name(f"{self._path.name}.{time.time_ns():020d}")
        self._file.close()
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            self._path.rename(rotated)
        self._file = self._open()
        self._compressing = threading.Thread(target=self._compress, args=(rotated,), name="log-compression")
        self._compressing.start()

    def _compress(self, rotated: Path) -> None:
        with contextlib.suppress(OSError):  # a full disk: the file stays as it is and goes by age
            packed = os.open(f"{rotated}.gz", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
            with (
                rotated.open("rb") as plain,
                os.fdopen(packed, "wb") as raw,
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw) as target,
            ):
                shutil.copyfileobj(plain, target, 1 << 20)
            rotated.unlink()
        self._prune()

    def _prune(self) -> None:
        pattern = re.compile(re.escape(self._path.name) + r"\.\d{20}(\.gz)?")
        with contextlib.suppress(OSError):  # a file that vanished meanwhile, or a directory that may not be listed
            names = [entry for entry in self._path.parent.iterdir() if pattern.fullmatch(entry.name)]
            oldest_first = sorted(names, key=lambda entry: entry.name)
            limit = time.time() - self._keep_seconds
            for index, entry in enumerate(oldest_first):
                if len(oldest_first) - index > self._keep_files or entry.stat().st_mtime < limit:
                    entry.unlink(missing_ok=True)
