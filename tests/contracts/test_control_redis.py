"""RedisControlChannel keeps the ControlChannel contract between two nodes, and what it adds to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import anyio
import pytest
from pydantic import SecretStr

from sandbox_adapters.control.redis import INBOX_SECONDS, MAX_WAITING, RedisControlChannel
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_core.domain.errors import OwnerUnreachable, StoredDataCorrupt, StoreUnavailable
from sandbox_core.domain.ids import ExecutionId, NodeId, new_execution_id
from sandbox_core.ports.control import Cancel, ControlAnswer, ControlChannel, ControlMessage, Handler, SendInput
from sandbox_core.testing.control_contract import ControlChannelContract, ControlChannels, Recorder
from tests.redis_server import RedisServer

PATIENCE_SECONDS = 60


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def execution_id() -> ExecutionId:
    return new_execution_id(datetime.now(UTC))


def satisfies_the_port(channel: RedisControlChannel) -> ControlChannel:
    """Checked by mypy."""
    return channel


class Nodes:
    """Channels of several nodes on one Redis, and the claims that a store would keep."""

    def __init__(self, server: RedisServer, stack: AsyncExitStack, redis_seconds: float = PATIENCE_SECONDS) -> None:
        self.server = server
        self.redis_seconds = redis_seconds
        self.claims: dict[ExecutionId, NodeId] = {}
        self._stack = stack

    async def locate(self, execution_id: ExecutionId) -> NodeId | None:
        return self.claims.get(execution_id)

    async def node(self, name: str, *, timeout: float = PATIENCE_SECONDS) -> Claiming:
        options = RedisOptions(SecretStr(self.server.url), prefix="test", timeout_seconds=self.redis_seconds)
        connection = await self._stack.enter_async_context(RedisConnection(options))
        channel = RedisControlChannel(
            connection=connection, node=NodeId(name), locate=self.locate, answer_timeout_seconds=timeout
        )
        await self._stack.enter_async_context(channel)
        return Claiming(channel, NodeId(name), self.claims)


class Claiming:
    """A channel whose owners claim when they begin to own, as the supervisor does."""

    def __init__(self, channel: RedisControlChannel, node: NodeId, claims: dict[ExecutionId, NodeId]) -> None:
        self.tell = channel.tell
        self._channel = channel
        self._node = node
        self._claims = claims

    def own(self, execution_id: ExecutionId, handler: Handler) -> AbstractAsyncContextManager[None]:
        return self._own(execution_id, handler)

    @asynccontextmanager
    async def _own(self, execution_id: ExecutionId, handler: Handler) -> AsyncIterator[None]:
        async with self._channel.own(execution_id, handler):
            self._claims[execution_id] = self._node
            yield


@pytest.fixture
async def nodes(anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        yield Nodes(redis_server, stack)


class TestBetweenTwoNodes(ControlChannelContract):
    @pytest.fixture
    async def channels(self, nodes: Nodes, answer_seconds: float) -> ControlChannels:
        sender, receiver = [await nodes.node(name, timeout=answer_seconds) for name in ("sender", "receiver")]
        return ControlChannels(sender, receiver)


class TestWithinOneNode(ControlChannelContract):
    @pytest.fixture
    async def channels(self, nodes: Nodes, answer_seconds: float) -> ControlChannels:
        both = await nodes.node("both", timeout=answer_seconds)
        return ControlChannels(both, both)


@pytest.mark.anyio
class TestBeyondTheContract:
    async def test_an_owner_far_away_costs_redis_nothing(self, nodes: Nodes, execution_id: ExecutionId) -> None:
        receiver = await nodes.node("receiver")
        await _inbox_is_watched(nodes, "receiver")
        before = nodes.server.ask("INFO", "commandstats")
        async with receiver.own(execution_id, Recorder()):
            pass
        after = nodes.server.ask("INFO", "commandstats")
        assert _calls(after) - _calls(before) == 0

    async def test_nothing_stays_without_a_time_to_live(self, nodes: Nodes, execution_id: ExecutionId) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        recorder = Recorder()
        recorder.hold()
        async with receiver.own(execution_id, recorder), anyio.create_task_group() as tasks:
            tasks.start_soon(sender.tell, execution_id, Cancel())
            await recorder.entered.wait()
            keys = nodes.server.ask("KEYS", "*")
            assert keys
            for key in keys:
                assert key.startswith(b"test:control:")
                assert 0 < nodes.server.ask("PTTL", key) <= INBOX_SECONDS * 1000
            recorder.may_go.set()

    async def test_a_message_that_was_given_up_unhandled_is_dropped(
        self, nodes: Nodes, execution_id: ExecutionId
    ) -> None:
        sender, receiver = await nodes.node("sender", timeout=1), await nodes.node("receiver")
        recorder = Recorder()
        recorder.hold()

        async def tell(data: bytes) -> None:
            with pytest.raises(OwnerUnreachable):
                await sender.tell(execution_id, SendInput(data))

        with anyio.fail_after(PATIENCE_SECONDS):
            async with receiver.own(execution_id, recorder):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(tell, b"1")
                    await recorder.entered.wait()
                    tasks.start_soon(tell, b"2")
                recorder.may_go.set()
                assert await sender.tell(execution_id, SendInput(b"3")) is ControlAnswer.DELIVERED
        assert recorder.heard == [SendInput(b"1"), SendInput(b"3")]

    async def test_messages_told_at_once_arrive_in_the_order_of_their_telling(
        self, nodes: Nodes, execution_id: ExecutionId
    ) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        recorder = Recorder()
        with anyio.fail_after(PATIENCE_SECONDS):
            async with receiver.own(execution_id, recorder), anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(sender.tell, execution_id, SendInput(b"%d" % number))
        assert recorder.heard == [SendInput(b"%d" % number) for number in range(100)]

    async def test_a_mebibyte_of_any_bytes_arrives(self, nodes: Nodes, execution_id: ExecutionId) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        recorder, message = Recorder(), SendInput(bytes(range(256)) * 4096)
        async with receiver.own(execution_id, recorder):
            assert await sender.tell(execution_id, message) is ControlAnswer.DELIVERED
        assert recorder.heard == [message]

    async def test_a_failing_handler_is_unreachable_and_its_run_goes_on(
        self, nodes: Nodes, execution_id: ExecutionId
    ) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")

        async def fail(message: ControlMessage) -> ControlAnswer:
            raise ZeroDivisionError(message)

        with anyio.fail_after(PATIENCE_SECONDS):
            async with receiver.own(execution_id, fail):
                for _ in range(2):
                    with pytest.raises(OwnerUnreachable):
                        await sender.tell(execution_id, Cancel())

    async def test_a_node_that_is_gone_is_unreachable_within_the_bound(
        self, nodes: Nodes, execution_id: ExecutionId
    ) -> None:
        sender = await nodes.node("sender", timeout=0.2)
        nodes.claims[execution_id] = NodeId("gone")
        with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(OwnerUnreachable):
            await sender.tell(execution_id, Cancel())
        assert nodes.server.ask("KEYS", "*message*") == []

    async def test_an_inbox_that_nobody_empties_is_bounded(self, nodes: Nodes, execution_id: ExecutionId) -> None:
        sender = await nodes.node("sender")
        nodes.claims[execution_id] = NodeId("gone")
        nodes.server.ask("RPUSH", "test:control:gone:inbox", *[b"x"] * MAX_WAITING)
        with anyio.fail_after(PATIENCE_SECONDS / 2), pytest.raises(OwnerUnreachable):
            await sender.tell(execution_id, Cancel())
        assert nodes.server.ask("LLEN", "test:control:gone:inbox") == MAX_WAITING

    async def test_a_hostile_node_name_reaches_no_other_key(self, nodes: Nodes, execution_id: ExecutionId) -> None:
        sender = await nodes.node("sender", timeout=0.1)
        nodes.server.ask("SET", "execution:1", b"precious")
        nodes.claims[execution_id] = NodeId("x:inbox\r\nDEL execution:1 {a}")
        with pytest.raises(OwnerUnreachable):
            await sender.tell(execution_id, Cancel())
        assert nodes.server.ask("GET", "execution:1") == b"precious"
        assert all(key.count(b":") == 3 for key in nodes.server.ask("KEYS", "test:control:*"))

    @pytest.mark.parametrize(
        "poison",
        [b"", b"\xff", b"null", b"{}", b'{"v":2,"type":"reply"}', b'{"v":1,"type":"request","token":"../x"}'],
    )
    async def test_a_poisoned_inbox_harms_nothing_else(
        self, nodes: Nodes, execution_id: ExecutionId, poison: bytes
    ) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        nodes.server.ask("RPUSH", "test:control:receiver:inbox", poison)
        async with receiver.own(execution_id, Recorder()):
            assert await sender.tell(execution_id, Cancel()) is ControlAnswer.DELIVERED

    @pytest.mark.parametrize("poison", [b"\xff", b"null", b'{"v":1,"type":"input","data":"%","end":false}'])
    async def test_a_poisoned_message_is_handled_by_nobody(
        self, nodes: Nodes, execution_id: ExecutionId, poison: bytes
    ) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        recorder, token = Recorder(), "0" * 32
        request = {"v": 1, "type": "request", "token": token, "execution_id": execution_id, "sender": "sender"}
        async with receiver.own(execution_id, recorder):
            nodes.server.ask("SET", f"test:control:receiver:message:{token}", poison, "EX", 60)
            nodes.server.ask("RPUSH", "test:control:receiver:inbox", json.dumps(request))
            assert await sender.tell(execution_id, Cancel()) is ControlAnswer.DELIVERED
        assert recorder.heard == [Cancel()]

    async def test_an_inbox_of_another_type_is_said_and_survived(
        self, nodes: Nodes, execution_id: ExecutionId, caplog: pytest.LogCaptureFixture
    ) -> None:
        nodes.server.ask("SET", "test:control:receiver:inbox", b"poison")
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        async with receiver.own(execution_id, Recorder()):
            with pytest.raises(StoredDataCorrupt):
                await sender.tell(execution_id, Cancel())
            nodes.server.ask("DEL", "test:control:receiver:inbox")
            assert await sender.tell(execution_id, Cancel()) is ControlAnswer.DELIVERED


@pytest.mark.anyio
class TestWhenRedisIsAway:
    @pytest.fixture
    async def nodes(self, anyio_backend: str, own_redis: RedisServer) -> AsyncIterator[Nodes]:
        async with AsyncExitStack() as stack:
            yield Nodes(own_redis, stack, redis_seconds=1)

    @pytest.mark.parametrize("how", ["stop", "kill"])
    async def test_a_restart_is_survived_and_said_meanwhile(
        self, nodes: Nodes, execution_id: ExecutionId, how: str
    ) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        with anyio.fail_after(PATIENCE_SECONDS * 2):
            async with receiver.own(execution_id, Recorder()):
                assert await sender.tell(execution_id, Cancel()) is ControlAnswer.DELIVERED
                getattr(nodes.server, how)()
                with pytest.raises(StoreUnavailable):
                    await sender.tell(execution_id, Cancel())
                await anyio.to_thread.run_sync(nodes.server.start)
                assert await sender.tell(execution_id, Cancel()) is ControlAnswer.DELIVERED

    async def test_a_paused_redis_is_waited_for_no_longer_than_the_bound(
        self, nodes: Nodes, execution_id: ExecutionId
    ) -> None:
        sender, receiver = await nodes.node("sender"), await nodes.node("receiver")
        recorder = Recorder()
        with anyio.fail_after(PATIENCE_SECONDS * 2):
            async with receiver.own(execution_id, recorder):
                nodes.server.pause()
                with pytest.raises((StoreUnavailable, OwnerUnreachable)):
                    await sender.tell(execution_id, SendInput(b"1"))
                nodes.server.resume()
                assert await sender.tell(execution_id, SendInput(b"2")) is ControlAnswer.DELIVERED
        assert recorder.heard[-1] == SendInput(b"2")
        assert recorder.heard.count(SendInput(b"1")) <= 1


async def _inbox_is_watched(nodes: Nodes, node: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while b"cmd=blpop" not in nodes.server.ask("CLIENT", "LIST"):  # noqa: ASYNC110  # Redis tells nobody
            await anyio.sleep(0.01)


def _calls(commandstats: object) -> int:
    """Every call but those of the test itself."""
    assert isinstance(commandstats, dict)
    own = {"cmdstat_info", "cmdstat_client|list", "cmdstat_client|setinfo"}
    return sum(entry["calls"] for name, entry in commandstats.items() if name not in own)
