"""ScriptedRunner: a ProcessRunner that answers from a script. No process is started."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.lowlevel

from sandbox_core.domain.denial import Denial
from sandbox_core.domain.errors import InputClosed, PolicyRefused, PolicyViolation, SandboxError
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.runner import Launch, ProcessExit, Stream

ISOLATION = Isolation(runner="scripted", version="1", isolated=False, network="none")


@dataclass(frozen=True, slots=True)
class Print:
    """Print bytes on a stream."""

    data: bytes
    stream: Stream = Stream.STDOUT


@dataclass(frozen=True, slots=True)
class Pause:
    """Let the clock go on by so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class EchoInput:
    """Read one piece of standard input and print it, with `prefix`; nothing at end of input."""

    prefix: bytes = b""


Step = Print | Pause | EchoInput


@dataclass(frozen=True, slots=True)
class Script:
    """What a scripted process does.

    Args:
        stdout, stderr: printed at once, before `steps`.
        steps: done in order, pauses by the runner's clock.
        exit_code: what it exits with; ignored when `signal_number` is given.
        signal_number: ends by this signal.
        ignores_terminate: only `kill` ends it early.
        reads_input: False for a program that never reads, so that its input backs up.
        raises: entering `start` raises this instead of starting.
        denials, denials_omitted: what the sandbox is said to have refused.
        network_sent_bytes, network_received_bytes: what it is said to have moved; None without network.
    """

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = 0
    steps: Sequence[Step] = ()
    signal_number: int | None = None
    ignores_terminate: bool = False
    reads_input: bool = True
    raises: SandboxError | None = None
    denials: Sequence[Denial] = ()
    denials_omitted: int = 0
    network_sent_bytes: int | None = None
    network_received_bytes: int | None = None


class ScriptedRunner:
    """Answers each command text from `scripts`, others from `default`; without one they exit 127.

    Args:
        clock: paces `Pause`; the event loop's own time when None.
        refuses: violations that every policy gets.

    `launches` records every Launch in order, for assertions.
    """

    name = "scripted"

    def __init__(
        self,
        scripts: Mapping[str, Script] | None = None,
        *,
        default: Script | None = None,
        clock: Clock | None = None,
        refuses: Sequence[PolicyViolation] = (),
    ) -> None:
        self._scripts = dict(scripts or {})
        self._default = default
        self._clock = clock
        self._refuses = tuple(refuses)
        self.launches: list[Launch] = []
        self.running = 0

    def unenforceable(self, policy: ExecutionPolicy) -> Sequence[PolicyViolation]:  # noqa: ARG002  # the port's name
        """Return what the test said is refused."""
        return self._refuses

    def start(self, launch: Launch) -> AbstractAsyncContextManager[ScriptedProcess]:
        """Play the script of `launch.command.text`."""
        return self._start(launch)

    @asynccontextmanager
    async def _start(self, launch: Launch) -> AsyncIterator[ScriptedProcess]:
        self.launches.append(launch)
        script = self._scripts.get(launch.command.text, self._default)
        if script is None:
            script = Script(stderr=f"{launch.command.text}: not in the script\n".encode(), exit_code=127)
        if script.raises is not None:
            raise script.raises
        if self._refuses:
            raise PolicyRefused(self._refuses)
        process = ScriptedProcess(script, self._clock, launch.execution_id)
        self.running += 1
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(process.play)
                yield process
                tasks.cancel_scope.cancel()
        finally:
            self.running -= 1


class ScriptedProcess:
    """One playing script; satisfies the Process port."""

    def __init__(self, script: Script, clock: Clock | None, execution_id: str) -> None:
        self._script = script
        self._clock = clock
        self._execution_id = execution_id
        self._output: dict[Stream, deque[bytes]] = {stream: deque() for stream in Stream}
        self._input: deque[bytes] = deque()
        self._input_closed = False
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._exit: ProcessExit | None = None
        self._ended_by: int | None = None
        self.received = b""

    @property
    def isolation(self) -> Isolation:
        """Nothing is enforced: nothing runs."""
        return ISOLATION

    async def play(self) -> None:
        """Do the steps, then end."""
        with self._scope:
            for stream, data in ((Stream.STDOUT, self._script.stdout), (Stream.STDERR, self._script.stderr)):
                if data:
                    self._print(data, stream)
            for step in self._script.steps:
                await self._do(step)
        script = self._script
        number = self._ended_by or script.signal_number
        self._exit = ProcessExit(
            reason=TerminationReason.EXITED if number is None else TerminationReason.SIGNALED,
            exit_code=script.exit_code if number is None else 128 + number,
            signal=number,
            denials=tuple(script.denials),
            denials_omitted=script.denials_omitted,
            network_sent_bytes=script.network_sent_bytes,
            network_received_bytes=script.network_received_bytes,
        )
        self._notify()

    async def read(self, stream: Stream, max_bytes: int) -> bytes:
        """Return what is printed."""
        while not self._output[stream]:
            if self._exit is not None:
                return b""
            await self._changed.wait()
        data = self._output[stream].popleft()
        if len(data) > max_bytes:
            self._output[stream].appendleft(data[max_bytes:])
        return data[:max_bytes]

    async def send_stdin(self, data: bytes) -> None:
        """Hand input to the script."""
        await anyio.lowlevel.checkpoint()
        while not self._script.reads_input and not self._takes_no_input():
            await self._changed.wait()
        if self._takes_no_input():
            raise InputClosed(self._execution_id)
        self.received += data
        self._input.append(data)
        self._notify()

    async def close_stdin(self) -> None:
        """End the input."""
        await anyio.lowlevel.checkpoint()
        self._input_closed = True
        self._notify()

    async def terminate(self) -> None:
        """End with SIGTERM unless the script ignores it."""
        await anyio.lowlevel.checkpoint()
        if not self._script.ignores_terminate:
            self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End with SIGKILL."""
        await anyio.lowlevel.checkpoint()
        self._end(signal.SIGKILL)

    async def wait(self) -> ProcessExit:
        """Return how it ended."""
        while self._exit is None:
            await self._changed.wait()
        return self._exit

    async def _do(self, step: Step) -> None:
        match step:
            case Print():
                self._print(step.data, step.stream)
                await anyio.lowlevel.checkpoint()
            case Pause():
                await self._sleep(step.seconds)
            case EchoInput():
                while not self._input and not self._input_closed:
                    await self._changed.wait()
                if self._input:
                    self._print(step.prefix + self._input.popleft(), Stream.STDOUT)

    async def _sleep(self, seconds: float) -> None:
        if self._clock is None:
            await anyio.sleep(seconds)
        else:
            await self._clock.sleep_until(self._clock.monotonic() + seconds)

    def _takes_no_input(self) -> bool:
        return self._input_closed or self._exit is not None

    def _end(self, number: int) -> None:
        if self._exit is None and self._ended_by is None:
            self._ended_by = number
            self._scope.cancel()

    def _print(self, data: bytes, stream: Stream) -> None:
        self._output[stream].append(data)
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
