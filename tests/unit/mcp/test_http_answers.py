"""Event streams of older clients: held back and turned into JSON, or passed on when they must live."""

from __future__ import annotations

import json

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from sandbox_mcp import http_answers
from sandbox_mcp.http_answers import answer_compactly
from sandbox_mcp.http_body import MAX_VALUES, BoundBody, has_too_many_values

pytestmark = pytest.mark.anyio

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"mcp-session-id", b"s")],
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def chunk(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Client:
    """What one client sees."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.started = anyio.Event()

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        self.started.set()

    async def receive(self) -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def content_type(self) -> bytes:
        return bytes(dict(self.messages[0]["headers"])[b"content-type"])


async def test_stream_of_one_message_becomes_json() -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send(START)
        await send(chunk(b": ping\r\n\r\n"))
        await send(chunk(b'event: message\r\ndata: {"id":'))
        await send(chunk(b"1}\r\n\r\n"))
        await send(chunk(b"", more=False))

    client = Client()
    await answer_compactly(app, {}, client.receive, client.send)
    assert (client.content_type, client.body) == (b"application/json", b'{"id":1}')
    assert dict(client.messages[0]["headers"])[b"mcp-session-id"] == b"s"
    assert dict(client.messages[0]["headers"])[b"content-length"] == b"8"


async def test_stream_of_two_messages_stays_one() -> None:
    whole = b"data: 1\r\n\r\ndata: 2\r\n\r\n"

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send(START)
        await send(chunk(whole, more=False))

    client = Client()
    await answer_compactly(app, {}, client.receive, client.send)
    assert client.content_type.startswith(b"text/event-stream")
    assert client.body == whole


async def test_stream_that_lasts_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_answers, "HOLD_SECONDS", 0.01)
    client = Client()

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send(START)
        await send(chunk(b": ping\r\n\r\n"))
        with anyio.fail_after(30):
            await client.started.wait()
        await send(chunk(b"data: 1\r\n\r\n"))
        await send(chunk(b"", more=False))

    await answer_compactly(app, {}, client.receive, client.send)
    assert client.content_type.startswith(b"text/event-stream")
    assert client.body == b": ping\r\n\r\ndata: 1\r\n\r\n"


async def test_other_answers_pass_untouched() -> None:
    start = {**START, "status": 400, "headers": [(b"content-type", b"application/json")]}

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send(start)
        await send(chunk(b"{}", more=False))

    client = Client()
    await answer_compactly(app, {}, client.receive, client.send)
    assert client.messages == [start, chunk(b"{}", more=False)]


async def test_body_that_does_not_come_is_408() -> None:
    async def app(_: Scope, __: Receive, ___: Send) -> None:
        raise AssertionError("reached")

    client = Client()
    await BoundBody(app, max_bytes=10, timeout_seconds=0.01)({"headers": []}, client.receive, client.send)
    assert client.messages[0]["status"] == 408
    assert dict(client.messages[0]["headers"])[b"connection"] == b"close"


@pytest.mark.parametrize(
    ("body", "too_many"),
    [
        (json.dumps([0] * MAX_VALUES), False),
        (json.dumps([0] * (MAX_VALUES + 1)), True),
        (json.dumps({"a": {str(number): 0 for number in range(MAX_VALUES)}}), True),
        (json.dumps({"params": [[0] * 400] * 400}), True),
        (json.dumps({"stdin": "1,2,3\n" * MAX_VALUES}), False),
        (json.dumps({"stdin": "1,2,3\n" * MAX_VALUES, "command": ["x"] * 4096}), False),
        ('["\\ud800"' + ",0" * MAX_VALUES + "]", True),
        ("{" + "0," * MAX_VALUES, False),
        ("[" * MAX_VALUES + "," * MAX_VALUES, False),
    ],
)
def test_values_are_counted_and_texts_are_not(body: str, too_many: bool) -> None:
    assert has_too_many_values(body.encode()) is too_many


async def test_a_body_of_too_many_values_is_413_and_goes_no_further() -> None:
    async def app(_: Scope, __: Receive, ___: Send) -> None:
        raise AssertionError("reached")

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps([0] * (MAX_VALUES + 1)).encode()}

    client = Client()
    await BoundBody(app, max_bytes=1 << 22, timeout_seconds=30)({"headers": []}, receive, client.send)
    assert client.messages[0]["status"] == 413
    assert b"too_many_values" in client.body
