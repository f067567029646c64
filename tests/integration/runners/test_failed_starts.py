"""A command that cannot be executed ends as such, also on a machine so busy that the launcher tells of it late."""

from __future__ import annotations

import anyio
import pytest

from sandbox_adapters.runners import bubblewrap_process
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.bubblewrap_process import BubblewrapProcess
from sandbox_adapters.runners.launcher_link import Answer
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.runner import Process, Stream
from sandbox_core.testing.runner_harness import PATIENCE_SECONDS, launch_of, read_until

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_HELD_SECONDS = 0.01
_MISSING = Command(argv=("no-such-program",))
_LOST = Command(argv=("true",), working_directory="no-such-directory")


@pytest.mark.parametrize("max_bytes", [65536, 10])
@pytest.mark.parametrize(
    ("command", "reason", "code"),
    [(_MISSING, TerminationReason.EXITED, 127), (_LOST, TerminationReason.SETUP_FAILED, None)],
    ids=["program", "directory"],
)
async def test_words_that_were_held_long_enough_still_say_how_it_ended(
    anyio_backend: str,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    reason: TerminationReason,
    code: int | None,
    max_bytes: int,
) -> None:
    answers: list[tuple[BubblewrapProcess, Answer]] = []
    answered = anyio.Event()
    finish = BubblewrapProcess.finish

    def take_note(process: BubblewrapProcess, answer: Answer) -> None:
        answers.append((process, answer))
        answered.set()

    async with BubblewrapRunner(spares=0) as runner:
        monkeypatch.setattr(bubblewrap_process, "_HOLD_SECONDS", _HELD_SECONDS)
        monkeypatch.setattr(BubblewrapProcess, "finish", take_note)
        process: Process
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(command)) as process:
                given = await process.read(Stream.STDERR, max_bytes)
                await answered.wait()
                for found, answer in answers:
                    finish(found, answer)
                exit_ = await process.wait()
                if b"\n" not in given:
                    given += await read_until(process, Stream.STDERR, b"\n")
                assert await process.read(Stream.STDERR, 1) == b""
    assert (exit_.reason, exit_.exit_code) == (reason, code)
    assert "without a word" not in (exit_.message or "")
    assert given.startswith(b"bwrap: ")
    assert given.count(b"no-such-") == 1
