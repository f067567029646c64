"""`make demo-workers`: its verdict, what it needs, and that it leaves nothing however it ends."""

from __future__ import annotations

import os
import signal
import subprocess  # noqa: TID251  # the demo is a program
import sys
from pathlib import Path

import pytest

from examples.serving import descendants, is_gone
from tests.integration.mcp.harness import eventually
from tests.integration.replicas.harness import need

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
SECONDS = 240


def demo(**variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo_workers"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_worker_and_a_server_are_killed_and_the_checker_finds_every_promise_kept() -> None:
    need("redis-server")
    need("nginx")
    running = demo()
    shown, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, shown
    assert "SIGKILL to worker" in shown
    assert "SIGKILL to server 1" in shown
    assert "accepted 60, programs that began" in shown
    assert shown.count("holds: ") == 4
    assert "FAULT" not in shown


def test_ctrl_c_leaves_nothing() -> None:
    need("redis-server")
    need("nginx")
    running = demo()
    assert running.stdout is not None
    seen = ""
    for line in running.stdout:
        seen += line
        if "SIGKILL to worker" in line:
            break
    below = descendants(running.pid)
    assert len(below) > 5, seen
    running.send_signal(signal.SIGINT)
    rest, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 1, seen + rest
    assert "Stopped before the verdict; nothing is left running." in rest
    eventually(lambda: all(is_gone(pid) for pid in below), "no process is left")


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    running = demo(PATH=str(tmp_path))
    shown, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 1
    assert "apt-get install redis-server nginx" in shown
