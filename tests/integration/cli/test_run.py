"""`sandbox run`: exit codes, streams, limits, wrong input; every test is a real process."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess  # noqa: TID251  # the command line is a program
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[bytes]]

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--", "true"], 0),
        (["true"], 0),
        (["-c", "exit 3"], 3),
        (["-c", "kill -TERM $$"], 143),
        (["-c", "kill -KILL $$"], 137),
        (["--", "no-such-program"], 127),
        (["--", "/usr"], 126),
        (["--timeout", "0.2", "--", "sleep", "100"], 124),
        (["--idle-timeout", "0.2", "--", "sleep", "100"], 124),
        (["--workdir", "/no/such/directory", "--", "true"], 125),
        (["--memory", "99999999", "--", "true"], 125),
        (["--allow-domain", "a.example", "--", "true"], 125),
        (["--allow-write", "/etc", "--", "true"], 125),
    ],
)
def test_the_exit_code_says_how_it_ended(cli: Cli, arguments: list[str], code: int) -> None:
    done = cli("run", *arguments)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr


_NO_WATCHES = """
import errno, select, selectors
class Full:
    def __init__(self): self._real = select.epoll()
    def register(self, *_): raise OSError(errno.ENOSPC, "no watches left")
    def __getattr__(self, name): return getattr(self._real, name)
selectors.EpollSelector._selector_cls = Full
"""


@pytest.mark.parametrize(("arguments", "said"), [(["run", "--", "echo", "here"], b"here\n"), (["doctor"], b"can work")])
def test_it_works_when_an_execution_has_used_up_the_watches_of_its_user(
    cli: Cli, tmp_path: Path, arguments: list[str], said: bytes
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_NO_WATCHES)
    done = cli(*arguments, PYTHONPATH=str(tmp_path))
    assert (done.returncode, said in done.stdout) == (0, True), done.stderr


def test_both_streams_pass_through_as_bytes(cli: Cli) -> None:
    done = cli("run", "-c", r"printf 'out \377\000'; printf 'err \376' >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out \xff\0", b"err \xfe")


def test_a_list_is_not_read_by_a_shell(cli: Cli) -> None:
    done = cli("run", "--", "printf", "%s|", "a b", "$HOME", "-x", "--timeout")
    assert done.stdout == b"a b|$HOME|-x|--timeout|"


def test_input_from_a_pipe_passes_through_whole(cli: Cli) -> None:
    data = os.urandom(5_000_000)
    done = cli("run", "--", "sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_input_that_is_not_read_holds_nothing_up(cli: Cli) -> None:
    done = cli("run", "--", "true", stdin=bytes(3_000_000))
    assert done.returncode == 0


def test_input_may_be_a_file_or_nothing(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"from a file")
    with file.open("rb") as opened:
        assert cli("run", "--", "cat", stdin=opened).stdout == b"from a file"
    assert cli("run", "--", "cat", stdin=subprocess.DEVNULL).stdout == b""
    assert cli("run", "--no-stdin", "--", "cat", stdin=b"not wanted").stdout == b""


def test_output_over_the_server_s_default_cap_passes_through_whole(cli: Cli) -> None:
    size = 20_000_000
    done = cli("run", "--", "head", "-c", str(size), "/dev/zero")
    assert len(done.stdout) == size
    assert done.stderr == b""


def test_a_cap_drops_the_middle_and_says_so(cli: Cli) -> None:
    done = cli("run", "--max-output", "1000", "-c", "echo first; head -c 100000 /dev/zero; echo last")
    assert done.returncode == 0
    assert len(done.stdout) == 1000
    assert done.stdout.startswith(b"first")
    assert done.stdout.endswith(b"last\n")
    assert done.stderr.startswith(b"sandbox: ")


def test_json_prints_every_event_as_a_line(cli: Cli) -> None:
    done = cli("run", "--json", "-c", r"printf '\377'; echo err >&2; exit 4")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 4
    assert [event["event_id"] for event in events] == [str(number) for number in range(1, len(events) + 1)]
    assert events[-1]["type"] == "exit"
    assert events[-1]["exit_code"] == 4
    by_type = {event["type"]: event for event in events}
    assert base64.b64decode(by_type["stdout"]["data"]) == b"\xff"
    assert by_type["stdout"]["encoding"] == "base64"
    assert by_type["stderr"]["data"] == "err\n"
    assert "encoding" not in by_type["stderr"]


MEASURED = {
    "wall_seconds", "user_cpu_seconds", "system_cpu_seconds", "peak_memory_bytes", "peak_processes", "queued_seconds",
    "setup_seconds", "stdout_bytes", "stderr_bytes", "network_sent_bytes", "network_received_bytes",
}  # fmt: skip


def test_the_last_line_says_what_it_used_and_what_isolated_it(cli: Cli) -> None:
    busy = "dd if=/dev/zero of=/dev/null bs=64 count=300000 2> /dev/null"
    done = cli("run", "--json", "-c", f"echo out; echo err >&2; sleep 0.1 & {busy}; wait")
    *others, last = (json.loads(line) for line in done.stdout.splitlines())
    assert all("usage" not in event for event in others)
    assert set(last["usage"]) >= MEASURED
    assert (last["usage"]["stdout_bytes"], last["usage"]["stderr_bytes"], last["denials"]) == (4, 4, [])
    for name in ("wall_seconds", "user_cpu_seconds", "system_cpu_seconds", "setup_seconds", "max_rss_bytes"):
        assert last["usage"][name] > 0, name
    assert last["usage"]["network_sent_bytes"] is None
    assert "seccomp" in last["isolation"]["layers"]


def test_people_are_told_of_usage_and_isolation_when_they_ask(cli: Cli) -> None:
    assert cli("run", "--", "true").stderr == b""
    done = cli("run", "-v", "--", "true")
    used, isolated = done.stderr.decode().splitlines()
    assert used.startswith("sandbox: used ")
    assert isolated.startswith("sandbox: isolated by bubblewrap ")
    assert (
        cli("run", "-v", "--runner", "local", "--", "true")
        .stderr.splitlines()[-1]
        .startswith(b"sandbox: isolated by nothing (local ")
    )


def test_a_layer_that_is_not_there_is_refused_before_anything_runs(cli: Cli) -> None:
    assert cli("run", "--require-layer", "seccomp", "--require-layer", "pid", "--", "echo", "ran").stdout == b"ran\n"
    done = cli("run", "--require-layer", "seccomp", "--require-layer", "moat", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"isolation.require: asked moat" in done.stderr


def test_reading_elsewhere_is_refused_without_the_operators_word(cli: Cli) -> None:
    done = cli("run", "--allow-read", "/srv", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"filesystem.allow_read" in done.stderr


def test_json_ends_with_the_timeout(cli: Cli) -> None:
    done = cli("run", "--json", "--timeout", "0.2", "--", "sleep", "100")
    assert done.returncode == 124
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "timeout"


def test_only_chosen_variables_get_in(cli: Cli) -> None:
    done = cli("run", "-e", "A=b=c", "-e", "GIVEN", "--", "env", GIVEN="mine", HIDDEN="s3cret")
    lines = done.stdout.decode().splitlines()
    assert "A=b=c" in lines
    assert "GIVEN=mine" in lines
    assert "s3cret" not in done.stdout.decode()


def test_the_workspace_is_private_and_the_host_is_not_seen(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "host-file").write_text("here")
    done = cli("run", "-c", f"pwd; echo x > file; ls; ls {tmp_path}")
    assert done.stdout.decode().split() == ["/workspace", "file"]
    assert not (tmp_path / "file").exists()


def test_a_policy_comes_from_a_file_or_from_text_and_options_go_over_it(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"resourceLimits": {"max_open_files": 64}}')
    show = ["--", "sh", "-c", "ulimit -n"]
    assert cli("run", "--policy", str(file), *show).stdout == b"64\n"
    assert cli("run", "--policy", '{"max_open_files": 65}', *show).stdout == b"65\n"
    assert cli("run", "--policy", str(file), "--open-files", "66", *show).stdout == b"66\n"


def test_the_operator_s_ceiling_and_defaults_hold_here_too(cli: Cli) -> None:
    variables = {"SANDBOX_DEFAULTS": '{"max_open_files": 70}', "SANDBOX_CEILING": '{"max_open_files": 80}'}
    assert cli("run", "-c", "ulimit -n", **variables).stdout == b"70\n"
    refused = cli("run", "--open-files", "81", "--", "true", **variables)
    assert refused.returncode == 125
    assert b"max_open_files: asked 81, allowed at most 80" in refused.stderr


def test_the_local_runner_runs_only_when_it_is_chosen(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "host-file").write_text("seen")
    done = cli("run", "--runner", "local", "--", "cat", str(tmp_path / "host-file"))
    assert done.stdout == b"seen"
    assert cli("run", "--", "cat", str(tmp_path / "host-file")).returncode == 1


def test_a_runner_that_cannot_work_is_no_reason_to_run_without_isolation(cli: Cli) -> None:
    done = cli("run", "--", "echo", "ran", SANDBOX_BWRAP_PATH="/no/such/bwrap")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"bubblewrap runner cannot work here" in done.stderr


def test_a_server_s_redis_is_no_matter_here(cli: Cli) -> None:
    assert cli("run", "--", "true", REDIS_URL="redis://localhost:1").returncode == 0


def test_a_misspelt_variable_is_named(cli: Cli) -> None:
    done = cli("run", "--", "true", SANDBOX_MAX_CONCURENT="3")
    assert done.returncode == 0
    assert b"SANDBOX_MAX_CONCURRENT" in done.stderr


def test_a_wrong_setting_is_one_clear_line(cli: Cli) -> None:
    done = cli("run", "--", "true", SANDBOX_TIMEOUT="soon")
    assert done.returncode == 2
    assert done.stderr.decode().startswith("sandbox: SANDBOX_TIMEOUT: ")


def test_nothing_of_a_server_is_loaded(cli: Cli) -> None:
    done = cli("run", "--", "true", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.decode().splitlines() if "|" in line}
    assert "sandbox_adapters.sandbox" in loaded
    assert not loaded & {"mcp", "redis", "uvicorn"}
