"""Two executions at once in the same granted directory: neither makes the other's work look like the host's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of, read_until
from tests.integration.runners.grant_cases import denied, place, put, remove, run, tree

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_MAKE = "mkdir -p .git/hooks && echo evil > .git/hooks/pre-commit && echo evil > .envrc"


@pytest.fixture
def top() -> Iterator[Path]:
    path = place()
    yield path
    remove(path)


def writing(top: Path) -> ExecutionPolicy:
    return ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(top),)))


@pytest.mark.parametrize("second_grant", ["", "inner"])
async def test_what_one_made_before_the_other_started_stays_with_neither(
    anyio_backend: str, top: Path, second_grant: str
) -> None:
    """The first one's end takes away what the second is protected by, and the second makes it again."""
    folder = top / "inner"
    host = put(folder / ".npmrc")
    first = Command(shell=f"cd {folder} && {_MAKE} && echo up; read x", interactive=True)
    second = Command(shell=f"cd {folder} && cat .envrc && read x; {_MAKE} && echo made", interactive=True)
    async with BubblewrapRunner() as runner:
        async with runner.start(launch_of(first, writing(top))) as one:
            await read_until(one, Stream.STDOUT, b"up")
            async with runner.start(launch_of(second, writing(top / second_grant))) as two:
                await read_until(two, Stream.STDOUT, b"evil")
                await one.send_stdin(b"end\n")
                await one.wait()
                assert not (folder / ".envrc").exists()
                await two.send_stdin(b"go on\n")
                await read_until(two, Stream.STDOUT, b"made")
                exit_ = await two.wait()
        assert {denial.target for denial in exit_.denials} >= {f"{folder}/.envrc", f"{folder}/.git"}
        left = {path.split("/")[1] for path in tree(top) if "/" in path}
        assert left & {".envrc", ".git"} == set()
        assert host.read_text() == "host\n"
        # Nothing is distrusted once both are gone.
        put(folder / ".envrc")
        assert not denied(await run(runner, f"echo x > {folder}/.envrc", allow_write=(top,)))
        assert (folder / ".envrc").read_text() == "host\n"


async def test_what_was_there_before_both_stays(anyio_backend: str, top: Path) -> None:
    put(top / ".envrc")
    put(top / ".git/hooks/pre-commit")
    command = Command(shell=f"cd {top} && echo up; read x", interactive=True)
    async with BubblewrapRunner() as runner, runner.start(launch_of(command, writing(top))) as one:
        await read_until(one, Stream.STDOUT, b"up")
        await run(runner, f"cd {top}; echo x > .envrc; echo x > .git/hooks/pre-commit", allow_write=(top,))
        await one.send_stdin(b"end\n")
        await one.wait()
    assert (top / ".envrc").read_text() == "host\n"
    assert (top / ".git/hooks/pre-commit").read_text() == "host\n"
