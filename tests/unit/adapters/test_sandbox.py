from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandbox_adapters import RunResult, Sandbox, Settings, SettingsError, open_sandbox
from sandbox_core.domain.denial import Denial, DenialKind
from sandbox_core.domain.errors import (
    ExecutionNotFound,
    InvalidArgument,
    NotInteractive,
    PolicyRefused,
    RunnerUnavailable,
    ServerDraining,
)
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.ids import Principal
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.scripted_runner import EchoInput, Pause, Print, Script, ScriptedRunner

pytestmark = pytest.mark.anyio

FOREVER = Script(steps=(Print(b"working\n"), Pause(100_000)))


@asynccontextmanager
async def opened(**scripts: Script) -> AsyncIterator[tuple[Sandbox, ScriptedRunner]]:
    runner = ScriptedRunner(scripts)
    with anyio.fail_after(30):
        async with open_sandbox(Settings(), runner=runner) as sandbox:
            yield sandbox, runner
    assert runner.running == 0


async def test_run_returns_how_it_ended_and_what_was_printed() -> None:
    script = Script(stdout=b"out \xff", stderr=b"err", exit_code=3)
    async with opened(tool=script) as (sandbox, runner):
        result = await sandbox.run(["tool"], environment={"A": "b"}, working_directory="sub", timeout_seconds=5)
    assert isinstance(result, RunResult)
    assert (result.status, result.exit_code, result.signal) == (ExecutionStatus.COMPLETED, 3, None)
    assert result.termination_reason is TerminationReason.EXITED
    assert (result.stdout, result.stderr, result.omitted_bytes) == (b"out \xff", b"err", 0)
    assert (result.text, result.error_text, result.ok) == ("out \ufffd", "err", False)
    assert result.isolation is not None
    assert result.isolation.runner == "scripted"
    (launch,) = runner.launches
    assert launch.command.argv == ("tool",)
    assert dict(launch.command.environment) == {"A": "b"}
    assert launch.command.working_directory == "sub"
    assert launch.policy.resource_limits.timeout_seconds == 5
    assert launch.policy.resource_limits.max_memory_mb == 2048


async def test_run_returns_what_was_refused_and_moved() -> None:
    denial = Denial(DenialKind.NETWORK, "a.example:443", "network.allowed_domains", "It is not allowed.", 2)
    script = Script(denials=[denial], denials_omitted=3, network_sent_bytes=1, network_received_bytes=2)
    async with opened(tool=script) as (sandbox, _):
        result = await sandbox.run(["tool"])
    assert (result.denials, result.denials_omitted) == ((denial,), 3)
    assert (result.usage.network_sent_bytes, result.usage.network_received_bytes) == (1, 2)


async def test_a_policy_is_a_mapping_or_a_value_and_is_held_under_the_ceiling() -> None:
    async with opened(tool=Script()) as (sandbox, runner):
        await sandbox.run("tool", policy={"maxOutputBytes": 7})
        await sandbox.run("tool", policy=ExecutionPolicy(resource_limits=ResourceLimits(max_output_bytes=8)))
        with pytest.raises(PolicyRefused, match="timeout_seconds: asked 301"):
            await sandbox.run("tool", timeout_seconds=301)
        with pytest.raises(InvalidArgument, match=r"^netwrk"):
            await sandbox.run("tool", policy={"netwrk": {}})
        with pytest.raises(InvalidArgument, match=r"timeout_seconds: is also given"):
            await sandbox.run("tool", timeout_seconds=3, policy={"timeout_seconds": 4})
    assert [launch.policy.resource_limits.max_output_bytes for launch in runner.launches] == [7, 8]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"command": 5}, "command"),
        ({"command": None}, "command"),
        ({"command": b"tool"}, "command"),
        ({"command": ["tool", 5]}, "command"),
        ({"command": [Path("tool")]}, "command"),
        ({"command": "tool", "environment": {"A": 1}}, "environment.A"),
        ({"command": "tool", "environment": {5: "a"}}, "environment"),
        ({"command": "tool", "environment": [("A", "b")]}, "environment"),
        ({"command": "tool", "working_directory": Path("sub")}, "working_directory"),
        ({"command": "tool", "stdin": 5}, "stdin"),
        ({"command": "tool", "stdin": "\ud800"}, "stdin"),
        ({"command": "tool", "session_id": 5}, "session_id"),
        ({"command": "tool", "retry_safe": "yes"}, "retry_safe"),
        ({"command": "tool", "labels": 5}, "labels"),
        ({"command": "tool", "max_bytes": "5"}, "max_bytes"),
        ({"command": "tool", "max_bytes": -1}, "max_bytes"),
        ({"command": "tool", "timeout_seconds": 10**400}, "resource_limits.timeout_seconds"),
    ],
)
async def test_an_argument_of_the_wrong_type_is_refused_by_name(arguments: dict[str, Any], field: str) -> None:
    async with opened(tool=Script()) as (sandbox, runner):
        with pytest.raises(InvalidArgument) as caught:
            await sandbox.run(**arguments)
        assert (await sandbox.list()).executions == ()
    assert caught.value.field == field
    assert not runner.launches


@pytest.mark.parametrize("statuses", ["running", ["bogus"], 5])
async def test_what_is_no_set_of_statuses_is_refused_instead_of_finding_nothing(statuses: Any) -> None:
    async with opened(tool=Script()) as (sandbox, _):
        with pytest.raises(InvalidArgument, match=r"^statuses"):
            await sandbox.list(statuses=statuses)


async def test_statuses_may_be_text() -> None:
    texts: Any = ["completed"]
    async with opened(tool=Script()) as (sandbox, _):
        ended = await sandbox.run("tool")
        assert [found.id for found in (await sandbox.list(statuses=texts)).executions] == [ended.execution_id]


async def test_another_event_loop_is_told_so_instead_of_waiting_for_ever() -> None:
    async with opened(tool=FOREVER) as (sandbox, runner):
        execution_id = await sandbox.submit("tool")
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            partial(sandbox.run, "tool"),
            partial(sandbox.submit, "tool"),
            partial(anext, sandbox.stream("tool")),
            partial(sandbox.wait, execution_id),
            partial(sandbox.cancel, execution_id),
            partial(sandbox.send_stdin, execution_id, "x"),
            partial(sandbox.for_principal(Principal("other")).run, "tool"),
            sandbox.list,
        ]

        def call_there(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
            async def call_it() -> None:
                with anyio.fail_after(30):
                    await call()

            with pytest.raises(RuntimeError, match="another"):
                anyio.run(call_it, backend="asyncio")

        for call in calls:
            await anyio.to_thread.run_sync(call_there, call)
        assert len(runner.launches) <= 1
        await sandbox.cancel(execution_id)


async def test_an_id_or_input_of_the_wrong_type_is_refused_by_name() -> None:
    unknown: Any = 5
    async with opened(tool=Script()) as (sandbox, _):
        with pytest.raises(InvalidArgument, match=r"^execution_id"):
            await sandbox.wait(unknown)
        started = await sandbox.submit("tool", interactive=True)
        with pytest.raises(InvalidArgument, match=r"^data"):
            await sandbox.send_stdin(started, unknown)


async def test_stream_yields_events_as_they_come_and_ends_with_the_terminal_one() -> None:
    script = Script(stdout=b"a", stderr=b"b", exit_code=1)
    async with opened(tool=script) as (sandbox, _):
        events = [event async for event in sandbox.stream("tool")]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {event.kind: event.data for event in events if event.kind.is_output} == {
        EventKind.STDOUT: b"a",
        EventKind.STDERR: b"b",
    }
    assert events[-1].kind is EventKind.EXIT


async def test_leaving_a_stream_early_ends_the_command() -> None:
    async with opened(tool=FOREVER) as (sandbox, runner):
        async with aclosing(sandbox.stream("tool")) as events:
            async for event in events:
                if event.kind is EventKind.STDOUT:
                    break
        assert runner.running == 0
        (execution,) = (await sandbox.list()).executions
        assert execution.status is ExecutionStatus.CANCELLED


async def test_cancelling_run_ends_the_command() -> None:
    async with opened(tool=FOREVER) as (sandbox, runner):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sandbox.run, "tool")
            with anyio.fail_after(30):
                while not runner.running:
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert runner.running == 0


async def test_submit_wait_and_list() -> None:
    async with opened(tool=Script(stdout=b"done")) as (sandbox, _):
        first = await sandbox.submit("tool", session_id="build", idempotency_key="once")
        assert await sandbox.submit("tool", idempotency_key="once") == first
        second = await sandbox.submit("tool")
        assert (await sandbox.wait(first)).stdout == b"done"
        assert (await sandbox.wait(second)).execution_id == second
        assert {execution.id for execution in (await sandbox.list()).executions} == {first, second}
        assert [execution.id for execution in (await sandbox.list(session_id="build")).executions] == [first]
        assert not await sandbox.cancel(first)
        page = await sandbox.list(limit=1)
        pages = (*page.executions, *(await sandbox.list(before=page.next_before)).executions)
        assert sorted(execution.id for execution in pages) == sorted([first, second])
        with pytest.raises(InvalidArgument, match=r"^before: "):
            await sandbox.list(before="page 2")


async def test_a_cancelled_wait_leaves_the_execution_running() -> None:
    async with opened(tool=FOREVER) as (sandbox, _):
        execution_id = await sandbox.submit("tool")
        with anyio.move_on_after(0):
            await sandbox.wait(execution_id)
        assert await sandbox.cancel(execution_id, force=True)
        assert (await sandbox.wait(execution_id)).status is ExecutionStatus.CANCELLED


async def test_input_reaches_an_interactive_execution_as_it_is() -> None:
    script = Script(steps=(EchoInput(b"> "), EchoInput(b"> ")))
    async with opened(tool=script, other=FOREVER) as (sandbox, _):
        execution_id = await sandbox.submit("tool", interactive=True)
        await sandbox.send_stdin(execution_id, "one")
        async with aclosing(sandbox.follow(execution_id)) as events:
            async for event in events:
                if event.kind is EventKind.STDOUT:
                    break
        await sandbox.send_stdin(execution_id, b"\xfftwo", end=True)
        assert (await sandbox.wait(execution_id)).stdout == b"> one> \xfftwo"
        plain = await sandbox.submit("other")
        with pytest.raises(NotInteractive):
            await sandbox.send_stdin(plain, b"x")


async def test_another_principal_sees_nothing() -> None:
    async with opened(tool=Script()) as (sandbox, _):
        mine = (await sandbox.run("tool")).execution_id
        other = sandbox.for_principal(Principal("other"))
        assert (await other.list()).executions == ()
        for call in (other.wait(mine), other.cancel(mine), other.send_stdin(mine, b"")):
            with pytest.raises(ExecutionNotFound):
                await call


@pytest.mark.parametrize("text", ["", "x", "../../etc", "0" * 36])
async def test_a_malformed_id_is_an_argument_error(text: str) -> None:
    async with opened() as (sandbox, _):
        with pytest.raises(InvalidArgument, match="execution_id"):
            await sandbox.wait(text)


async def test_output_past_what_was_asked_for_comes_as_head_and_tail() -> None:
    data = bytes(range(65, 91)) * 1000
    async with opened(tool=Script(stdout=data)) as (sandbox, _):
        result = await sandbox.run("tool", max_bytes=1000)
    assert len(result.stdout) == 1000
    assert result.stdout[:500] == data[:500]
    assert result.stdout[500:] == data[-500:]
    assert result.omitted_bytes == len(data) - 1000


async def test_health_tells_running_draining_and_capacity() -> None:
    async with opened(tool=FOREVER) as (sandbox, runner):
        before = await sandbox.health()
        assert (before.status, before.runner, before.store, before.capacity) == ("ok", "scripted", "memory", 10)
        assert before.version
        await sandbox.submit("tool")
        with anyio.fail_after(30):
            while not runner.running:
                await anyio.lowlevel.checkpoint()
        assert (await sandbox.health()).running == 1
        await sandbox.drain(grace_seconds=0)
        assert (await sandbox.health()).status == "draining"
        with pytest.raises(ServerDraining):
            await sandbox.run("tool")


async def test_leaving_the_context_ends_what_runs() -> None:
    async with opened(stubborn=Script(steps=(Pause(100_000),))) as (sandbox, runner):
        await sandbox.submit("stubborn")
        with anyio.fail_after(30):
            while not runner.running:
                await anyio.lowlevel.checkpoint()
    assert runner.running == 0


async def test_an_exception_leaves_the_context_as_it_is_and_ends_what_runs() -> None:
    runner = ScriptedRunner({"tool": FOREVER})

    async def body() -> None:
        async with open_sandbox(Settings(), runner=runner) as sandbox:
            await sandbox.submit("tool")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await body()
    assert runner.running == 0


class BrokenRunner(ScriptedRunner):
    """A runner that finds on entering that it cannot work."""

    entered = left = 0

    async def __aenter__(self) -> BrokenRunner:
        self.entered += 1
        raise RunnerUnavailable("broken", "nothing is there", "Install it.")

    async def __aexit__(self, *_: object) -> None:
        self.left += 1


async def test_a_runner_that_cannot_work_is_a_clear_refusal() -> None:
    with pytest.raises(RunnerUnavailable, match="Install it"):
        async with open_sandbox(Settings(), runner=BrokenRunner()):
            pytest.fail("opened all the same")


@pytest.mark.parametrize(
    ("anyio_backend", "url"), [("trio", "redis://:s3cret@localhost"), ("asyncio", "redis://:s3cret@localhost:x")]
)
async def test_redis_that_cannot_be_used_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError, match="REDIS_URL") as caught:
        async with open_sandbox(runner=ScriptedRunner()):
            pytest.fail("opened all the same")
    assert "s3cret" not in str(caught.value)


async def test_the_log_says_once_that_the_manager_is_there_and_names_a_misspelt_variable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SANDBOX_MAX_CONCURENT", "3")
    with caplog.at_level(logging.INFO, logger="sandbox_adapters"):
        async with opened(tool=Script()) as (sandbox, _):
            await sandbox.run("tool")
            await sandbox.run("tool")
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("First-time initialization: ExecutionManager initialised") == 1
    (unknown,) = [record for record in caplog.records if record.getMessage() == "Unknown variable"]
    assert "SANDBOX_MAX_CONCURRENT" in vars(unknown)["problem"]


async def test_streams_are_told_apart() -> None:
    script = Script(steps=(Print(b"a", Stream.STDERR), Print(b"b"), Print(b"c", Stream.STDERR)))
    async with opened(tool=script) as (sandbox, _):
        result = await sandbox.run("tool")
    assert (result.stdout, result.stderr) == (b"b", b"ac")


async def test_importing_the_facade_loads_no_server_and_no_command_line() -> None:
    code = (
        "import sys, sandbox_adapters.sandbox\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'mcp', 'redis', 'uvicorn', 'typer'}))"
    )
    with anyio.fail_after(60):
        found = await anyio.run_process([sys.executable, "-c", code])
    assert found.stdout.decode().strip() == "[]"
