"""Whether sandboxes can be given a proxy on this machine: one is started and looked into."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio

from sandbox_adapters.runners.network_execution import PROXY_PORT
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import SandboxError
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.policy import ExecutionPolicy, NetworkPolicy, ResourceLimits
from sandbox_core.ports.runner import Launch, Process, Stream

_SECONDS = 30
_LISTENING = f"0100007F:{PROXY_PORT:04X} 00000000:0000 0A"
"""How the kernel shows a socket that listens at 127.0.0.1 (proc_net_tcp in its documentation)."""


class Starter(Protocol):
    """How the self-test starts a command."""

    def __call__(self, launch: Launch) -> AbstractAsyncContextManager[Process]: ...


async def problem_with_listener(start: Starter) -> str:
    """Return why a command started by `start` with a network has no proxy at its side, "" when it has one."""
    policy = ExecutionPolicy(
        network=NetworkPolicy(allowed_domains=("self-test.invalid",)),
        resource_limits=ResourceLimits(workspace_mb=1, max_processes=16),
    )
    launch = Launch(ExecutionId("self-test"), Command(argv=("cat", "/proc/net/tcp")), policy)
    seen = b""
    try:
        with anyio.fail_after(_SECONDS):
            async with start(launch) as process:
                while data := await process.read(Stream.STDOUT, 65536):
                    seen += data
                exit_ = await process.wait()
    except TimeoutError:
        return f"no listener could be made inside a sandbox within {_SECONDS} s"
    except (SandboxError, OSError) as error:
        return f"no listener could be made inside a sandbox: {error}"
    if exit_.exit_code != 0:
        return f"no listener could be made inside a sandbox: {exit_.message or f'a command exits {exit_.exit_code}'}"
    if _LISTENING not in " ".join(seen.decode(errors="replace").split()):
        return "a sandbox has no listener where its proxy should be"
    return ""
