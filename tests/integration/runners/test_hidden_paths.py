"""What a policy denies of the system is hidden from its command, and from no other."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.hidden_paths import MAX_HIDDEN, hidden_paths
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import PolicyRefused
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy
from sandbox_core.testing.runner_harness import launch_of, run_command
from tests.integration.attacks.conftest import NOBODY, identity, python_for

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_FILE, _DIRECTORY, _CERTIFICATES = "/etc/passwd", "/usr/share", "/etc/ssl/certs"
_DENIED = ExecutionPolicy(filesystem=FilesystemPolicy(deny_read=(_FILE, _DIRECTORY, _CERTIFICATES, "/usr/not/there")))
_LOOK = f"""
for path in {_FILE} /proc/self/root{_FILE} {_DIRECTORY} {_DIRECTORY}/. {_CERTIFICATES}; do
    chmod 777 $path 2> /dev/null && echo changed $path
    if [ -d $path ]; then ls $path; else cat $path; fi > /dev/null 2>&1 && echo seen $path
done
rm -rf {_FILE} 2> /dev/null; umount {_FILE} 2> /dev/null; mv {_FILE} /tmp 2> /dev/null && echo moved
exit 0
"""
_SERVER = """
import anyio
from tests.integration.runners.test_hidden_paths import look
anyio.run(look)
"""


async def look() -> None:
    """Print what a command sees of what it is denied, as whoever this process is."""
    async with BubblewrapRunner(spares=0) as runner:
        finished = await run_command(runner, Command(shell=_LOOK), _DENIED)
        print(finished.exit.exit_code, finished.stdout.decode(), end="")  # noqa: T201 - to the test that started it


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def runner(anyio_backend: str) -> AsyncIterator[BubblewrapRunner]:
    async with BubblewrapRunner(spares=1) as opened:
        yield opened


async def test_what_is_denied_is_not_seen(runner: BubblewrapRunner) -> None:
    finished = await run_command(runner, Command(shell=_LOOK), _DENIED)
    assert (finished.exit.exit_code, finished.stdout) == (0, b"")


async def test_without_the_denial_it_is(runner: BubblewrapRunner) -> None:
    finished = await run_command(runner, Command(shell=_LOOK))
    seen = [_FILE, f"/proc/self/root{_FILE}", _DIRECTORY, f"{_DIRECTORY}/.", _CERTIFICATES]
    assert finished.stdout.decode().splitlines() == [f"seen {path}" for path in seen]


async def test_an_unprivileged_server_hides_it_too(anyio_backend: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("does not apply: the other tests are the unprivileged ones then")
    who = identity(root=False)
    assert who["user"] == NOBODY
    with anyio.fail_after(100):
        done = await anyio.run_process([python_for(root=False), "-c", _SERVER], check=False, **who)
    assert (done.stdout, done.returncode) == (b"0 ", 0), done.stderr.decode()


async def test_no_spare_that_shows_it_is_taken_and_the_record_names_it(runner: BubblewrapRunner) -> None:
    for policy in (ExecutionPolicy(), ExecutionPolicy(), _DENIED, ExecutionPolicy()):
        async with runner.start(launch_of(Command(argv=("cat", _FILE)), policy)) as process:
            exit_ = await process.wait()
            denied = policy is _DENIED
            assert exit_.exit_code == int(denied)
            hidden = process.isolation.facts.get("filesystem_hidden")
            assert hidden == (f"{_FILE}, {_CERTIFICATES}, /usr/not/there, {_DIRECTORY}" if denied else None)


async def test_a_failed_look_is_told_as_a_denial_with_its_rule(runner: BubblewrapRunner) -> None:
    finished = await run_command(runner, Command(argv=("cat", _FILE)), _DENIED)
    assert [(each.target, each.rule) for each in finished.exit.denials] == [(_FILE, "filesystem.deny_read")]


def _link() -> str:
    for entry in sorted(Path("/usr/bin").iterdir()):
        if entry.is_symlink():
            return str(entry)
    pytest.skip("does not apply: no link in /usr/bin")


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ((_link(),), "symbolic link"),
        (("/etc/" + "x" * 4000,), "too long"),
        (tuple(f"/usr/not/{number}" for number in range(MAX_HIDDEN + 1)), "would have to be hidden"),
    ],
    ids=["link", "too long", "too many"],
)
async def test_what_cannot_be_hidden_is_refused(runner: BubblewrapRunner, paths: tuple[str, ...], reason: str) -> None:
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(deny_read=paths))
    with pytest.raises(PolicyRefused, match=reason):
        async with runner.start(launch_of(Command(argv=("true",)), policy)):
            pytest.fail("it started")


def test_only_the_outermost_of_several_is_hidden() -> None:
    denied = ("/usr/share", "/usr/share/doc/x", "//usr/./share", "/usr/shared", "/root", "~/x", "/usr/*", "/usr", "x")
    assert hidden_paths(FilesystemPolicy(deny_read=denied)) == ("/usr/share", "/usr/shared")
