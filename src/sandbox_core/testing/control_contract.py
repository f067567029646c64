"""The contract suite of ControlChannel.

To test a channel of your own, subclass and give it one fixture:

    class TestMyChannel(ControlChannelContract):
        @pytest.fixture
        async def channels(self, anyio_backend, answer_seconds):
            ...
            yield ControlChannels(sender, receiver)     # twice the same object when both are one

Give both `answer_seconds` as the bound on an owner's answer: long, and short for the one test that waits for it. The
tests are async and marked `anyio`; the `anyio_backend` fixture chooses asyncio or trio.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import pytest

from sandbox_core.domain.errors import OwnerUnreachable
from sandbox_core.domain.ids import ExecutionId, new_execution_id
from sandbox_core.ports.control import Cancel, ControlAnswer, ControlChannel, ControlMessage, SendInput

_BOUND_SECONDS = 60


@dataclass(frozen=True, slots=True)
class ControlChannels:
    """A channel that sends and one that owns; on two nodes for a remote channel."""

    sender: ControlChannel
    receiver: ControlChannel


class Recorder:
    """A handler that keeps what it was told and can be made to wait."""

    def __init__(self, answer: ControlAnswer = ControlAnswer.DELIVERED) -> None:
        self.answer = answer
        self.heard: list[ControlMessage] = []
        self.handling = 0
        self.most_at_once = 0
        self.entered = anyio.Event()
        self.may_go = anyio.Event()
        self.may_go.set()

    async def __call__(self, message: ControlMessage) -> ControlAnswer:
        self.handling += 1
        self.most_at_once = max(self.most_at_once, self.handling)
        self.entered.set()
        try:
            await anyio.lowlevel.checkpoint()
            await self.may_go.wait()
            self.heard.append(message)
        finally:
            self.handling -= 1
        return self.answer

    def hold(self) -> None:
        """Make every message wait until `may_go` is set."""
        self.may_go = anyio.Event()


@pytest.mark.anyio
class ControlChannelContract:
    """Everything that a ControlChannel promises. See the module's text for how to use it."""

    @pytest.fixture
    def execution_id(self) -> ExecutionId:
        """A fresh id for each test."""
        return new_execution_id(datetime.now(UTC))

    @pytest.fixture
    def answer_seconds(self) -> float:
        """How long a sender waits for an owner's answer."""
        return _BOUND_SECONDS

    async def test_nobody_owns_an_unknown_execution(self, channels: ControlChannels, execution_id: ExecutionId) -> None:
        with anyio.fail_after(_BOUND_SECONDS):
            assert await channels.sender.tell(execution_id, Cancel()) is ControlAnswer.NO_OWNER

    @pytest.mark.parametrize("answer", list(ControlAnswer))
    async def test_the_answer_is_the_owners(
        self, channels: ControlChannels, execution_id: ExecutionId, answer: ControlAnswer
    ) -> None:
        with anyio.fail_after(_BOUND_SECONDS):
            async with channels.receiver.own(execution_id, Recorder(answer)):
                assert await channels.sender.tell(execution_id, Cancel()) is answer

    @pytest.mark.parametrize(
        "message",
        [Cancel(), Cancel(force=True), SendInput(), SendInput(bytes(range(256)) * 4), SendInput(b"", end=True)],
        ids=lambda message: type(message).__name__,
    )
    async def test_a_message_arrives_as_it_was_sent(
        self, channels: ControlChannels, execution_id: ExecutionId, message: ControlMessage
    ) -> None:
        recorder = Recorder()
        with anyio.fail_after(_BOUND_SECONDS):
            async with channels.receiver.own(execution_id, recorder):
                await channels.sender.tell(execution_id, message)
        assert recorder.heard == [message]

    async def test_messages_arrive_in_order_each_once(
        self, channels: ControlChannels, execution_id: ExecutionId
    ) -> None:
        recorder = Recorder()
        sent = [SendInput(b"%d" % number) for number in range(50)]
        with anyio.fail_after(_BOUND_SECONDS):
            async with channels.receiver.own(execution_id, recorder):
                for message in sent:
                    await channels.sender.tell(execution_id, message)
        assert recorder.heard == sent

    async def test_messages_are_handled_one_at_a_time(
        self, channels: ControlChannels, execution_id: ExecutionId
    ) -> None:
        recorder = Recorder()
        answers: list[ControlAnswer] = []

        async def tell(message: ControlMessage) -> None:
            answers.append(await channels.sender.tell(execution_id, message))

        with anyio.fail_after(_BOUND_SECONDS):
            async with channels.receiver.own(execution_id, recorder), anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(tell, SendInput(b"%d" % number))
        assert recorder.most_at_once == 1
        assert answers == [ControlAnswer.DELIVERED] * 20
        assert {message.data for message in recorder.heard if isinstance(message, SendInput)} == {
            b"%d" % number for number in range(20)
        }

    async def test_each_owner_hears_only_its_own(self, channels: ControlChannels) -> None:
        now = datetime.now(UTC)
        ids = [new_execution_id(now) for _ in range(3)]
        recorders = [Recorder() for _ in ids]
        with anyio.fail_after(_BOUND_SECONDS):
            async with (
                channels.receiver.own(ids[0], recorders[0]),
                channels.receiver.own(ids[1], recorders[1]),
                channels.receiver.own(ids[2], recorders[2]),
            ):
                for execution_id in reversed(ids):
                    await channels.sender.tell(execution_id, SendInput(execution_id.encode()))
        assert [recorder.heard for recorder in recorders] == [[SendInput(name.encode())] for name in ids]

    async def test_a_slow_owner_holds_up_no_other(self, channels: ControlChannels) -> None:
        slow_id, quick_id = (new_execution_id(datetime.now(UTC)) for _ in range(2))
        slow, quick = Recorder(), Recorder()
        slow.hold()
        with anyio.fail_after(_BOUND_SECONDS):
            async with (
                channels.receiver.own(slow_id, slow),
                channels.receiver.own(quick_id, quick),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(channels.sender.tell, slow_id, Cancel())
                await slow.entered.wait()
                assert await channels.sender.tell(quick_id, Cancel()) is ControlAnswer.DELIVERED
                slow.may_go.set()

    async def test_an_owner_that_left_is_no_owner(self, channels: ControlChannels, execution_id: ExecutionId) -> None:
        recorder = Recorder()
        with anyio.fail_after(_BOUND_SECONDS):
            async with channels.receiver.own(execution_id, recorder):
                await channels.sender.tell(execution_id, Cancel())
            assert await channels.sender.tell(execution_id, Cancel()) is ControlAnswer.NO_OWNER
            async with channels.receiver.own(execution_id, recorder):
                assert await channels.sender.tell(execution_id, Cancel()) is ControlAnswer.DELIVERED
        assert len(recorder.heard) == 2

    async def test_an_owner_that_leaves_answers_whoever_waits(
        self, channels: ControlChannels, execution_id: ExecutionId
    ) -> None:
        recorder = Recorder()
        recorder.hold()
        answers: list[ControlAnswer] = []

        async def tell() -> None:
            answers.append(await channels.sender.tell(execution_id, Cancel()))

        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks, channels.receiver.own(execution_id, recorder):
                for _ in range(3):
                    tasks.start_soon(tell)
                await recorder.entered.wait()
        assert answers == [ControlAnswer.NO_OWNER] * 3
        assert recorder.heard == []

    @pytest.mark.parametrize("answer_seconds", [1.0])
    async def test_an_owner_that_does_not_answer_is_unreachable(
        self, channels: ControlChannels, execution_id: ExecutionId
    ) -> None:
        recorder = Recorder()
        recorder.hold()
        with anyio.fail_after(_BOUND_SECONDS):
            async with channels.receiver.own(execution_id, recorder):
                with pytest.raises(OwnerUnreachable):
                    await channels.sender.tell(execution_id, SendInput(b"1"))
                recorder.may_go.set()
                while not recorder.heard:
                    await anyio.lowlevel.checkpoint()
                await channels.sender.tell(execution_id, SendInput(b"2"))
        assert recorder.heard == [SendInput(b"1"), SendInput(b"2")]

    async def test_a_sender_that_gives_up_leaves_the_channel_in_order(
        self, channels: ControlChannels, execution_id: ExecutionId
    ) -> None:
        recorder = Recorder()
        recorder.hold()
        with anyio.fail_after(_BOUND_SECONDS):
            async with channels.receiver.own(execution_id, recorder):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(channels.sender.tell, execution_id, SendInput(b"1"))
                    await recorder.entered.wait()
                    tasks.cancel_scope.cancel()
                recorder.may_go.set()
                assert await channels.sender.tell(execution_id, SendInput(b"2")) is ControlAnswer.DELIVERED
        assert recorder.heard[-1] == SendInput(b"2")
        assert recorder.heard.count(SendInput(b"1")) <= 1
        assert recorder.most_at_once == 1

    async def test_an_error_of_the_owner_passes_as_it_is(
        self, channels: ControlChannels, execution_id: ExecutionId
    ) -> None:
        with anyio.fail_after(_BOUND_SECONDS):
            with pytest.raises(ZeroDivisionError):
                async with channels.receiver.own(execution_id, Recorder()):
                    raise ZeroDivisionError
            assert await channels.sender.tell(execution_id, Cancel()) is ControlAnswer.NO_OWNER

    async def test_an_owner_can_be_cancelled(self, channels: ControlChannels, execution_id: ExecutionId) -> None:
        entered = anyio.Event()

        async def own() -> None:
            async with channels.receiver.own(execution_id, Recorder()):
                entered.set()
                await anyio.sleep_forever()

        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(own)
                await entered.wait()
                tasks.cancel_scope.cancel()
            assert await channels.sender.tell(execution_id, Cancel()) is ControlAnswer.NO_OWNER
