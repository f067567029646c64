"""Fixtures: the real command line, as processes, in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess  # noqa: TID251  # the command line is a program
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

WAIT_SECONDS = 60
Finished = subprocess.CompletedProcess[bytes]
Running = subprocess.Popen[bytes]
RunCli = Callable[..., Finished]
StartCli = Callable[..., contextlib.AbstractContextManager[Running]]


def program(name: str) -> str:
    """Return the installed console script."""
    return str(Path(sys.executable).with_name(name))


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment without its settings, and with `extra`."""
    bare = {name: value for name, value in os.environ.items() if not name.upper().startswith("SANDBOX_")}
    bare.pop("REDIS_URL", None)
    return {**bare, **extra}


def line_from(pipe: IO[bytes] | None) -> bytes:
    """Return the next line, in bounded time. Reads past the pipe's own buffer, which select(2) knows nothing of."""
    assert pipe is not None
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([pipe], [], [], WAIT_SECONDS)[0], f"only {line!r} came"
        piece = os.read(pipe.fileno(), 1)
        if not piece:
            break
        line += piece
    return line


@contextlib.contextmanager
def heard_signals() -> Iterator[None]:
    """Let programs start as people start them: a shell ignores SIGINT in the background, and nohup(1) SIGHUP."""
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def cli(tmp_path: Path) -> RunCli:
    """Return a function that runs `sandbox` with arguments to its end."""

    def run(*arguments: str, stdin: bytes | IO[bytes] | int = b"", name: str = "sandbox", **variables: str) -> Finished:
        given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        return subprocess.run(
            [program(name), *arguments],
            capture_output=True,
            check=False,
            timeout=WAIT_SECONDS,
            cwd=tmp_path,
            env=environment(variables),
            **given,
        )

    return run


@pytest.fixture
def started(tmp_path: Path) -> StartCli:
    """Return a context manager with a running `sandbox`, which is killed when the test leaves it running."""

    @contextlib.contextmanager
    def start(
        *arguments: str,
        stdin: int = subprocess.PIPE,
        name: str = "sandbox",
        preexec: Callable[[], object] | None = None,
        **variables: str,
    ) -> Iterator[Running]:
        with heard_signals():
            process = subprocess.Popen(
                [program(name), *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=tmp_path,
                env=environment(variables),
                preexec_fn=preexec,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=WAIT_SECONDS)

    return start
