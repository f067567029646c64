from __future__ import annotations

import gzip
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_adapters.log_file import RotatingLogFile


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0)
    yield tmp_path / "server.log"
    os.umask(before)


def write(handler: RotatingLogFile, *lines: str) -> None:
    for line in lines:
        handler.handle(logging.LogRecord("test", logging.INFO, __file__, 1, line, None, None))


def rotated(path: Path) -> list[Path]:
    return sorted(entry for entry in path.parent.iterdir() if entry != path)


def test_lines_are_appended_to_what_is_there(path: Path) -> None:
    path.write_text("before\n")
    handler = RotatingLogFile(path)
    write(handler, "after")
    handler.close()
    assert path.read_text() == "before\nafter\n"


def test_past_its_size_the_file_is_compressed_and_nothing_is_lost(path: Path) -> None:
    handler = RotatingLogFile(path, max_bytes=100)
    lines = [f"{number:020d}" for number in range(20)]
    write(handler, *lines)
    handler.close()
    packed = rotated(path)
    assert len(packed) == 4
    assert all(entry.suffix == ".gz" for entry in packed)
    text = "".join(gzip.decompress(entry.read_bytes()).decode() for entry in packed) + path.read_text()
    assert text.split() == lines
    assert path.stat().st_size <= 100


def test_only_the_owner_can_read_any_of_the_files(path: Path) -> None:
    handler = RotatingLogFile(path, max_bytes=10)
    write(handler, "one line", "another line")
    handler.close()
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in (path, *rotated(path))} == {0o600}


def test_rotated_files_are_bounded_in_number_and_the_oldest_go(path: Path) -> None:
    handler = RotatingLogFile(path, max_bytes=10, keep_files=3)
    write(handler, *(f"line number {number}" for number in range(10)))
    handler.close()
    kept = [gzip.decompress(entry.read_bytes()).decode() for entry in rotated(path)]
    assert kept == ["line number 6\n", "line number 7\n", "line number 8\n"]


def test_rotated_files_past_their_age_go_and_other_files_stay(path: Path) -> None:
    old = path.with_name(f"{path.name}.{0:020d}.gz")
    other = path.with_name("server.log.notes")
    for entry in (old, other):
        entry.write_bytes(b"x")
        os.utime(entry, (time.time() - 1000, time.time() - 1000))
    RotatingLogFile(path, keep_seconds=2000).close()
    assert old.exists()
    RotatingLogFile(path, keep_seconds=500).close()
    assert not old.exists()
    assert other.exists()


def test_two_processes_may_share_the_file(path: Path) -> None:
    first, second = RotatingLogFile(path, max_bytes=60), RotatingLogFile(path, max_bytes=60)
    lines = [f"{number:020d}" for number in range(12)]
    for number, line in enumerate(lines):
        write((first, second)[number % 2], line)
    first.close()
    second.close()
    text = "".join(gzip.decompress(entry.read_bytes()).decode() for entry in rotated(path)) + path.read_text()
    assert sorted(text.split()) == lines


def test_a_file_that_was_removed_is_made_again(path: Path) -> None:
    handler = RotatingLogFile(path)
    write(handler, "one")
    path.unlink()
    write(handler, "two")
    handler.close()
    assert path.read_text() == "two\n"


def test_a_path_that_cannot_be_opened_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        RotatingLogFile(tmp_path)
    with pytest.raises(FileNotFoundError):
        RotatingLogFile(tmp_path / "none" / "server.log")
