"""RedisControlChannel: messages to the owners of executions on every node that shares a Redis.

Each node has one inbox, a list that it alone pops, blocking: nothing is polled. A sender puts the message under a key
of its own that expires with its patience, and its name into the inbox of the owner's node; the owner takes the message
when its turn has come, leaving the key empty, and pushes the answer into the sender's inbox. So a message is handled at
most once, and never after its sender was told OwnerUnreachable: the sender takes it back, or the key has expired by
Redis's own clock, whatever the clocks of the nodes say.

Owning costs Redis nothing: the node of an execution is found through `locate` when somebody tells it something. An
owner in this process is told without Redis. Keys are made of node ids and random names, never of callers' text.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final

import anyio
from redis.exceptions import RedisError

from sandbox_adapters.background import Background
from sandbox_adapters.control.local import LocalControlChannel
from sandbox_adapters.control.mailbox import Letter, Mailboxes
from sandbox_adapters.control.messages import (
    VERSION,
    Reply,
    Request,
    decode_entry,
    decode_message,
    encode_entry,
    encode_message,
)
from sandbox_adapters.redis_connection import LuaScript, RedisConnection, key_part
from sandbox_core.domain.errors import ExecutionNotFound, OwnerUnreachable, StoredDataCorrupt, StoreUnavailable
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.control import ControlAnswer, ControlMessage, Handler
from sandbox_core.ports.store import StateStore

Locate = Callable[[ExecutionId], Awaitable[NodeId | None]]
"""Finds the node that runs an execution; None when none does."""

INBOX_SECONDS: Final = 60
"""When an inbox that nobody empties is forgotten, after the last entry."""

MAX_WAITING: Final = 1000
"""Entries that wait in an inbox, and requests that a node works on, at most. Further ones are refused."""

POP_SECONDS: Final = 5
"""How long one blocking pop lasts, so that a connection that died silently is noticed."""

_LONGEST_PAUSE: Final = 1.0
_TAKE_BACK_SECONDS: Final = 0.5

_log = logging.getLogger("sandbox_adapters.control")

_SEND = LuaScript("""
-- KEYS: message, inbox. ARGV: message, its life in ms, entry, most entries, life of the inbox in s.
if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[4]) then return 0 end
if redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') then
  redis.call('RPUSH', KEYS[2], ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
return 1
""")

_TAKE = LuaScript("""
-- KEYS: message. What is left in it tells a repeated sending from a new one.
local message = redis.call('GET', KEYS[1])
if message and message ~= '' then redis.call('SET', KEYS[1], '', 'KEEPTTL') end
return message
""")

_REPLY = LuaScript("""
-- KEYS: inbox. ARGV: entry, life of the inbox in s.
redis.call('RPUSH', KEYS[1], ARGV[1])
return redis.call('EXPIRE', KEYS[1], ARGV[2])
""")


class RedisControlChannel(Background):
    """ControlChannel over Redis. Satisfies `ControlChannel` while its context lasts; asyncio only.

    Args:
        connection: entered before this and left after it.
        node: this process.
        locate: see Locate.
        answer_timeout_seconds: how long a sender waits for the owner's answer.
    """

    def __init__(
        self,
        *,
        connection: RedisConnection,
        node: NodeId,
        locate: Locate,
        answer_timeout_seconds: float = 5,
    ) -> None:
        super().__init__(self._listen)
        self._connection = connection
        self._node = node
        self._locate = locate
        self._answer_timeout = answer_timeout_seconds
        self._mailboxes = Mailboxes()
        self._local = LocalControlChannel(answer_timeout_seconds=answer_timeout_seconds, mailboxes=self._mailboxes)
        self._turns = _Turns()
        self._asked: dict[str, _Question] = {}
        self._working = 0

    def own(self, execution_id: ExecutionId, handler: Handler) -> AbstractAsyncContextManager[None]:
        """Receive this execution's messages while the context lasts; no word to Redis. See `Mailboxes.own`."""
        return self._mailboxes.own(execution_id, handler)

    async def tell(self, execution_id: ExecutionId, message: ControlMessage) -> ControlAnswer:
        """Deliver a message and return the owner's answer; NO_OWNER also when the owner leaves before it answers.

        Raises OwnerUnreachable also when the owner's handler fails or its inbox is full; StoreUnavailable when Redis
        does not answer.
        """
        if execution_id in self._mailboxes:
            return await self._local.tell(execution_id, message)
        question = _Question(secrets.token_hex(16), deadline=anyio.current_time() + self._answer_timeout)
        with anyio.CancelScope(deadline=question.deadline):
            # One at a time until each is in the inbox, so that messages arrive in the order in which they were told.
            async with self._turns.turn(execution_id):
                owner = await self._locate(execution_id)
                if owner is None or owner == self._node:
                    return await self._local.tell(execution_id, message)
                await self._put(question, owner, execution_id, message)
            await self._answer_to(question)
        if question.answer is None:
            raise OwnerUnreachable(execution_id)
        return question.answer

    async def _put(
        self, question: _Question, owner: NodeId, execution_id: ExecutionId, message: ControlMessage
    ) -> None:
        life = max(1, round((question.deadline - anyio.current_time()) * 1000))
        request = Request(v=VERSION, type="request", token=question.token, execution_id=execution_id, sender=self._node)
        question.key = self._message_key(owner, question.token)
        self._asked[question.token] = question
        try:
            room = await self._connection.run(
                _SEND,
                [question.key, self._inbox(owner)],
                [encode_message(message), life, encode_entry(request), MAX_WAITING, INBOX_SECONDS],
            )
        except BaseException:
            await self._take_back(question)
            raise
        if not room:
            del self._asked[question.token]
            raise OwnerUnreachable(execution_id)

    async def _answer_to(self, question: _Question) -> None:
        try:
            await question.settled.wait()
        finally:
            if question.settled.is_set():
                self._asked.pop(question.token, None)
            else:
                await self._take_back(question)

    async def _take_back(self, question: _Question) -> None:
        """See that a message nobody waits for is not handled later; when this fails, its key expires by itself."""
        self._asked.pop(question.token, None)
        with anyio.move_on_after(_TAKE_BACK_SECONDS, shield=True), suppress(StoreUnavailable):
            await self._connection.command("DEL", question.key)

    async def _listen(self) -> None:
        """Take mail out of this node's inbox as long as the channel is open, through every outage."""
        inbox = self._inbox(self._node)
        listener = self._connection.listener()
        pause = 0.0
        while True:
            try:
                # The client itself would wait for ever on a connection that died without a word.
                with anyio.fail_after(POP_SECONDS + self._connection.options.timeout_seconds):
                    popped = await listener.execute_command("BLPOP", inbox, POP_SECONDS)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            except (RedisError, OSError, TimeoutError) as error:
                if not pause:
                    _log.warning("the inbox of this node waits for Redis: %s", self._connection.explain(error))
                pause = min(max(0.05, pause * 2), _LONGEST_PAUSE)
                await anyio.sleep(pause)
                continue
            pause = 0.0
            if popped is not None:
                self._receive(popped[1])

    def _receive(self, raw: bytes) -> None:
        try:
            entry = decode_entry(raw)
        except StoredDataCorrupt as error:
            _log.warning("dropped: %s", error)
            return
        if entry["type"] == "reply":
            question = self._asked.get(entry["token"])
            if question is not None:
                question.settle(entry["answer"])
            return
        if self._working >= MAX_WAITING or self._tasks is None:
            _log.warning("dropped a message for %s: too many wait here", entry["execution_id"])
            return
        letter = Letter(lambda: self._open(entry))
        if not self._mailboxes.post(ExecutionId(entry["execution_id"]), letter):
            letter.settle(ControlAnswer.NO_OWNER)
        # In a task of the channel, since the owner's may be gone by the time of its answer.
        self._working += 1
        self._tasks.start_soon(self._reply, entry, letter)

    async def _open(self, request: Request) -> ControlMessage | None:
        raw = await self._connection.run(_TAKE, [self._message_key(self._node, request["token"])], [])
        return decode_message(raw) if raw else None

    async def _reply(self, request: Request, letter: Letter) -> None:
        try:
            await letter.settled.wait()
            if letter.error is not None:
                _log.warning("a message for %s was not handled", request["execution_id"], exc_info=letter.error)
            elif letter.answer is None:
                return  # taken back: nobody waits for an answer
            reply = encode_entry(Reply(v=VERSION, type="reply", token=request["token"], answer=letter.answer))
            inbox = self._inbox(NodeId(request["sender"]))
            await self._connection.run(_REPLY, [inbox], [reply, INBOX_SECONDS])
        except StoreUnavailable as error:
            _log.warning("an answer for %s could not be sent: %s", request["execution_id"], error)
        finally:
            self._working -= 1

    def _inbox(self, node: NodeId) -> str:
        return f"{self._node_key(node)}:inbox"

    def _message_key(self, node: NodeId, token: str) -> str:
        return f"{self._node_key(node)}:message:{token}"

    def _node_key(self, node: NodeId) -> str:
        return f"{self._connection.namespace}control:{key_part(node)}"


class _Question:
    """A message that was sent, and the answer to it once it is `settled`; None then means that the handler failed."""

    __slots__ = ("answer", "deadline", "key", "settled", "token")

    def __init__(self, token: str, *, deadline: float) -> None:
        self.token = token
        self.deadline = deadline
        self.key = ""
        self.settled = anyio.Event()
        self.answer: ControlAnswer | None = None

    def settle(self, answer: ControlAnswer | None) -> None:
        self.answer = answer
        self.settled.set()


class _Turns:
    """A lock for each execution that somebody here tells something, and none for the others."""

    def __init__(self) -> None:
        self._locks: dict[ExecutionId, tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, execution_id: ExecutionId) -> AsyncGenerator[None, None]:
        """Wait for those who came before."""
        lock, users = self._locks.get(execution_id, (anyio.Lock(), 0))
        self._locks[execution_id] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(execution_id)
            if users > 1:
                self._locks[execution_id] = lock, users - 1


def node_in(store: StateStore) -> Locate:
    """Return a Locate that reads the node from the stored execution."""

    async def locate(execution_id: ExecutionId) -> NodeId | None:
        try:
            execution = await store.load(execution_id)
        except ExecutionNotFound:
            return None
        return execution.node if execution.status is ExecutionStatus.RUNNING else None

    return locate
