"""TrackExchanges: ids of an older session, and what a large answer takes until it is sent."""

from __future__ import annotations

import json

import anyio
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox_core.domain.ids import LOCAL_PRINCIPAL, Principal
from sandbox_mcp.caller import EXCHANGE_KEY, Caller, Exchange
from sandbox_mcp.http_exchange import InFlight, TrackExchanges
from sandbox_mcp.large_answers import AT_ONCE, LARGE_BYTES, LargeAnswers

pytestmark = pytest.mark.anyio

BOUND_SECONDS = 30
BODY = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "tools/list"}).encode()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Rig:
    """An application whose requests send what they are let send, and end when they are let."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_answer, self.may_end = anyio.Event(), anyio.Event()
        self.tracked = TrackExchanges(self._serve, InFlight())

    async def _serve(self, _: Scope, __: Receive, send: Send) -> None:
        self.begun += 1
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})
        await self.may_end.wait()

    async def post(self, messages: list[Message]) -> None:
        """Send the request and note the answer."""

        async def receive() -> Message:
            return {"type": "http.request", "body": BODY, "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        scope: Scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": [(b"mcp-session-id", b"s")]}
        await self.tracked(scope, receive, send)


async def test_an_id_is_refused_while_its_first_request_is_unanswered() -> None:
    rig = Rig()
    answers: list[list[Message]] = [[], []]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.post, answers[0])
        await anyio.wait_all_tasks_blocked()
        await rig.post(answers[1])
        rig.may_answer.set()
        rig.may_end.set()
    assert [answer[0]["status"] for answer in answers] == [200, 409]
    assert rig.begun == 1


async def test_who_has_the_answer_may_use_the_id_again_though_its_request_is_still_being_ended() -> None:
    rig = Rig()
    rig.may_answer.set()
    answers: list[list[Message]] = [[], [], []]
    with anyio.fail_after(BOUND_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rig.post, answers[0])
            await anyio.wait_all_tasks_blocked()
            assert answers[0][-1]["body"] == b"answer"
            tasks.start_soon(rig.post, answers[1])
            await anyio.wait_all_tasks_blocked()
            assert rig.begun == 1
            rig.may_end.set()
        await rig.post(answers[2])
    assert [answer[0]["status"] for answer in answers] == [200, 200, 200]


async def test_one_that_does_not_end_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_mcp.http_exchange._ENDING_SECONDS", 0.01)
    rig = Rig()
    rig.may_answer.set()
    answers: list[list[Message]] = [[], []]
    with anyio.fail_after(BOUND_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rig.post, answers[0])
            await anyio.wait_all_tasks_blocked()
            await rig.post(answers[1])
            rig.may_end.set()
    assert answers[1][0]["status"] == 409


async def test_an_id_is_in_use_until_the_handler_ends_that_its_client_left_and_no_longer() -> None:
    may_end = anyio.Event()

    async def handle(exchange: Exchange) -> None:
        with exchange.handled():
            await may_end.wait()

    async def leave(scope: Scope, _: Receive, __: Send) -> None:
        tasks.start_soon(handle, scope[EXCHANGE_KEY])
        await anyio.wait_all_tasks_blocked()

    rig = Rig()
    rig.tracked = TrackExchanges(leave, InFlight())
    again: list[Message] = []
    with anyio.fail_after(BOUND_SECONDS):
        async with anyio.create_task_group() as tasks:
            await rig.post([])
            await rig.post(again)
            assert len(rig.tracked) == 1
            may_end.set()
    assert again[0]["status"] == 409
    assert len(rig.tracked) == 0


class Answer:
    """An application that takes the place of a large answer and answers with `body`."""

    def __init__(self, body: bytes, places: LargeAnswers) -> None:
        self._body = body
        self._places = places

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        caller = Caller(LOCAL_PRINCIPAL, exchange=scope[EXCHANGE_KEY])
        await self._places.enter(caller, LARGE_BYTES + 1)
        await self._places.enter(caller, LARGE_BYTES + 1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self._body})


async def get(app: ASGIApp, send: Send) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await TrackExchanges(app, InFlight())({"type": "http", "method": "GET", "headers": []}, receive, send)


async def test_a_long_body_is_sent_in_pieces_and_whole() -> None:
    body = bytes(range(256)) * 4096 * 3 + b"end"
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await get(Answer(body, LargeAnswers()), send)
    assert b"".join(message["body"] for message in sent[1:]) == body
    assert len(sent) > 3
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [False]


async def test_a_caller_has_a_few_large_answers_at_once_and_another_caller_its_own() -> None:
    places = LargeAnswers()
    reading = anyio.Event()
    begun: list[Message] = []

    async def unread(message: Message) -> None:
        if message["type"] == "http.response.start":
            begun.append(message)
        await reading.wait()

    with anyio.fail_after(BOUND_SECONDS):
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE + 3):
                tasks.start_soon(get, Answer(b"x", places), unread)
            await anyio.wait_all_tasks_blocked()
            assert len(begun) == AT_ONCE
            await places.enter(Caller(Principal("other"), exchange=Exchange()), LARGE_BYTES + 1)
            await places.enter(Caller(LOCAL_PRINCIPAL, exchange=Exchange()), LARGE_BYTES)
            await places.enter(Caller(LOCAL_PRINCIPAL), LARGE_BYTES + 1)
            reading.set()
    assert len(begun) == AT_ONCE + 3


async def test_a_place_that_comes_when_its_connection_is_gone_is_given_back() -> None:
    places = LargeAnswers()
    exchange = Exchange()
    exchange.answered.set()
    with anyio.fail_after(BOUND_SECONDS):
        for _ in range(AT_ONCE + 1):
            await places.enter(Caller(LOCAL_PRINCIPAL, exchange=exchange), LARGE_BYTES + 1)
