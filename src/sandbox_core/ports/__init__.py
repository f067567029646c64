"""The ports: what the core needs from outside, one small Protocol per file."""

from sandbox_core.ports.clock import Clock
from sandbox_core.ports.control import (
    Cancel,
    ControlAnswer,
    ControlChannel,
    ControlMessage,
    SendInput,
)
from sandbox_core.ports.fleet import Fleet
from sandbox_core.ports.queue import Admit, Delivery, ExecutionQueue, QueueItem
from sandbox_core.ports.runner import Launch, LimitHit, Process, ProcessExit, ProcessRunner, Stream
from sandbox_core.ports.store import (
    Claim,
    ExecutionPage,
    Lease,
    ListQuery,
    LogPage,
    Place,
    Quota,
    Scope,
    StateStore,
)

__all__ = [
    "Admit", "Cancel", "Claim", "Clock", "ControlAnswer", "ControlChannel", "ControlMessage", "Delivery",
    "ExecutionPage", "ExecutionQueue", "Fleet", "Launch", "Lease", "LimitHit", "ListQuery", "LogPage", "Place",
    "Process", "ProcessExit", "ProcessRunner", "QueueItem", "Quota", "Scope", "SendInput", "StateStore", "Stream",
]  # fmt: skip
