"""`sandbox run` while it runs: live output, signals, readers that leave, terminals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess  # noqa: TID251  # the command line is a program
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.integration.cli.conftest import WAIT_SECONDS, line_from

Start = Callable[..., AbstractContextManager[subprocess.Popen[bytes]]]

pytestmark = pytest.mark.integration


def test_the_first_line_comes_while_the_command_runs(started: Start) -> None:
    with started("run", "-c", "echo first; read -r answer; echo got $answer") as process:
        assert line_from(process.stdout) == b"first\n"
        assert process.poll() is None
        stdout, stderr = process.communicate(b"an answer\n", timeout=WAIT_SECONDS)
    assert (stdout, stderr, process.returncode) == (b"got an answer\n", b"", 0)


def test_the_exit_code_is_the_programs_although_who_started_us_ignores_children(started: Start) -> None:
    with started("run", "-c", "exit 3", preexec=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)) as process:
        _, stderr = process.communicate(timeout=WAIT_SECONDS)
    assert (stderr, process.returncode) == (b"", 3)


def test_json_events_come_while_the_command_runs(started: Start) -> None:
    with started("run", "--json", "-c", "echo first; read -r answer") as process:
        assert b'"ready"' in line_from(process.stdout)
        assert b'"first\\n"' in line_from(process.stdout)
        process.communicate(b"\n", timeout=WAIT_SECONDS)
    assert process.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_lets_the_command_end_by_itself(started: Start, number: signal.Signals, code: int) -> None:
    script = "trap 'echo ending; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    with started("run", "-c", script, SANDBOX_KILL_GRACE_SECONDS="3000") as process:
        assert line_from(process.stdout) == b"ready\n"
        process.send_signal(number)
        assert line_from(process.stdout) == b"ending\n"
        assert process.wait(WAIT_SECONDS) == code


def test_a_second_signal_kills(started: Start) -> None:
    script = "trap 'echo still here' TERM; echo ready; while :; do sleep 0.1; done"
    with started("run", "-c", script, SANDBOX_KILL_GRACE_SECONDS="3000") as process:
        assert line_from(process.stdout) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert line_from(process.stdout) == b"still here\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 130


def test_a_second_signal_ends_also_what_cannot_be_written(started: Start) -> None:
    with started("run", "-c", "echo ready; yes", SANDBOX_KILL_GRACE_SECONDS="3000") as process:
        assert line_from(process.stdout) == b"ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) in (130, 143)


def test_signals_that_our_parent_ignores_stay_ignored(started: Start) -> None:
    with started(
        "run", "-c", "echo ready; read -r answer; echo done",
        preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as process:  # fmt: skip
        assert line_from(process.stdout) == b"ready\n"
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(b"\n", timeout=WAIT_SECONDS)
    assert (stdout, process.returncode) == (b"done\n", 0)


def test_a_reader_that_leaves_ends_it_quietly(started: Start) -> None:
    with started("run", "--", "yes") as process:
        assert line_from(process.stdout) == b"y\n"
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(WAIT_SECONDS) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_an_output_that_cannot_be_written_ends_it_with_one_line(started: Start) -> None:
    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    with started("run", "--", "yes", preexec=full) as process:
        _, stderr = process.communicate(timeout=WAIT_SECONDS)
    assert stderr == b"sandbox: The output cannot be written: No space left on device.\n"
    assert process.returncode == 125


def test_a_slow_reader_gets_everything(started: Start) -> None:
    with started("run", "-c", "seq 300000; echo end >&2") as process:
        assert line_from(process.stdout) == b"1\n"
        stdout, stderr = process.communicate(timeout=WAIT_SECONDS)
    assert stdout.split() == [str(number).encode() for number in range(2, 300001)]
    assert (stderr, process.returncode) == (b"end\n", 0)


def test_lines_typed_at_a_terminal_reach_the_command(started: Start) -> None:
    ours, theirs = pty.openpty()
    try:
        with started("run", "-c", "echo ready; read -r answer; echo got $answer", stdin=theirs) as process:
            assert line_from(process.stdout) == b"ready\n"
            os.write(ours, b"typed\n")
            assert line_from(process.stdout) == b"got typed\n"
            assert process.wait(WAIT_SECONDS) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_end_of_input_at_a_terminal_is_passed_on(started: Start) -> None:
    ours, theirs = pty.openpty()
    try:
        with started("run", "-c", "echo ready; cat; echo over", stdin=theirs) as process:
            assert line_from(process.stdout) == b"ready\n"
            os.write(ours, b"a line\n")
            assert line_from(process.stdout) == b"a line\n"
            os.write(ours, b"\x04")
            assert line_from(process.stdout) == b"over\n"
            assert process.wait(WAIT_SECONDS) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_closed_standard_streams_are_no_error(started: Start) -> None:
    with started("run", "--", "cat", preexec=lambda: os.closerange(0, 3)) as process:
        assert process.wait(WAIT_SECONDS) == 0
