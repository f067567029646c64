"""BubblewrapProcess: one sandboxed process tree, seen from the server."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import replace

import anyio

from sandbox_adapters.runners.bubblewrap_walls import OWN_PROCESSES
from sandbox_adapters.runners.child.wire import STATUS_NOT_STARTED
from sandbox_adapters.runners.exit_mapping import FailedStart, Usage, exit_of_wait_status, failed_start
from sandbox_adapters.runners.granted import Granted
from sandbox_adapters.runners.launcher_link import Answer, LauncherLink
from sandbox_adapters.runners.network_execution import ExecutionNetwork
from sandbox_adapters.runners.pipes import InputPipe, OutputPipe
from sandbox_adapters.runners.reported_denials import LastWords
from sandbox_adapters.runners.server_memory import ServerMemory
from sandbox_adapters.runners.tree_limits import TreeRecord, with_tree
from sandbox_core.domain.errors import InputClosed
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.runner import Launch, ProcessExit, Stream

_BWRAP_PREFIX = b"bwrap: "
_HOLD_SECONDS = 10.0
"""bwrap exits after a complaint as soon as the machine lets it; a program that prints the same words first waits this
long at most."""
_MAX_COMPLAINT_BYTES = 64 * 1024
_SIGNAL_BASE = 128
_END_SECONDS = 20
_LOST_SECONDS = 2
_LOST_POLL_SECONDS = 0.005


class BubblewrapProcess:
    """See Process. `finish` and `lose` are the runner's: exactly one of them ends it."""

    def __init__(
        self,
        number: int,
        link: LauncherLink,
        launch: Launch,
        isolation: Isolation,
        pipes: tuple[InputPipe, OutputPipe, OutputPipe],
        memory: ServerMemory,
        network: ExecutionNetwork | None = None,
        granted: Granted | None = None,
    ) -> None:
        self._number = number
        self._link = link
        self._launch = launch
        self._isolation = isolation if granted is None else granted.recorded(isolation)
        if network is not None:
            self._isolation = network.recorded(self._isolation)
        self._granted = granted
        self._stdin, self._stdout, self._stderr = pipes
        self._memory = memory
        self._started = time.monotonic()
        self._asked_to_end = False
        self.network = network
        """Its way out; None for a sandbox that has none."""
        self._ended = anyio.Event()
        self._exit: ProcessExit | None = None
        self._processes_left: int | None = None
        self._first_stderr = True
        self._held = b""
        self._given: bytes | None = None
        """What a reader got that may be bwrap's complaint, from when it was held no longer; the first of it."""
        self._last_words = LastWords()

    @property
    def isolation(self) -> Isolation:
        """What is enforced around this process."""
        return self._isolation

    @property
    def link(self) -> LauncherLink:
        """The launcher it runs under."""
        return self._link

    @property
    def usable(self) -> bool:
        """True while it runs under a launcher that lives."""
        return self._exit is None and self._link.alive

    def take_over(self, launch: Launch, script: bytes) -> bool:
        """Make a waiting spare run a command; False when it can no longer, and must be ended."""
        self._launch = launch
        self._started = time.monotonic()
        return self._stdin.write_last(script)

    async def read(self, stream: Stream, max_bytes: int) -> bytes:
        """See Process. bwrap's own complaint about a command that never ran is replaced."""
        if stream is Stream.STDOUT:
            return await self._stdout.read(max_bytes)
        if not self._held:
            data = await self._stderr.read(max_bytes)
            if data:
                self._last_words.add(data)
            if not (self._first_stderr and data.startswith(_BWRAP_PREFIX)):
                if data or not self._held:
                    self._first_stderr = False
                    return self._note_given(data)
            else:
                self._held = data
                with anyio.move_on_after(_HOLD_SECONDS):
                    await self._ended.wait()
                if self._exit is None:
                    self._given = b""
        self._first_stderr = False
        data, self._held = self._held[:max_bytes], self._held[max_bytes:]
        return self._note_given(data)

    async def send_stdin(self, data: bytes) -> None:
        """See Process. bwrap and the sandbox's pid 1 hold the pipe too, so that only its whole end closes it."""
        if not await self._stdin.write(data):
            raise InputClosed(self._launch.execution_id)

    async def close_stdin(self) -> None:
        """See Process."""
        self._stdin.close()

    async def terminate(self) -> None:
        """See Process."""
        if self._exit is None:
            await self._link.terminate(self._number)

    async def kill(self) -> None:
        """See Process."""
        if self._exit is None:
            self._asked_to_end = True
            await self._link.kill(self._number)

    async def wait(self) -> ProcessExit:
        """See Process."""
        await self._ended.wait()
        assert self._exit is not None  # noqa: S101 - set before the event
        exit_ = self._exit if self._granted is None else await self._granted.judged(self._exit)
        if self.network is not None:
            await self.network.close()
            return self.network.told(exit_)
        return exit_

    def finish(self, answer: Answer) -> None:
        """Take the launcher's answer: the tree is gone."""
        limits = self._launch.policy.resource_limits
        self._processes_left = answer.processes_left
        if self._processes_left is None and "pid" in self._isolation.layers:
            # The launcher reaped the pid namespace's init, which the kernel lets end last (pid_namespaces(7)).
            self._processes_left = 0
        usage = Usage(answer.user_seconds, answer.system_seconds, answer.max_rss_bytes)
        if answer.wait_status == STATUS_NOT_STARTED:
            text = f"The sandbox could not be started: {answer.error}."
            self._end(ProcessExit(reason=TerminationReason.SETUP_FAILED, message=text))
        elif answer.executed or os.WIFSIGNALED(answer.wait_status) or os.WEXITSTATUS(answer.wait_status) > _SIGNAL_BASE:
            # A signal may come between bwrap's last fork and the execution; bwrap itself fails with 1,
            # and the dynamic loader with 127.
            exit_ = exit_of_wait_status(answer.wait_status, limits, usage, shell_codes=True)
            exit_ = with_tree(exit_, limits, self._tree_record(answer, exit_))
            self._end(exit_ if exit_.exit_code == 0 else self._with_denials(exit_))
        else:
            self._finish_failed_start()

    async def lose(self) -> None:
        """The launcher is gone, and with it, by PR_SET_PDEATHSIG, its children: wait for their end, and say so."""
        poll = select.poll()
        descriptors = [pipe.descriptor for pipe in (self._stdout, self._stderr) if pipe.descriptor >= 0]
        for descriptor in descriptors:
            poll.register(descriptor, 0)
        with anyio.move_on_after(_LOST_SECONDS):
            # A reading end hangs up when the last process that held the other end is gone; unread data stays.
            # Nothing that anyio can wait for tells of it.
            while len(poll.poll(0)) < len(descriptors):  # noqa: ASYNC110
                await anyio.sleep(_LOST_POLL_SECONDS)
        self._end(ProcessExit(reason=TerminationReason.LOST, message="The process that started it was killed."))

    async def aclose(self) -> None:
        """End the tree and release everything; also under cancellation."""
        # asyncio's own cancellation passes a shield, so each step is taken whatever became of the one before.
        with anyio.CancelScope(shield=True):
            try:
                if self._exit is None:
                    await self._link.kill(self._number)
                    with anyio.move_on_after(_END_SECONDS):
                        await self._ended.wait()
            finally:
                await self._release()

    async def _release(self) -> None:
        try:
            if self.network is not None:
                await self.network.close()
        finally:
            try:
                if self._granted is not None:
                    await self._granted.finish(self._exit)
            finally:
                for pipe in (self._stdin, self._stdout, self._stderr):
                    pipe.close()

    def _tree_record(self, answer: Answer, exit_: ProcessExit) -> TreeRecord:
        unexplained = answer.oom_kills is None and exit_.signal == signal.SIGKILL and not self._asked_to_end
        return TreeRecord(
            peak_memory_bytes=answer.peak_memory_bytes,
            oom_kills=answer.oom_kills,
            peak_processes=None if answer.peak_processes is None else max(0, answer.peak_processes - OWN_PROCESSES),
            forks_refused=answer.forks_refused,
            server_ran_out=unexplained and self._memory.ran_out_since(self._started),
        )

    def _with_denials(self, exit_: ProcessExit) -> ProcessExit:
        # Nobody writes any more, so this is at most what the pipe holds; the reader gets it from here.
        while more := self._stderr.read_now(_MAX_COMPLAINT_BYTES):
            self._held += more
            self._last_words.add(more)
        return self._last_words.with_denials(exit_, self._launch.policy)

    def _note_given(self, data: bytes) -> bytes:
        if self._given is not None and len(self._given) < _MAX_COMPLAINT_BYTES:
            self._given += data
        return data

    def _finish_failed_start(self) -> None:
        unread = self._held
        if self._first_stderr or unread or self._given is not None:
            while len(unread) < _MAX_COMPLAINT_BYTES and (more := self._stderr.read_now(_MAX_COMPLAINT_BYTES)):
                unread += more
        printed = (self._given or b"") + unread
        failed: FailedStart = failed_start(self._launch.command, printed.decode(errors="replace"))
        # What a reader was given cannot be taken back, so the rest of the same words follows it.
        self._held = failed.stderr if self._given is None else unread
        self._stderr.close()
        self._end(failed.exit)

    def _end(self, exit_: ProcessExit) -> None:
        if self._exit is None:
            self._exit = replace(exit_, processes_left=self._processes_left)
            if self.network is not None:
                self.network.stop()
            self._stdin.close()
            self._ended.set()
