"""StateStore contract: documents, idempotency keys, discard, and data that is corrupt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import Denial, DenialKind
from sandbox_core.domain.errors import ExecutionNotFound, InvalidArgument, StoredDataCorrupt
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.ids import ExecutionId, Principal, SessionId
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import Outcome, ResourceUsage, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, IsolationPolicy, NetworkPolicy, ResourceLimits
from sandbox_core.ports.store import ListQuery
from sandbox_core.testing.samples import NODE, ended, pending, printed
from sandbox_core.testing.store_harness import StoreHarness

_RICH_COMMAND = Command(
    shell="printf '%s' \"$NAME\" | tee out; # żółć \U0001f600",
    working_directory="sub/dir",
    environment={"NAME": "zażółć\n\t\x01", "EMPTY": ""},
    stdin=bytes(range(256)),
    interactive=True,
)
_RICH_POLICY = ExecutionPolicy(
    network=NetworkPolicy(("*.example.com",), ("bad.example.com",)),
    filesystem=FilesystemPolicy(("/etc/secret",), (".", "/tmp"), ("keep",), ("/opt",)),  # noqa: S108  # a value, not a file
    resource_limits=ResourceLimits(max_memory_mb=64, max_processes=5, timeout_seconds=1.5, idle_timeout_seconds=2),
    isolation=IsolationPolicy(("seccomp", "pid")),
)


@pytest.mark.anyio
class DocumentContract:
    """What is stored comes back, shares nothing, and is never taken for absent when it is damaged."""

    async def test_an_execution_is_loaded_as_it_was_created(self, harness: StoreHarness) -> None:
        execution = pending(
            harness.clock,
            principal=Principal("alice@example.com"),
            session_id=SessionId("s:1"),
            command=_RICH_COMMAND,
            policy=_RICH_POLICY,
        )
        assert await harness.store.create(execution) == execution
        assert await harness.store.load(execution.id) == execution

    @pytest.mark.parametrize("stdin", [b"", b"text\n", "żółć".encode(), b"\xff\x00", b"YQ=="])
    async def test_standard_input_is_kept_byte_for_byte(self, harness: StoreHarness, stdin: bytes) -> None:
        execution = pending(harness.clock, command=Command(argv=("cat", "-"), stdin=stdin))
        await harness.store.create(execution)
        assert (await harness.store.load(execution.id)).command.stdin == stdin

    async def test_every_field_of_a_finished_execution_is_kept(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        running = claim.execution.apply(
            claim.execution.prepare(
                Isolation("r", "1.2", True, "none", 65534, ("pid", "mount"), {"max_processes": "x"})
            )
        )
        usage = ResourceUsage(1.25, 0.5, 0.25, 4096, 10, 20, 5, 0.125, 0.0625, 8192, 3, 1 << 40, 0)
        denials = (Denial(DenialKind.NETWORK, "é.example:443", "network.allowed_domains", "It is not allowed.", 7),)
        outcome = Outcome(TerminationReason.SIGNALED, 137, 9, "killed — by SIGKILL", usage, denials, 11)
        final = ended(running, harness.clock, outcome)
        await harness.store.append(claim.lease, [], running)
        assert await harness.store.load(execution.id) == running
        await harness.store.append(claim.lease, [], final)
        assert await harness.store.load(execution.id) == final

    async def test_what_could_not_be_read_again_is_not_stored(self, harness: StoreHarness) -> None:
        wrong: Any = "of another type"
        with pytest.raises(InvalidArgument):
            await harness.store.create(replace(pending(harness.clock), retry_safe=wrong))
        await harness.store.create(execution := pending(harness.clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        final = ended(claim.execution, harness.clock, Outcome(TerminationReason.EXITED, wrong))
        with pytest.raises(InvalidArgument):
            await harness.store.append(claim.lease, [printed(harness.clock, b"a")], final)
        page = await harness.store.list_page(ListQuery(execution.principal))
        assert page.executions == (claim.execution,)
        assert (await harness.store.read(execution.id)).events == ()

    async def test_what_the_caller_changes_later_changes_nothing_stored(self, harness: StoreHarness) -> None:
        environment = {"A": "1"}
        execution = pending(harness.clock, command=Command(argv=("true",), environment=environment))
        returned = await harness.store.create(execution)
        environment["A"] = "changed"
        for held in (returned, await harness.store.load(execution.id)):
            assert held.command.environment == {"A": "1"}
            held.command.environment["A"] = "changed"  # type: ignore[index]  # a caller that breaks the rules
        assert (await harness.store.load(execution.id)).command.environment == {"A": "1"}

    async def test_a_key_used_again_returns_the_first_and_stores_nothing(self, harness: StoreHarness) -> None:
        first, second = pending(harness.clock), pending(harness.clock)
        assert await harness.store.create(first, idempotency_key="k") == first
        assert await harness.store.create(second, idempotency_key="k") == first
        with pytest.raises(ExecutionNotFound):
            await harness.store.load(second.id)

    async def test_a_key_returns_the_first_as_it_is_now(self, harness: StoreHarness) -> None:
        await harness.store.create(first := pending(harness.clock), idempotency_key="k")
        claim = await harness.store.claim(first.id, NODE, lease_seconds=15)
        assert await harness.store.create(pending(harness.clock), idempotency_key="k") == claim.execution

    async def test_keys_of_two_principals_are_apart(self, harness: StoreHarness) -> None:
        first = pending(harness.clock, principal=Principal("a"))
        second = pending(harness.clock, principal=Principal("b"))
        await harness.store.create(first, idempotency_key="k")
        assert await harness.store.create(second, idempotency_key="k") == second

    async def test_an_execution_that_is_not_pending_or_exists_cannot_be_created(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock))
        with pytest.raises(InvalidArgument):
            await harness.store.create(execution)
        other = pending(harness.clock)
        with pytest.raises(InvalidArgument):
            await harness.store.create(other.apply(other.start(NODE, harness.clock.now())))
        with pytest.raises(ExecutionNotFound):
            await harness.store.load(other.id)

    async def test_discard_forgets_a_pending_execution_and_its_key(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock), idempotency_key="k")
        await harness.store.discard(execution.id)
        await harness.store.discard(execution.id)
        with pytest.raises(ExecutionNotFound):
            await harness.store.load(execution.id)
        assert (await harness.store.list_page(ListQuery(execution.principal))).executions == ()
        assert await harness.store.create(again := pending(harness.clock), idempotency_key="k") == again

    async def test_discard_leaves_what_another_call_was_given_by_its_key(self, harness: StoreHarness) -> None:
        await harness.store.create(first := pending(harness.clock), idempotency_key="k")
        assert await harness.store.create(pending(harness.clock), idempotency_key="k") == first
        await harness.store.discard(first.id)
        assert await harness.store.load(first.id) == first
        assert await harness.store.create(pending(harness.clock), idempotency_key="k") == first

    async def test_discard_leaves_a_claimed_execution_alone(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        await harness.store.discard(execution.id)
        assert await harness.store.load(execution.id) == claim.execution

    async def test_an_unknown_execution_is_not_found(self, harness: StoreHarness) -> None:
        store, unknown = harness.store, pending(harness.clock)
        for call in (
            store.load(unknown.id),
            store.claim(unknown.id, NODE, lease_seconds=1),
            store.seize(unknown.id, NODE, lease_seconds=1),
            store.finish_unclaimed(unknown, []),
            store.read(unknown.id),
            store.read_last(unknown.id),
            store.wait(unknown.id, after=0),
        ):
            with pytest.raises(ExecutionNotFound):
                await call

    async def test_the_store_answers_a_ping(self, harness: StoreHarness) -> None:
        await harness.store.ping()

    async def test_a_stored_document_is_versioned_json(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock, command=Command(shell="echo żółć")))
        raw = await harness.raw_read(execution.id)
        document = json.loads(raw.document)
        assert document["v"] == 3
        assert document["execution"]["id"] == execution.id
        assert document["execution"]["status"] == "pending"
        assert "echo żółć" in raw.document.decode()

    async def test_a_document_written_by_another_hand_is_read(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock, command=Command(shell="one")))
        document = json.loads((await harness.raw_read(execution.id)).document)
        document["execution"]["command"] |= {"shell": "two", "stdin": "/wA=", "environment": {"K": "ż"}}
        document["stdin_encoding"] = "base64"
        await harness.raw_write(execution.id, document=json.dumps(document, indent=2).encode())
        command = (await harness.store.load(execution.id)).command
        assert command == Command(shell="two", stdin=b"\xff\x00", environment={"K": "ż"})

    async def test_stored_lines_are_json_that_people_can_read(self, harness: StoreHarness) -> None:
        clock = harness.clock
        await harness.store.create(execution := pending(clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        await harness.store.append(claim.lease, [printed(clock, "żółć\n".encode(), n=1), printed(clock, b"\xff\x00")])
        text, binary = (json.loads(line) for line in (await harness.raw_read(execution.id)).lines)
        at = clock.now().isoformat()
        assert text == {"v": 1, "seq": 1, "type": "stdout", "ts": at, "data": "żółć\n", "fields": {"n": 1}}
        assert binary == {"v": 1, "seq": 2, "type": "stdout", "ts": at, "data": "/wA=", "encoding": "base64"}

    async def test_a_line_written_by_another_hand_is_read(self, harness: StoreHarness) -> None:
        clock = harness.clock
        await harness.store.create(execution := pending(clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        await harness.store.append(claim.lease, [printed(clock, b"one"), printed(clock, b"two")])
        at = clock.now().isoformat()
        written = {"seq": 2, "data": "/wA=", "v": 1, "encoding": "base64", "type": "stderr", "ts": at}
        await harness.raw_write(execution.id, lines={2: json.dumps(written).encode()})
        page = await harness.store.read(execution.id, after=1)
        assert page.events == (OutputEvent(2, EventKind.STDERR, clock.now(), b"\xff\x00"),)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda _: b"",
            lambda _: b"\xff\xfe",
            lambda document: json.dumps(document).encode()[:-1],
            lambda _: b"null",
            lambda document: json.dumps(document | {"v": 99}).encode(),
            lambda document: json.dumps({"execution": document["execution"]}).encode(),
            lambda document: json.dumps(document | {"more": 1}).encode(),
            lambda document: json.dumps(document | {"execution": document["execution"] | {"more": 1}}).encode(),
            lambda document: json.dumps(document | {"execution": document["execution"] | {"status": "odd"}}).encode(),
            lambda document: json.dumps(document | {"execution": document["execution"] | {"node": 5}}).encode(),
            lambda document: json.dumps(document).replace(document["execution"]["id"][:8], "00000000").encode(),
        ],
        ids=[
            "empty",
            "not-utf8",
            "cut",
            "null",
            "version",
            "no-version",
            "extra",
            "inner-extra",
            "status",
            "type",
            "id",
        ],
    )
    async def test_a_damaged_document_is_corrupt_never_absent(self, harness: StoreHarness, damage: object) -> None:
        assert callable(damage)
        await harness.store.create(execution := pending(harness.clock))
        document = json.loads((await harness.raw_read(execution.id)).document)
        await harness.raw_write(execution.id, document=damage(document))
        for call in (
            harness.store.load(execution.id),
            harness.store.read(execution.id),
            harness.store.list_page(ListQuery(execution.principal)),
            harness.store.claim(execution.id, NODE, lease_seconds=15),
        ):
            with pytest.raises(StoredDataCorrupt):
                await call

    @pytest.mark.parametrize(
        "change",
        [
            {"v": 2}, {"v": None}, {"v": True}, {"seq": 1}, {"seq": "2"}, {"type": "odd"}, {"type": ["exit"]},
            {"ts": "yesterday"}, {"ts": 5}, {"ts": "2026-01-01T00:00:00"}, {"data": 5}, {"data": None},
            {"encoding": "rot13"}, {"encoding": "base64", "data": "?"}, {"fields": []}, {"fields": {"a": []}},
            {"more": 1},
        ],
        ids=str,
    )  # fmt: skip
    async def test_a_damaged_line_is_corrupt(self, harness: StoreHarness, change: dict[str, object]) -> None:
        execution_id = await _logged(harness)
        line = json.loads((await harness.raw_read(execution_id)).lines[1])
        await harness.raw_write(execution_id, lines={2: json.dumps(line | change).encode()})
        await _second_line_is_corrupt(harness, execution_id)

    @pytest.mark.parametrize("line", [b"", b"{", b"[]", b"null", b'"text"', b"\xff", b'{"v":1}'], ids=repr)
    async def test_a_line_that_is_no_event_is_corrupt(self, harness: StoreHarness, line: bytes) -> None:
        execution_id = await _logged(harness)
        await harness.raw_write(execution_id, lines={2: line})
        await _second_line_is_corrupt(harness, execution_id)


async def _logged(harness: StoreHarness) -> ExecutionId:
    await harness.store.create(execution := pending(harness.clock))
    claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
    await harness.store.append(claim.lease, [printed(harness.clock, data) for data in (b"one", b"two", b"three")])
    return execution.id


async def _second_line_is_corrupt(harness: StoreHarness, execution_id: ExecutionId) -> None:
    with pytest.raises(StoredDataCorrupt):
        await harness.store.read(execution_id)
    with pytest.raises(StoredDataCorrupt):
        await harness.store.read_last(execution_id)
    assert [event.data for event in (await harness.store.read(execution_id, after=2)).events] == [b"three"]
