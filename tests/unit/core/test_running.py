"""Front and back together: what a caller sees of one execution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio
import pytest

from sandbox_core.application.run import RunConfig
from sandbox_core.application.service import Submission
from sandbox_core.application.supervisor import SupervisorConfig
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import (
    ExecutionFinished,
    ExecutionNotFound,
    InputClosed,
    InputFull,
    InvalidArgument,
    LaunchFailed,
    NotInteractive,
    PolicyRefused,
    PolicyViolation,
    ServerDraining,
    StoreUnavailable,
)
from sandbox_core.domain.events import EventDraft, EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, Principal, new_execution_id
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, NetworkPolicy, ResourceLimits
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.runner import Stream
from sandbox_core.ports.store import Lease
from sandbox_core.testing.scripted_runner import EchoInput, Pause, Print, Script

from .conftest import OpenHouse

pytestmark = pytest.mark.anyio

HELLO = Script(stdout=b"hello\n", stderr=b"oh\n", exit_code=3)
SLOW = Script(steps=[Pause(1000)])
STUBBORN = Script(steps=[Pause(1000)], ignores_terminate=True)
ECHO = Script(steps=[EchoInput(b"> "), EchoInput(b"> "), EchoInput(b"> ")])


async def test_a_command_that_exits_3_is_completed_with_its_output_and_one_terminal_event(house: OpenHouse) -> None:
    async with house({"hello": HELLO}) as home:
        execution_id = await home.submit("hello")
        execution = await home.ended(execution_id)
        events = await home.events(execution_id)
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.outcome is not None
    assert (execution.outcome.reason, execution.outcome.exit_code) == (TerminationReason.EXITED, 3)
    assert execution.isolation is not None
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].kind is EventKind.READY
    assert [event.kind.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
    assert {(event.kind, event.data) for event in events[1:-1]} == {
        (EventKind.STDOUT, b"hello\n"),
        (EventKind.STDERR, b"oh\n"),
    }
    assert execution.outcome.usage.stdout_bytes == 6
    assert execution.outcome.usage.stderr_bytes == 3


async def test_output_can_be_followed_while_it_runs(house: OpenHouse) -> None:
    script = Script(steps=[Print(b"one\n"), Pause(10), Print(b"two\n"), Pause(10)])
    async with house({"slow": script}) as home:
        execution_id = await home.submit("slow")
        seen: list[bytes] = []
        async for event in home.service.follow(LOCAL_PRINCIPAL, execution_id):
            if event.kind.is_output:
                seen.append(event.data)
                assert (await home.service.get(LOCAL_PRINCIPAL, execution_id)).status is ExecutionStatus.RUNNING
                await home.clock.advance(10)
    assert seen == [b"one\n", b"two\n"]


@pytest.mark.parametrize(
    ("quiet_seconds", "stored"),
    [(60, [[EventKind.READY, EventKind.EXIT]]), (0, [[EventKind.READY], [EventKind.EXIT]])],
    ids=["ends soon", "is silent"],
)
async def test_that_it_started_is_stored_with_what_comes_soon_or_by_itself(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch, quiet_seconds: float, stored: list[list[EventKind]]
) -> None:
    config = SupervisorConfig(run=RunConfig(quiet_seconds=quiet_seconds))
    async with house({"it": Script(steps=[Pause(1)])}, config=config) as home:
        append, seen = home.store.append, list[list[EventKind]]()

        async def watched(lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
            seen.append([draft.kind for draft in drafts])
            return await append(lease, drafts, execution)

        monkeypatch.setattr(home.store, "append", watched)
        execution_id = await home.submit("it")
        await home.started(1)
        await anyio.sleep(0.02)  # real time, of which the run's waits are
        with anyio.fail_after(30):
            while len(seen) < len(stored) - 1:
                await home.clock.settle()
        await home.clock.advance(2)
        await home.ended(execution_id)
    assert seen == stored


async def test_wall_time_ends_a_run_with_status_timeout(house: OpenHouse) -> None:
    async with house({"slow": STUBBORN}) as home:
        execution_id = await home.submit("slow", limits=ResourceLimits(timeout_seconds=2.5))
        await home.started(1)
        await home.clock.advance(2.4)
        assert not (await home.service.get(LOCAL_PRINCIPAL, execution_id)).is_terminal
        await home.clock.advance(0.2)
        execution = await home.ended(execution_id)
        last = (await home.events(execution_id))[-1]
    assert execution.status is ExecutionStatus.TIMEOUT
    assert execution.outcome is not None
    assert (execution.outcome.reason, execution.outcome.signal) == (TerminationReason.WALL_TIME, 9)
    assert (last.kind, last.fields["timeout_seconds"]) == (EventKind.TIMEOUT, 2.5)


@pytest.mark.parametrize("late", ["deadline", "drain"])
async def test_what_ended_by_itself_stays_so_while_its_output_waits_for_the_store(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    async with house({"short": Script(steps=[Print(b"x"), Pause(1)])}) as home:
        append, is_away, asked = home.store.append, True, anyio.Event()

        async def away(lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
            asked.set()
            if is_away:
                raise StoreUnavailable("for the test")
            return await append(lease, drafts, execution)

        monkeypatch.setattr(home.store, "append", away)
        execution_id = await home.submit("short", limits=ResourceLimits(timeout_seconds=3))
        with anyio.fail_after(30):
            await asked.wait()
        await home.clock.advance(2)
        async with anyio.create_task_group() as tasks:
            if late == "drain":
                tasks.start_soon(partial(home.supervisor.drain, grace_seconds=0))
            await home.clock.advance(4)
            is_away = False
            await home.clock.advance(4)
            execution = await home.ended(execution_id)
    assert execution.outcome is not None
    assert (execution.outcome.reason, execution.outcome.exit_code) == (TerminationReason.EXITED, 0)


async def test_idle_time_counts_from_the_last_output(house: OpenHouse) -> None:
    script = Script(steps=[Pause(4), Print(b"x"), Pause(1000)])
    async with house({"quiet": script}) as home:
        execution_id = await home.submit("quiet", limits=ResourceLimits(idle_timeout_seconds=5))
        await home.started(1)
        await home.clock.advance(8.5)
        assert not (await home.service.get(LOCAL_PRINCIPAL, execution_id)).is_terminal
        await home.clock.advance(1)
        execution = await home.ended(execution_id)
    assert execution.outcome is not None
    assert execution.outcome.reason is TerminationReason.IDLE_TIME


async def test_output_past_the_cap_keeps_both_ends_and_the_run_goes_on(house: OpenHouse) -> None:
    script = Script(steps=[Print(b"a" * 5000), Print(b"b" * 5000), Print(b"end\n")], exit_code=7)
    async with house({"much": script}) as home:
        execution_id = await home.submit("much", limits=ResourceLimits(max_output_bytes=1000))
        execution = await home.ended(execution_id)
        events = await home.events(execution_id)
    kept = b"".join(event.data for event in events if event.kind is EventKind.STDOUT)
    assert kept.startswith(b"a" * 750)
    assert kept.endswith(b"end\n")
    assert len(kept) == 1000
    cut = next(event for event in events if event.kind is EventKind.TRUNCATED)
    assert cut.fields["dropped_bytes"] == 10_004 - 1000
    assert execution.outcome is not None
    assert execution.outcome.exit_code == 7
    assert execution.outcome.usage.dropped_bytes == 10_004 - 1000


async def test_a_signal_is_told_apart(house: OpenHouse) -> None:
    async with house({"crash": Script(signal_number=11)}) as home:
        execution = await home.ended(await home.submit("crash"))
    assert execution.outcome is not None
    assert execution.status is ExecutionStatus.COMPLETED
    assert (execution.outcome.reason, execution.outcome.signal) == (TerminationReason.SIGNALED, 11)


async def test_a_failed_launch_is_failed_with_the_reason(house: OpenHouse) -> None:
    async with house({"x": Script(raises=LaunchFailed("out of processes"))}) as home:
        execution_id = await home.submit("x")
        execution = await home.ended(execution_id)
        events = await home.events(execution_id)
    assert execution.status is ExecutionStatus.FAILED
    assert execution.outcome is not None
    assert execution.outcome.reason is TerminationReason.SETUP_FAILED
    assert [event.kind for event in events] == [EventKind.ERROR]
    assert b"out of processes" in events[0].data


async def test_a_refused_policy_stores_nothing(house: OpenHouse) -> None:
    async with house() as home:
        with pytest.raises(PolicyRefused, match="timeout_seconds"):
            await home.submit("x", limits=ResourceLimits(timeout_seconds=301))
        assert not (await home.service.list_page(LOCAL_PRINCIPAL)).executions


async def test_a_refusal_gives_the_reason_that_no_ceiling_could_mend(house: OpenHouse) -> None:
    impossible = PolicyViolation("network.allowed_domains", "a.example", "nothing", "there is no egress proxy yet")
    async with house() as home:
        home.runner._refuses = (impossible,)
        network = NetworkPolicy(allowed_domains=("a.example",))
        policy = ExecutionPolicy(network=network, resource_limits=ResourceLimits(timeout_seconds=301))
        with pytest.raises(PolicyRefused) as refused:
            await home.service.submit(LOCAL_PRINCIPAL, Submission(Command(shell="x"), policy))
    assert [violation.field for violation in refused.value.violations] == [
        "network.allowed_domains",
        "resource_limits.timeout_seconds",
    ]
    assert "no egress proxy yet" in str(refused.value)


async def test_input_reaches_the_program_in_order_and_ends(house: OpenHouse) -> None:
    async with house({"cat": ECHO}) as home:
        execution_id = await home.submit("cat", interactive=True, stdin=b"zero\n")
        await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"one\n")
        await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"two\n", end=True)
        await home.ended(execution_id)
        events = await home.events(execution_id)
    printed = b"".join(event.data for event in events if event.kind is EventKind.STDOUT)
    assert printed == b"> zero\n> one\n> two\n"


async def test_input_after_its_end_is_refused(house: OpenHouse) -> None:
    async with house({"slow": SLOW}) as home:
        execution_id = await home.submit("slow", interactive=True)
        await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"", end=True)
        with pytest.raises(InputClosed):
            await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"late")


async def test_input_to_a_program_without_interactive_is_refused(house: OpenHouse) -> None:
    async with house({"slow": SLOW}) as home:
        execution_id = await home.submit("slow")
        with pytest.raises(NotInteractive):
            await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"x")


async def test_input_to_an_ended_execution_is_refused(house: OpenHouse) -> None:
    async with house({"hello": HELLO}) as home:
        execution_id = await home.submit("hello", interactive=True)
        await home.ended(execution_id)
        with pytest.raises(ExecutionFinished):
            await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"x")


async def test_too_much_input_at_once_is_refused(house: OpenHouse) -> None:
    async with house({"slow": SLOW}) as home:
        execution_id = await home.submit("slow", interactive=True)
        with pytest.raises(InvalidArgument, match="input_data"):
            await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"x" * ((1 << 20) + 1))


async def test_cancel_is_graceful_first_and_kills_after_the_grace(house: OpenHouse) -> None:
    async with house({"polite": SLOW, "stubborn": STUBBORN}) as home:
        polite, stubborn = await home.submit("polite"), await home.submit("stubborn")
        await home.started(2)
        assert await home.service.cancel(LOCAL_PRINCIPAL, polite)
        assert await home.service.cancel(LOCAL_PRINCIPAL, stubborn)
        one = await home.ended(polite)
        await home.clock.advance(4.9)
        assert not (await home.service.get(LOCAL_PRINCIPAL, stubborn)).is_terminal
        await home.clock.advance(0.2)
        two = await home.ended(stubborn)
        assert not await home.service.cancel(LOCAL_PRINCIPAL, polite)
    assert one.status is two.status is ExecutionStatus.CANCELLED
    assert one.outcome is not None
    assert two.outcome is not None
    assert (one.outcome.signal, two.outcome.signal) == (15, 9)


async def test_force_kills_at_once_also_after_a_graceful_cancel(house: OpenHouse) -> None:
    async with house({"stubborn": STUBBORN}) as home:
        execution_id = await home.submit("stubborn")
        await home.started(1)
        await home.service.cancel(LOCAL_PRINCIPAL, execution_id)
        await home.service.cancel(LOCAL_PRINCIPAL, execution_id, force=True)
        execution = await home.ended(execution_id)
    assert execution.outcome is not None
    assert execution.outcome.signal == 9


async def test_another_principal_is_told_not_found_everywhere(house: OpenHouse) -> None:
    other = Principal("other")
    async with house({"slow": SLOW}) as home:
        execution_id = await home.submit("slow", interactive=True)
        unknown = new_execution_id(home.clock.now())
        for one in (execution_id, unknown):
            for call in (
                home.service.get(other, one),
                home.service.read(other, one),
                home.service.read_ends(other, one),
                home.service.wait(other, one, timeout_seconds=1),
                home.service.send_input(other, one, b"x"),
                home.service.cancel(other, one),
            ):
                with pytest.raises(ExecutionNotFound):
                    await call
        assert not (await home.service.list_page(other)).executions
        assert not (await home.service.get(LOCAL_PRINCIPAL, execution_id)).is_terminal


async def test_draining_admits_nothing_finishes_what_it_can_and_ends_the_rest(house: OpenHouse) -> None:
    quick = Script(steps=[Pause(3)])
    async with house({"quick": quick, "stubborn": STUBBORN}) as home:
        first, second = await home.submit("quick"), await home.submit("stubborn")
        await home.started(2)
        home.service.drain()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: home.supervisor.drain(grace_seconds=1e6))
            with pytest.raises(ServerDraining):
                await home.submit("quick")
            await home.clock.advance(3.1)
            one = await home.ended(first)
            home.supervisor.hurry()
        two = await home.service.get(LOCAL_PRINCIPAL, second)
        assert home.runner.running == 0
    assert one.status is ExecutionStatus.COMPLETED
    assert two.status is ExecutionStatus.CANCELLED
    assert two.outcome is not None
    assert "shutting down" in str(two.outcome.message)


async def test_input_that_is_not_read_is_bounded(house: OpenHouse) -> None:
    async with house({"deaf": Script(steps=[Pause(1000)], reads_input=False)}) as home:
        execution_id = await home.submit("deaf", interactive=True)
        await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"x" * (1 << 20))
        with pytest.raises(InputFull):
            await home.service.send_input(LOCAL_PRINCIPAL, execution_id, b"x")


async def test_stderr_and_stdout_are_kept_apart(house: OpenHouse) -> None:
    script = Script(steps=[Print(b"o"), Print(b"e", Stream.STDERR), Print("ü".encode()[:1]), Print("ü".encode()[1:])])
    async with house({"x": script}) as home:
        execution_id = await home.submit("x")
        await home.ended(execution_id)
        events = await home.events(execution_id)
    out = b"".join(event.data for event in events if event.kind is EventKind.STDOUT)
    assert out == "oü".encode()
    for event in events:
        event.data.decode()
