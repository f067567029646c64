"""Answers with much output over HTTP: how many of one caller's are made and sent at once, and how large one may be.

Making one keeps the event loop from everybody else's requests, and what its client has not read yet is memory.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Final

import anyio

from sandbox_core.domain.ids import Principal
from sandbox_mcp.caller import Caller
from sandbox_mcp.replies import Wishes
from sandbox_mcp.views import ExecutionView

LARGE_BYTES: Final = 256 * 1024
"""An answer with more output than this needs a place."""

AT_ONCE: Final = 4
"""Places of one principal. Who waits for one has had nothing read for it yet."""

LARGEST_BODY_BYTES: Final = 40_000_000
"""What the output in one JSON body may come to: 8 MiB of ordinary text in its three forms, and what JSON escapes in it.
Control characters grow to six times their size in each."""


_GROWING: Final = bytes({*range(32), *b'"\\', *range(127, 256)})
"""Bytes that JSON may write as more than themselves: six at most."""


class LargeAnswers:
    """Hands out the places. One is held until the response is sent, or its client is gone."""

    def __init__(self) -> None:
        self._places: dict[Principal, anyio.CapacityLimiter] = {}

    async def enter(self, caller: Caller, max_bytes: int) -> None:
        """Wait for a place for this call's answer, where it may be large and goes over HTTP; again is no error."""
        exchange = caller.exchange
        if max_bytes <= LARGE_BYTES or exchange is None or exchange.leave is not None:
            return
        places = self._places.get(caller.principal)
        if places is None:
            places = self._places[caller.principal] = anyio.CapacityLimiter(AT_ONCE)
        await places.acquire_on_behalf_of(exchange)
        if exchange.answered.is_set():
            # An older client's call goes on after its connection; nobody would give the place back.
            places.release_on_behalf_of(exchange)
        else:
            exchange.leave = partial(places.release_on_behalf_of, exchange)


def fitting_bytes(view: ExecutionView, wishes: Wishes) -> int | None:
    """Return how much of a view's output a JSON body has room for, bytes; None for all of it."""
    forms = 1 + wishes.text + wishes.events
    if view.output_bytes <= 1 or 6 * forms * view.output_bytes <= LARGEST_BODY_BYTES or wishes.encoding != "text":
        return None
    shown = [item.event.data for item in (*view.head, *view.tail) if item.event.kind.is_output]
    if forms * sum(map(_longest, shown)) <= LARGEST_BODY_BYTES:
        return None
    size = forms * sum(len(json.dumps(data.decode("utf-8", "replace"))) for data in shown)
    return None if size <= LARGEST_BODY_BYTES else max(1, view.output_bytes * LARGEST_BODY_BYTES // size)


def _longest(data: bytes) -> int:
    """Return how long data is in JSON at most: quickly, since ordinary text hardly grows."""
    plain = len(data.translate(None, _GROWING))
    return 2 + plain + 6 * (len(data) - plain)
