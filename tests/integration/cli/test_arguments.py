"""Arguments that are refused, or answered, before anything is started: the entry points, called in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest
import typer
import typer.core
import typer.main

from sandbox_mcp import cli

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that calls an entry point and returns exit code, stdout and stderr."""
    for name in list(os.environ):
        if name.upper().startswith("SANDBOX_") or name == "REDIS_URL":
            monkeypatch.delenv(name)

    def run(*arguments: str, entry: Callable[[], None] = cli.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sandbox", *arguments])
        with pytest.raises(SystemExit) as caught:
            entry()
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "command: is missing"),
        (["-c", ""], "command: is empty"),
        (["-c", "  "], "command: is empty"),
        (["--", ""], "command: is empty"),
        (["-c", "true", "--", "true"], "given twice"),
        (["--bogus", "--", "true"], "--bogus"),
        (["--timeout", "soon", "--", "true"], "--timeout"),
        (["--timeout", "0", "--", "true"], "timeout_seconds: is 0"),
        (["--timeout", "nan", "--", "true"], "timeout_seconds"),
        (["--timeout", "-1", "--", "true"], "timeout_seconds: is -1"),
        (["--memory", "-5", "--", "true"], "max_memory_mb: is -5"),
        (["--memory", str(10**30), "--", "true"], "max_memory_mb"),
        (["--runner", "docker", "--", "true"], "--runner"),
        (["-e", "1A=b", "--", "true"], "not a variable name"),
        (["-e", "NOT_SET_ANYWHERE", "--", "true"], "NOT_SET_ANYWHERE"),
        (["-e", "A=" + "x" * 140_000, "--", "true"], "environment.A: is 140002 bytes"),
        (["-e", "A=" + "x" * 70_000, "-e", "B=" + "x" * 70_000, "--", "true"], "environment: is 140006 bytes"),
        (["-c", "x" * 1_048_576], "command: is 1048576 bytes"),
        (["-c", "nul\0byte"], "command: contains a NUL byte"),
        (["--", "nul\0byte"], "command: contains a NUL byte"),
        (["-w", "", "--", "true"], "working_directory: is empty"),
        (["--policy", "/no/such/file", "--", "true"], "--policy"),
        (["--policy", "{", "--", "true"], "--policy: is not JSON"),
        (["--queue-timeout", "0", "--", "true"], "queue_timeout_seconds: is 0"),
        (["--retry-safe", "--", "true"], "--retry-safe: needs --no-stdin"),
        (["--idempotency-key", "a b", "--", "true"], "idempotency_key: must be 1 to 128"),
        (["--policy", '{"netwrk": {}}', "--", "true"], "did you mean network?"),
        (["--policy", f'{{"max_output_bytes": {10**400}}}', "--", "true"], "max_output_bytes: must be over 0"),
        (["--policy", '{"filesystem": {"deny_read": "x"}}', "--deny-read", "y", "--", "true"], "filesystem.deny_read"),
    ],
)
def test_wrong_arguments_of_run_are_one_clear_line(call: Call, arguments: list[str], said: str) -> None:
    code, stdout, stderr = call("run", *arguments)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("sandbox: ")
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--host", "0.0.0.0"], "SANDBOX_AUTH_TOKEN"),
        (["serve", "--port", "65536"], "SANDBOX_PORT"),
        (["serve", "--port", "http"], "--port"),
        (["serve", "--transport", "carrier-pigeon"], "--transport"),
        (["serve", "--token", ""], "SANDBOX_AUTH_TOKEN"),
        (["serve", "--auth-tokens-file", "/no/such/file"], "SANDBOX_AUTH_TOKENS_FILE"),
        (["serve", "--max-concurrent", "0"], "SANDBOX_MAX_CONCURRENT"),
        (["serve", "--log-level", "LOUD"], "SANDBOX_LOG_LEVEL"),
        (["serve", "--log-file", "/"], "SANDBOX_LOG_FILE"),
        (["serve", "surplus"], "surplus"),
        (["bogus"], "bogus"),
        (["--bogus"], "--bogus"),
        (["doctor", "--bogus"], "--bogus"),
    ],
)
def test_other_wrong_arguments_are_one_clear_line(call: Call, arguments: list[str], said: str) -> None:
    code, stdout, stderr = call(*arguments)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("sandbox: ")
    assert said in line


@pytest.mark.parametrize("entry", [cli.main, cli.guide_server_main])
def test_a_redis_url_that_is_none_is_refused_without_showing_its_password(
    call: Call, monkeypatch: pytest.MonkeyPatch, entry: Callable[[], None]
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://user:s3cret@localhost:port")
    arguments = ["serve"] if entry is cli.main else []
    code, stdout, stderr = call(*arguments, entry=entry)
    assert (code, stdout) == (2, "")
    assert "REDIS_URL is not a Redis URL" in stderr
    assert "s3cret" not in stderr


def test_version_and_help(call: Call) -> None:
    assert call("version") == call("--version") == (0, version("sandbox-mcp") + "\n", "")
    for arguments in ([], ["--help"]):
        code, stdout, _ = call(*arguments)
        assert code == 0
        assert all(command in stdout for command in ("serve", "run", "doctor", "version"))
    code, stdout, _ = call("serve", "--help")
    assert code == 0
    assert "process list" in stdout.replace("\n", " ")


@pytest.mark.parametrize("command", ["serve", "worker", "workers", "run", "doctor", "version", None])
def test_help_shows_whole_names_and_defaults_on_a_narrow_terminal(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, stdout, _ = call(*([] if command is None else [command]), "--help")
    assert code == 0
    assert "…" not in stdout
    shown = " ".join(stdout.split())
    root = typer.main.get_command(cli.app)
    assert isinstance(root, typer.core.TyperGroup)
    for parameter in (root if command is None else root.commands[command]).params:
        assert all(name in shown for name in parameter.opts if name.startswith("-"))
        assert (getattr(parameter, "help", None) or "") in shown
    assert command is not None or stdout.count("...") == 1, "only the usage line has them"


def test_the_guide_s_server_is_serve_with_the_guide_s_replies(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, object]] = []

    def run_server(transport: str, flags: object) -> int:
        seen.append((transport, flags))
        return 0

    monkeypatch.setattr("sandbox_mcp.cli_serve.run_server", run_server)
    assert call("--token", "abc", "--port", "0", entry=cli.guide_server_main)[0] == 0
    assert call("serve", "--port", "0", "--allowed-host", "a", "--allowed-host", "b")[0] == 0
    assert seen == [
        ("http", {"auth_token": "abc", "port": 0, "guide_replies": True}),
        ("http", {"port": 0, "allowed_hosts": ["a", "b"]}),
    ]


def test_what_is_offered_is_named_once_for_each_label(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run_worker(flags: object) -> int:
        seen.append(flags)
        return 0

    monkeypatch.setattr("sandbox_mcp.cli_serve.run_worker", run_worker)
    monkeypatch.setattr("sandbox_mcp.cli_serve.run_server", lambda _, flags: run_worker(flags))
    offered = ("--port", "0", "--label", "gpu", "--label", "large")
    assert call("worker", "--concurrency", "3", *offered)[0] == 0
    assert call("serve", *offered)[0] == 0
    assert seen == [
        {"max_concurrent": 3, "worker_port": 0, "labels": ["gpu", "large"]},
        {"port": 0, "labels": ["gpu", "large"]},
    ]
