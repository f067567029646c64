"""LocalControlChannel keeps the ControlChannel contract, and what it adds to it."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest

from sandbox_adapters.control.local import LocalControlChannel
from sandbox_core.domain.errors import ClaimRefused, OwnerUnreachable
from sandbox_core.domain.ids import ExecutionId, new_execution_id
from sandbox_core.ports.control import Cancel, ControlAnswer, ControlChannel, ControlMessage, SendInput
from sandbox_core.testing.control_contract import ControlChannelContract, ControlChannels, Recorder


@pytest.fixture
def execution_id() -> ExecutionId:
    return new_execution_id(datetime.now(UTC))


def satisfies_the_port(channel: LocalControlChannel) -> ControlChannel:
    """Checked by mypy."""
    return channel


class TestLocalControlChannel(ControlChannelContract):
    @pytest.fixture
    def channels(self, answer_seconds: float) -> ControlChannels:
        channel = LocalControlChannel(answer_timeout_seconds=answer_seconds)
        return ControlChannels(channel, channel)


@pytest.mark.anyio
class TestBeyondTheContract:
    async def test_a_second_owner_is_refused_and_the_first_stays(self, execution_id: ExecutionId) -> None:
        channel, first = LocalControlChannel(), Recorder()
        async with channel.own(execution_id, first):
            with pytest.raises(ClaimRefused):
                async with channel.own(execution_id, Recorder()):
                    pytest.fail("two owners")
            assert await channel.tell(execution_id, Cancel()) is ControlAnswer.DELIVERED
        assert first.heard == [Cancel()]

    async def test_a_failing_handler_is_unreachable_and_its_run_goes_on(self, execution_id: ExecutionId) -> None:
        channel = LocalControlChannel()

        async def fail(message: ControlMessage) -> ControlAnswer:
            raise ZeroDivisionError(message)

        async with channel.own(execution_id, fail):
            for _ in range(2):
                with pytest.raises(OwnerUnreachable) as caught:
                    await channel.tell(execution_id, Cancel())
                assert isinstance(caught.value.__cause__, ZeroDivisionError)

    async def test_a_message_that_was_given_up_unhandled_is_dropped(self, execution_id: ExecutionId) -> None:
        channel, recorder = LocalControlChannel(answer_timeout_seconds=1), Recorder()
        recorder.hold()

        async def tell(data: bytes) -> None:
            with pytest.raises(OwnerUnreachable):
                await channel.tell(execution_id, SendInput(data))

        async with channel.own(execution_id, recorder):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tell, b"1")
                await recorder.entered.wait()
                tasks.start_soon(tell, b"2")
            recorder.may_go.set()
            assert await channel.tell(execution_id, SendInput(b"3")) is ControlAnswer.DELIVERED
        assert recorder.heard == [SendInput(b"1"), SendInput(b"3")]
