"""TrackExchanges: one id at a time in an older session, and the next one as soon as the answer before is out."""

from __future__ import annotations

import json

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from sandbox_mcp.http_exchange import InFlight, TrackExchanges

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
