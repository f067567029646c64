"""LocalRunner: plain processes with limits. It isolates nothing and says so."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from sandbox_adapters.runners import child_program
from sandbox_adapters.runners.capabilities import EVERY_LIMIT, RunnerCapabilities, possible_grants
from sandbox_adapters.runners.child.remove_tree import remove_tree
from sandbox_adapters.runners.environment import SANDBOX_PATH, base_environment, command_environment
from sandbox_adapters.runners.exit_mapping import rlimits
from sandbox_adapters.runners.local_process import LocalProcess
from sandbox_adapters.runners.pipes import InputPipe, OutputPipe
from sandbox_adapters.runners.required_layers import missing_layers
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import LaunchFailed, PolicyRefused, PolicyViolation, RunnerUnavailable
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import Launch, Process

_REFUSAL = "the local runner isolates nothing; choose the bubblewrap runner, or leave the field out"
_MECHANISMS = {
    "max_memory_mb": "rlimit_data, per process",
    "max_cpu_seconds": "rlimit_cpu, per process",
    "max_file_size_mb": "rlimit_fsize",
    "max_open_files": "rlimit_nofile, per process",
}


class LocalRunner:
    """See ProcessRunner. Commands run with the server's own rights, in a temporary directory of their own.

    An async context manager. For platforms without namespaces, and only when chosen explicitly. On Linux every
    descendant ends with its command, also daemons; elsewhere those that stay in its process group.

    The largest resident set it reports is never under that of the small Python process which becomes the command.

    Args:
        workspace_base: where the temporary directories are made; None is the usual place.
    """

    def __init__(self, *, workspace_base: str | None = None) -> None:
        self._workspace_base = workspace_base
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._environment_path = os.environ.get("PATH") or SANDBOX_PATH
        self._shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"

    @property
    def name(self) -> str:
        """Short name for records."""
        return "local"

    @property
    def version(self) -> str:
        """The kernel's name and release: there is no other program in between."""
        return f"{platform.system()} {platform.release()}"

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tasks = None
        await self._stack.aclose()

    def unenforceable(self, policy: ExecutionPolicy) -> Sequence[PolicyViolation]:
        """See ProcessRunner: every rule on network, files and layers, and the limits that need a sandbox."""
        grants = {
            "network.allowed_domains": policy.network.allowed_domains,
            "network.denied_domains": policy.network.denied_domains,
            "filesystem.allow_read": policy.filesystem.allow_read,
            "filesystem.deny_read": policy.filesystem.deny_read,
            "filesystem.allow_write": policy.filesystem.allow_write,
            "filesystem.deny_write": policy.filesystem.deny_write,
        }
        found = [
            PolicyViolation(name, ", ".join(entries), "nothing", _REFUSAL)
            for name, entries in grants.items()
            if entries
        ]
        # RLIMIT_NPROC counts all processes of the server's user, and none of root's (setrlimit(2)).
        limits = ["workspace_mb", "max_processes"]
        if sys.platform != "linux":
            limits.append("max_memory_mb")
        for name in limits:
            value = getattr(policy.resource_limits, name)
            if value is not None:
                found.append(PolicyViolation(f"resource_limits.{name}", str(value), "no such limit", _REFUSAL))
        return [*found, *missing_layers(policy, ())]

    def capabilities(self) -> RunnerCapabilities:
        """See CapableRunner."""
        return RunnerCapabilities(self._isolation(EVERY_LIMIT), *possible_grants(self.unenforceable))

    def start(self, launch: Launch) -> AbstractAsyncContextManager[Process]:
        """See ProcessRunner."""
        return self._start(launch)

    @asynccontextmanager
    async def _start(self, launch: Launch) -> AsyncIterator[LocalProcess]:
        violations = self.unenforceable(launch.policy)
        if violations:
            raise PolicyRefused(violations)
        if self._tasks is None:
            raise RunnerUnavailable(self.name, "it is not open", "Enter its context first.")
        try:
            folder = tempfile.mkdtemp(prefix="sandbox-local-", dir=self._workspace_base)
        except OSError as error:
            raise LaunchFailed(f"No temporary directory can be made: {error.strerror}. Try again later.") from error
        try:
            process = await self._launch(launch, Path(folder))
            self._tasks.start_soon(process.receive)
            try:
                yield process
            finally:
                await process.aclose()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(remove_tree, folder)

    async def _launch(self, launch: Launch, folder: Path) -> LocalProcess:
        for name in ("workspace", "tmp"):
            (folder / name).mkdir()
        theirs: list[int] = []
        ours: list[int] = []
        try:
            _open_pipes(launch.command, theirs, ours)
            channel, far_end = socket.socketpair()
            with far_end:
                try:
                    # Not to be cut short: a stub that nobody knows of would wait for its request.
                    with anyio.CancelScope(shield=True):
                        stub = await anyio.open_process(
                            child_program.command("stub", str(far_end.fileno())),
                            stdin=theirs[0],
                            stdout=theirs[1],
                            stderr=theirs[2],
                            env={},
                            pass_fds=(far_end.fileno(),),
                            start_new_session=True,
                        )
                except BaseException:
                    channel.close()
                    raise
        except OSError as error:
            _close(ours)
            raise LaunchFailed(f"The process could not be started: {error.strerror}. Try again later.") from error
        except BaseException:
            _close(ours)
            raise
        finally:
            _close(theirs)
        channel.setblocking(False)
        pipes = InputPipe(ours[0]), OutputPipe(ours[1]), OutputPipe(ours[2])
        isolation = self._isolation(launch.policy.resource_limits)
        return LocalProcess(launch, isolation, stub, channel, pipes, self._request(launch, folder))

    def _request(self, launch: Launch, folder: Path) -> bytes:
        command = launch.command
        workspace = folder / "workspace"
        base = base_environment(home=str(workspace), temporary=str(folder / "tmp"), path=self._environment_path)
        argv = list(command.argv) if command.argv is not None else [self._shell, "-c", "--", command.shell or ""]
        request = {
            "argv": argv,
            "environment": command_environment({**base, "SHELL": self._shell}, command.environment),
            "directory": os.path.join(workspace, command.working_directory or ""),
            "folder": str(folder),
            "limits": [list(limit) for limit in rlimits(launch.policy.resource_limits)],
        }
        return json.dumps(request).encode() + b"\n"

    def _isolation(self, limits: ResourceLimits) -> Isolation:
        return Isolation(
            runner=self.name,
            version=self.version,
            isolated=False,
            network="host",
            kernel_uid=os.geteuid(),
            limits={name: text for name, text in _MECHANISMS.items() if getattr(limits, name) is not None},
        )


def _open_pipes(command: Command, theirs: list[int], ours: list[int]) -> None:
    """Fill both lists, also partly when it fails: stdin, stdout, stderr."""
    if command.stdin or command.interactive:
        read, write = os.pipe()
        theirs.append(read)
        ours.append(write)
    else:
        theirs.append(os.open(os.devnull, os.O_RDONLY))
        ours.append(-1)
    for _ in range(2):
        read, write = os.pipe()
        theirs.append(write)
        ours.append(read)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
