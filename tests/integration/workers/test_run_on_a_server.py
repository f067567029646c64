"""`sandbox run --server`: what `sandbox run` does, on servers behind nginx and their workers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import uuid
from pathlib import Path

import pytest

from tests.integration.cli.conftest import WAIT_SECONDS, cli, line_from, started  # noqa: F401  # fixtures
from tests.integration.cli.test_run import Cli
from tests.integration.cli.test_run_live import Start
from tests.integration.mcp.harness import serving
from tests.integration.workers.harness import Fleet
from tests.ports import free_port
from tests.stopping import pause

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-c", "exit 3"], 3),
        (["--timeout", "0.2", "--", "sleep", "100"], 124),
        (["--allow-domain", "a.example", "--", "true"], 125),
        (["--label", "offered-nowhere", "--", "true"], 125),
        (["--runner", "local", "--", "true"], 2),
    ],
)
def test_the_exit_code_says_how_it_ended(front_door: str, cli: Cli, arguments: list[str], code: int) -> None:  # noqa: F811
    done = cli("run", "--server", front_door, *arguments)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr


def test_bytes_pass_through_both_ways(front_door: str, cli: Cli) -> None:  # noqa: F811
    done = cli("run", "--server", front_door, "-c", r"printf 'out \377\000'; printf 'err \376' >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out \xff\0", b"err \xfe")
    data = os.urandom(2_000_000)
    done = cli("run", "--server", front_door, "--", "sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert len(cli("run", "--server", front_door, "--", "head", "-c", "20000000", "/dev/zero").stdout) == 20_000_000


def test_variables_policies_and_keys_are_passed_on(front_door: str, cli: Cli) -> None:  # noqa: F811
    run = ["run", "--server", front_door]
    assert cli(*run, "-e", "A=b=c", "--open-files", "66", "-c", "echo $A; ulimit -n").stdout == b"b=c\n66\n"
    key = uuid.uuid4().hex
    said = {cli(*run, "-n", "--idempotency-key", key, "--", "date", "+%N").stdout for _ in range(2)}
    assert len(said) == 1


def test_json_and_verbose_tell_what_they_tell_here(front_door: str, cli: Cli) -> None:  # noqa: F811
    done = cli("run", "--server", front_door, "--json", "-c", "echo out; exit 4")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event_id"] for event in events] == [str(number) for number in range(1, len(events) + 1)]
    assert events[-1]["exit_code"] == 4
    assert events[-1]["usage"]["stdout_bytes"] == 4
    assert "seccomp" in events[-1]["isolation"]["layers"]
    used, isolated = cli("run", "--server", front_door, "-v", "--", "true").stderr.decode().splitlines()
    assert used.startswith("sandbox: used ")
    assert isolated.startswith("sandbox: isolated by bubblewrap ")


def test_output_comes_while_it_runs_and_input_goes_in(front_door: str, started: Start) -> None:  # noqa: F811
    script = "echo first; read -r answer; echo got $answer"
    with started("run", "--server", front_door, "-c", script) as process:
        assert line_from(process.stdout) == b"first\n"
        stdout, stderr = process.communicate(b"an answer\n", timeout=WAIT_SECONDS)
    assert (stdout, stderr, process.returncode) == (b"got an answer\n", b"", 0)


def test_signals_end_what_runs_there(front_door: str, started: Start) -> None:  # noqa: F811
    script = "trap 'echo ending; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    with started("run", "--server", front_door, "-c", script) as process:
        assert line_from(process.stdout) == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert line_from(process.stdout) == b"ending\n"
        assert process.wait(WAIT_SECONDS) == 143
    with started("run", "--server", front_door, "-c", "trap '' TERM; echo ready; while :; do sleep 1; done") as deaf:
        assert line_from(deaf.stdout) == b"ready\n"
        deaf.send_signal(signal.SIGINT)
        deaf.send_signal(signal.SIGTERM)
        assert deaf.wait(WAIT_SECONDS) in (130, 143)


def test_a_server_that_hangs_holds_up_nobody_who_wants_to_leave(tmp_path: Path, started: Start) -> None:  # noqa: F811
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        started("run", "--server", f"http://127.0.0.1:{deaf.getsockname()[1]}", "-n", "--", "true") as process,
    ):
        connection, _ = deaf.accept()
        with connection:
            assert connection.recv(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_SECONDS / 2) == 130
    with serving(tmp_path) as served:
        run = ["run", "--server", f"http://127.0.0.1:{served.port}", "-n", "-c", "echo ready; sleep 100"]
        with started(*run) as process:
            assert line_from(process.stdout) == b"ready\n"
            pause(served.process.pid)
            try:
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGTERM)
                _, stderr = process.communicate(timeout=WAIT_SECONDS / 2)
            finally:
                served.process.send_signal(signal.SIGCONT)
    assert process.returncode in (130, 143)
    assert b"the server did not answer" in stderr


def test_a_reader_that_leaves_ends_it(front_door: str, started: Start) -> None:  # noqa: F811
    with started("run", "--server", front_door, "--", "yes") as process:
        assert line_from(process.stdout) == b"y\n"
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(WAIT_SECONDS) == 128 + signal.SIGPIPE


def test_a_server_that_is_killed_on_the_way_is_not_noticed(
    front_door: str,
    shared_fleet: Fleet,
    started: Start,  # noqa: F811
) -> None:
    script = "for i in $(seq 40); do echo $i; sleep 0.1; done"
    with started("run", "--server", front_door, "-n", "-c", script) as process:
        assert line_from(process.stdout) == b"1\n"
        shared_fleet.servers[0].kill()
        try:
            stdout, stderr = process.communicate(timeout=WAIT_SECONDS)
        finally:
            shared_fleet.servers[0].start_again()
            shared_fleet.servers[0].wait_ready()
    assert (process.returncode, stderr) == (0, b"")
    assert stdout == b"".join(b"%d\n" % number for number in range(2, 41))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://localhost", b"--server: must be the URL of a server"),
        ("http://me:secret@localhost", b"--server: must hold no password"),
    ],
)
def test_what_is_no_server_is_said_in_one_line(cli: Cli, url: str, said: bytes) -> None:  # noqa: F811
    done = cli("run", "--server", url, "--", "true")
    assert done.returncode == 2
    assert said in done.stderr
    assert b"secret" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_server_that_is_not_there_is_said_in_one_line(cli: Cli) -> None:  # noqa: F811
    done = cli("run", "--server", f"http://127.0.0.1:{free_port()}", "--", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(b"sandbox: The server at http://127.0.0.1:")
    assert done.stderr.count(b"\n") == 1


def test_the_token_is_taken_from_the_environment(tmp_path: Path, cli: Cli) -> None:  # noqa: F811
    with serving(tmp_path, SANDBOX_AUTH_TOKEN="right") as served:
        run = ["run", "--server", f"http://127.0.0.1:{served.port}", "--", "echo", "in"]
        assert cli(*run, SANDBOX_AUTH_TOKEN="right").stdout == b"in\n"
        for variables, said in (({}, b"it wants a token"), ({"SANDBOX_AUTH_TOKEN": "wrong"}, b"it refuses the token")):
            done = cli(*run, **variables)
            assert (done.returncode, done.stdout) == (125, b"")
            assert said in done.stderr
        elsewhere = cli(
            "run", "--server", f"http://127.0.0.1:{served.port}/api", "--", "true", SANDBOX_AUTH_TOKEN="right"
        )
        assert b"nothing is at this path" in elsewhere.stderr
