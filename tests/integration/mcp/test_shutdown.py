"""Stopping: by a signal, by two, by SIGKILL; and not starting at all."""

from __future__ import annotations

import signal
import socket
import subprocess  # noqa: TID251  # the server under test is a program
import uuid
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio import to_thread

from tests.integration.mcp.harness import (
    PATIENCE_SECONDS,
    call,
    connected,
    environment,
    eventually,
    older_session,
    processes_with,
    sandbox_program,
    serving,
    until,
)

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_signal_lets_a_running_call_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    with serving(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as served:
        async with connected(served.url) as client, connected(served.url, "legacy") as older:
            answers = {}

            async def wait(name: str) -> None:
                source = client if name == "modern" else older
                answers[name] = await call(source, "execute_code", command="cat; echo finished", interactive=True)

            # Else a client lists them after its first result, perhaps when the server has gone.
            for each in (client, older):
                await each.list_tools()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, "modern")
                tasks.start_soon(wait, "older")
                await until(lambda: served.running() == 2, "both run")
                served.process.send_signal(signal.SIGTERM)
                await until(lambda: served.health().status_code == 503, "health says that it drains")
                refused = await client.call_tool("execute_code", {"command": "true"})
                assert refused.is_error
                assert isinstance(refused.structured_content, dict)
                assert refused.structured_content["error"]["code"] == "server_draining"
                assert served.health().json()["status"] == "draining"
                for entry in (await call(client, "list_executions"))["executions"]:
                    await call(client, "send_stdin", execution_id=entry["execution_id"], input_data="", end=True)
            assert {name: said["stdout"] for name, said in answers.items()} == {
                "modern": "finished\n",
                "older": "finished\n",
            }
        assert served.process.wait(timeout=PATIENCE_SECONDS) == 0


async def test_grace_over_ends_and_marks_what_still_runs(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with serving(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="0.3") as served:
        async with connected(served.url) as client:
            answers = []

            async def wait() -> None:
                answers.append(await call(client, "execute_code", command=["sh", "-c", "sleep 60; true", mark]))

            await client.list_tools()  # else it does so after its first result, perhaps when the server has gone
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await until(lambda: processes_with(mark), "it runs")
                served.process.send_signal(signal.SIGTERM)
            assert answers[0]["status"] in {"cancelled", "failed"}
            assert answers[0]["termination_reason"] in {"cancelled", "lost"}
        assert served.process.wait(timeout=PATIENCE_SECONDS) == 0
    assert processes_with(mark) == []


async def test_second_signal_hurries(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with serving(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as served:
        async with connected(served.url) as client:
            await call(client, "execute_code_async", command=["sh", "-c", "sleep 600; true", mark])
            await until(lambda: processes_with(mark), "it runs")
        served.process.send_signal(signal.SIGTERM)
        await until(lambda: served.health().status_code == 503, "it drains")
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=PATIENCE_SECONDS) == 0
    assert processes_with(mark) == []


async def test_open_streams_do_not_hold_up_the_stop(tmp_path: Path) -> None:
    with serving(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as served:
        async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as http:
            headers = await older_session(http, served.url)
            listening = {name: value for name, value in headers.items() if name != "Content-Type"}
            async with http.stream("GET", served.url, headers={**listening, "Accept": "text/event-stream"}) as stream:
                assert stream.status_code == 200
                assert await to_thread.run_sync(served.stop) == 0


async def test_sigkill_leaves_no_process(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with serving(tmp_path) as served:
        async with connected(served.url) as client:
            for command in ("sleep 600; true", "setsid sleep 600 & sleep 600; true"):
                await call(client, "execute_code_async", command=["sh", "-c", command, mark])
            await until(lambda: served.running() == 2, "both run")
            await until(lambda: processes_with(mark), "their programs have started")
        served.process.kill()
        served.process.wait(timeout=PATIENCE_SECONDS)
        await until(lambda: not processes_with(mark), "nothing is left")


async def test_idle_server_stops_at_once_with_zero(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        assert served.stop() == 0
        assert "Traceback" not in served.log.read_text()


def start_and_fail(tmp_path: Path, *arguments: str, code: int = 2, **variables: str) -> str:
    """Start a server that cannot start; return its stderr."""
    done = subprocess.run(
        [sandbox_program(), "serve", *arguments],
        env=environment(**variables),
        cwd=tmp_path,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_busy_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = start_and_fail(tmp_path, "--port", port, code=1)  # it may be free later: a unit starts it again
    assert port in said
    assert said.count("\n") == 1
    assert "in use" in said


def test_address_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    said = start_and_fail(tmp_path, "--host", "0.0.0.0", "--port", "0")
    assert "SANDBOX_AUTH_TOKEN" in said
    assert "--allow-unauthenticated" in said


def test_any_host_needs_a_token(tmp_path: Path) -> None:
    assert "SANDBOX_ALLOWED_HOSTS" in start_and_fail(tmp_path, "--port", "0", SANDBOX_ALLOWED_HOSTS="*")


def test_signal_during_start_up_is_a_clean_stop(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sandbox_program(), "serve", "--port", "0"],
            env=environment(SANDBOX_LOG_LEVEL="DEBUG"),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
        eventually(lambda: _handles_sigterm(process.pid), "it handles signals")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert "Traceback" not in log.read_text()


def _handles_sigterm(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False
