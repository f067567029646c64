"""Subscriptions, streams and tasks at their edges: bounds, clients that do not read, what may become a task."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import mcp_types as types
import pytest
from anyio.lowlevel import checkpoint
from mcp.shared.exceptions import MCPError

from sandbox_core.domain.errors import ExecutionNotFound, ServerFull
from sandbox_core.domain.ids import LOCAL_PRINCIPAL
from sandbox_core.domain.status import ExecutionStatus
from sandbox_mcp import listen_streams, subscriptions
from sandbox_mcp.arguments import ExecuteArguments
from sandbox_mcp.listen_streams import ListenStreams
from sandbox_mcp.resources import ResourceUri
from sandbox_mcp.subscriptions import MAX_PER_SESSION, Subscriptions
from sandbox_mcp.tasks_extension import EXTENSION, Tasks, require_tasks
from sandbox_mcp.watching import WatchPlaces

pytestmark = pytest.mark.anyio


def uri(number: int) -> str:
    return f"execution://01900000-0000-7000-8000-{number:012x}"


class Running:
    """A service where everything runs, and news come when `news` is set."""

    def __init__(self) -> None:
        self.news = anyio.Event()
        self.seq = 1

    async def read(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(execution=SimpleNamespace(status=ExecutionStatus.RUNNING), last_seq=self.seq)

    async def wait(self, *_: Any, timeout_seconds: float | None = None, **__: Any) -> bool:
        if timeout_seconds is not None:
            return False
        await self.news.wait()
        self.seq += 1
        await checkpoint()
        return True


class Connection:
    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.exit_stack = AsyncExitStack()


class Session:
    """The client's side of a session; with `reads` false it takes no notification."""

    def __init__(self, *, reads: bool = True, extensions: dict[str, Any] | None = None) -> None:
        self._connection = Connection()
        self._reads = reads
        self.sent: list[Any] = []
        self.client_capabilities = types.ClientCapabilities(extensions=extensions)

    async def send_notification(self, notification: Any, **_: Any) -> None:
        is_news = not isinstance(notification, types.SubscriptionsAcknowledgedNotification)
        if is_news and not self._reads:
            await anyio.sleep_forever()
        self.sent.append(notification)


class Context:
    def __init__(self, session: Session, version: str = "2025-11-25") -> None:
        self.session: Any = session
        self.protocol_version = version
        self.request_id = 1
        self.method = "test"
        self.meta: Any = None


@asynccontextmanager
async def subscribing(places: WatchPlaces, service: Any) -> AsyncGenerator[Subscriptions, None]:
    subject = Subscriptions(service, places)
    with anyio.fail_after(30):
        async with subject.run():
            yield subject


async def can_take(places: WatchPlaces, count: int) -> None:
    """Return when so many places are free; what is cancelled gives its own back a moment later."""
    while True:
        try:
            with places.held(LOCAL_PRINCIPAL, count):
                return
        except ServerFull:
            await checkpoint()


def subscribe_to(number: int) -> types.SubscribeRequestParams:
    return types.SubscribeRequestParams(uri=uri(number))


async def test_a_session_has_a_bound_and_its_end_gives_everything_back() -> None:
    places, context = WatchPlaces(per_principal=MAX_PER_SESSION + 1), Context(Session())
    async with subscribing(places, Running()) as subject:
        call: Any = context
        for number in range(MAX_PER_SESSION):
            await subject.subscribe(call, subscribe_to(number))
            await subject.subscribe(call, subscribe_to(number))
        with pytest.raises(MCPError) as refused:
            await subject.subscribe(call, subscribe_to(MAX_PER_SESSION))
        assert refused.value.data["code"] == "server_full"
        other: Any = Context(Session())
        await subject.subscribe(other, subscribe_to(0))
        with pytest.raises(MCPError):
            await subject.subscribe(other, subscribe_to(1))
        await context.session._connection.exit_stack.aclose()
        await can_take(places, MAX_PER_SESSION)


async def test_an_unsubscribed_uri_gives_its_place_back() -> None:
    places, context = WatchPlaces(per_principal=1), Context(Session())
    call: Any = context
    async with subscribing(places, Running()) as subject:
        for number in range(3):
            await subject.subscribe(call, subscribe_to(number))
            await subject.unsubscribe(call, types.UnsubscribeRequestParams(uri=uri(number)))
            await can_take(places, 1)


async def test_who_unsubscribes_and_at_once_subscribes_again_is_told() -> None:
    session, service = Session(), Running()
    call: Any = Context(session)
    async with subscribing(WatchPlaces(), service) as subject:
        await subject.subscribe(call, subscribe_to(1))
        await subject.unsubscribe(call, types.UnsubscribeRequestParams(uri=uri(1)))
        await subject.subscribe(call, subscribe_to(1))
        service.news.set()
        while not session.sent:
            await checkpoint()
        await session._connection.exit_stack.aclose()


async def test_a_refused_subscription_holds_no_place() -> None:
    class Nothing:
        async def read(self, *_: Any, **__: Any) -> Any:
            raise ExecutionNotFound("x")

    places, call = WatchPlaces(per_principal=1), Context(Session())
    context: Any = call
    async with subscribing(places, Nothing()) as subject:
        for number in range(3):
            with pytest.raises(MCPError) as refused:
                await subject.subscribe(context, subscribe_to(number))
            assert refused.value.code == -32002


async def test_a_session_that_does_not_read_loses_its_subscriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "SEND_SECONDS", 0.01)
    places, service = WatchPlaces(per_principal=1), Running()
    deaf: Any = Context(Session(reads=False))
    async with subscribing(places, service) as subject:
        await subject.subscribe(deaf, subscribe_to(0))
        service.news.set()
        await can_take(places, 1)


def streams(places: WatchPlaces, service: Any) -> ListenStreams:
    async def task_state(*_: Any) -> dict[str, Any]:
        return {"taskId": "x"}

    return ListenStreams(service, places, check_tasks=require_tasks, task_state=task_state)


def listen_to(*uris: str) -> types.SubscriptionsListenRequestParams:
    return types.SubscriptionsListenRequestParams(
        notifications=types.SubscriptionFilter(resource_subscriptions=list(uris))
    )


async def test_a_listener_that_does_not_read_ends_and_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_streams, "SEND_SECONDS", 0.01)
    places, service = WatchPlaces(per_principal=1), Running()
    service.news.set()
    deaf: Any = Context(Session(reads=False), "2026-07-28")
    with anyio.fail_after(30):
        await streams(places, service).listen(deaf, listen_to(uri(0)))
    places.take(LOCAL_PRINCIPAL)


async def test_streams_that_are_closed_end_and_no_more_are_opened() -> None:
    subject, context = streams(WatchPlaces(), Running()), Context(Session(), "2026-07-28")
    call: Any = context
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(subject.listen, call, listen_to(uri(0)))
            await anyio.wait_all_tasks_blocked()
            subject.close()
    with pytest.raises(MCPError) as refused:
        await subject.listen(call, listen_to(uri(0)))
    assert refused.value.data["code"] == "server_draining"


async def test_one_principal_cannot_open_streams_without_end() -> None:
    subject, call = streams(WatchPlaces(per_principal=2), Running()), Context(Session(), "2026-07-28")
    context: Any = call
    with pytest.raises(MCPError) as refused:
        await subject.listen(context, listen_to(uri(0), uri(1), uri(2)))
    assert refused.value.data["code"] == "server_full"


@pytest.mark.parametrize(
    ("change", "version", "extensions", "may"),
    [
        ({}, "2026-07-28", {EXTENSION: {}}, True),
        ({}, "2026-07-28", None, False),
        ({}, "2025-11-25", {EXTENSION: {}}, False),
        ({"wait_for_completion": False}, "2026-07-28", {EXTENSION: {}}, False),
        ({"yield_seconds": 5}, "2026-07-28", {EXTENSION: {}}, False),
        ({"max_bytes": 10}, "2026-07-28", {EXTENSION: {}}, False),
        ({"include_events": True}, "2026-07-28", {EXTENSION: {}}, False),
        ({"on_disconnect": "cancel"}, "2026-07-28", {EXTENSION: {}}, False),
        ({"on_disconnect": "detach"}, "2026-07-28", {EXTENSION: {}}, True),
    ],
)
def test_what_may_become_a_task(
    change: dict[str, Any], version: str, extensions: dict[str, Any] | None, *, may: bool
) -> None:
    service: Any = None

    async def nothing(*_: Any) -> dict[str, Any]:
        return {}

    context: Any = Context(Session(extensions=extensions), version)
    arguments = ExecuteArguments(command="true", **change)
    subject = Tasks(service, result_of=nothing, ttl_seconds=1)
    assert subject.may_become(context, arguments) is may
    context.meta = {"progress_token": 1}
    assert not subject.may_become(context, arguments)


@pytest.mark.parametrize(
    "text",
    [
        "execution://x",
        uri(1).upper(),
        uri(1) + "/",
        uri(1) + "/output/",
        uri(1) + "/output?x=1",
        uri(1) + "\n",
        uri(1) + "%2foutput",
        "execution:///" + uri(1)[12:],
        "file:///etc/passwd",
        "",
    ],
)
def test_only_what_is_written_as_we_write_it_names_a_resource(text: str) -> None:
    assert ResourceUri.parse(text) is None
    assert str(ResourceUri.parse(uri(1) + "/output")) == uri(1) + "/output"
