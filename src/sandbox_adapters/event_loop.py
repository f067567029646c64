"""The event loop of our programs, which executions cannot take away.

The kernel counts what all processes of a user watch with epoll, over every namespace and container, and has a bound for
it (epoll(7), `/proc/sys/fs/epoll/max_user_watches`); poll(2) has none. Executions of an unprivileged server
are of its own user: one that watches as much as it may would leave no server of that user, on the whole machine,
a connection that it could wait for, nor let one start.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
import sys
from collections import ChainMap
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, cast

import anyio

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

ResultT = TypeVar("ResultT")
Arguments = TypeVarTuple("Arguments")


def run(work: Callable[[*Arguments], Awaitable[ResultT]], *arguments: *Arguments) -> ResultT:
    """Run a coroutine function in an asyncio event loop of its own that no watches of others keep from working."""
    return anyio.run(work, *arguments, backend="asyncio", backend_options={"loop_factory": new_event_loop})


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop over a SteadySelector on Linux, the usual one elsewhere."""
    if sys.platform != "linux":
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(SteadySelector())


if sys.platform == "linux":

    class SteadySelector(selectors.EpollSelector):
        """epoll, and poll for what the kernel has no more watches for.

        What came to poll stays there until it is unregistered. As long as there is nothing, this costs nothing.
        """

        def __init__(self) -> None:
            super().__init__()
            self._beside: selectors.PollSelector | None = None

        def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
            """See selectors.BaseSelector; does not fail for want of watches."""
            if self._has_beside(fileobj) is not None:
                raise KeyError(f"{fileobj!r} is already registered")
            try:
                return super().register(fileobj, events, data)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            if self._beside is None:
                self._beside = selectors.PollSelector()
                self._beside.register(self.fileno(), selectors.EVENT_READ)
            return self._beside.register(fileobj, events, data)

        def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
            """See selectors.BaseSelector."""
            if (beside := self._has_beside(fileobj)) is None:
                return super().unregister(fileobj)
            key = beside.unregister(fileobj)
            if len(beside.get_map()) == 1:
                beside.close()
                self._beside = None
            return key

        def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
            """See selectors.BaseSelector."""
            if (beside := self._has_beside(fileobj)) is None:
                return super().modify(fileobj, events, data)
            return beside.modify(fileobj, events, data)

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """See selectors.BaseSelector."""
            if self._beside is None:
                return super().select(timeout)
            own = self.fileno()
            ready = self._beside.select(timeout)
            found = [(key, events) for key, events in ready if key.fd != own]
            return found if len(found) == len(ready) else [*found, *super().select(0)]

        def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
            """See selectors.BaseSelector. While there is something beside epoll, epoll itself is in it too."""
            if self._beside is None:
                return super().get_map()
            # Nobody writes to it; a copy would cost every look the number of connections.
            maps = (self._beside.get_map(), super().get_map())
            return ChainMap(*(cast("MutableMapping[FileDescriptorLike, selectors.SelectorKey]", each) for each in maps))

        def close(self) -> None:
            """See selectors.BaseSelector."""
            if self._beside is not None:
                self._beside.close()
                self._beside = None
            super().close()

        def _has_beside(self, fileobj: FileDescriptorLike) -> selectors.PollSelector | None:
            """Return what polls a file; None for one that epoll watches, or nobody."""
            return None if self._beside is None or fileobj not in self._beside.get_map() else self._beside
