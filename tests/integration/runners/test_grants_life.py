"""Grants beyond one command: the operator's own exceptions, other owners' files, and the death of the server."""

from __future__ import annotations

import os
import signal
import subprocess  # noqa: TID251 - for PIPE
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.child.tree_scan import QUARANTINED
from sandbox_adapters.runners.runtime_directory import sweep
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import PolicyRefused
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, IsolationPolicy
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of, read_until
from tests.integration.attacks.conftest import identity
from tests.integration.runners.grant_cases import denied, owners, place, put, refusal, remove, repository, run, tree
from tests.stopping import pause

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_BOUND_SECONDS = 60
_SERVER = """
import anyio, sys
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of

async def main():
    base, top = sys.argv[1:]
    async with BubblewrapRunner(runtime_base=base) as runner:
        policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(top,)))
        script = f"cd {top}; mkdir -p a/.vscode; echo x > .envrc; echo up; sleep 1000"
        async with runner.start(launch_of(Command(shell=script), policy)) as process:
            await process.read(Stream.STDOUT, 10)
            print(runner._link.pid, flush=True)
            await process.wait()

anyio.run(main)
"""
_APART = """
import anyio, sys
from pathlib import Path
from tests.integration.runners.test_grants_life import grant_around_a_mount
anyio.run(grant_around_a_mount, Path(sys.argv[2]), backend=sys.argv[1])
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="does not apply: only root can do that")


@pytest.fixture
def top() -> Iterator[Path]:
    path = place()
    yield path
    remove(path)


@pytest.fixture
def base() -> Iterator[Path]:
    """Where runtime directories are made."""
    path = place()
    path.chmod(0o755)
    yield path
    sweep(str(path))
    path.rmdir()


async def test_the_layers_of_a_grant_can_be_required(anyio_backend: str, top: Path) -> None:
    rules = FilesystemPolicy(allow_read=(str(top),))
    async with BubblewrapRunner() as runner:
        async with runner.start(launch_of(Command(shell="true"), ExecutionPolicy(filesystem=rules))) as process:
            layers = process.isolation.layers
            await process.wait()
        required = IsolationPolicy(require=layers)
        assert not runner.unenforceable(ExecutionPolicy(filesystem=rules, isolation=required))
        without = runner.unenforceable(ExecutionPolicy(isolation=required))
        assert {violation.asked for violation in without} == {"no_links_in_grants", "no_set_id_bits"}


async def test_the_operator_may_name_a_protected_path(anyio_backend: str, top: Path) -> None:
    operator = FilesystemPolicy(allow_write=(str(top), str(top / ".git")))
    script = f"cd {top}; git init -q . && git config a.b c && git config a.b; echo x > .envrc"
    async with BubblewrapRunner(operator=operator) as runner:
        unasked = await run(runner, script, allow_write=(top,))
        assert denied(unasked) == {f"{top}/.git", f"{top}/.envrc"}
        for _ in range(2):  # it does not exist, then it does
            asked = await run(runner, script, allow_write=(top, top / ".git"))
            assert asked.stdout == b"c\n", asked
            assert denied(asked) == {f"{top}/.envrc"}
    async with BubblewrapRunner(operator=FilesystemPolicy(allow_write=(str(top),))) as runner:
        assert "only the operator's ceiling" in await refusal(runner, allow_write=(top, top / ".git"))


async def test_a_command_that_is_killed_is_looked_through(anyio_backend: str, top: Path) -> None:
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(top),)))
    command = Command(shell=f"echo x > {top}/.envrc; echo up; sleep 1000")
    async with BubblewrapRunner() as runner:
        async with runner.start(launch_of(command, policy)) as process:
            await read_until(process, Stream.STDOUT, b"up")
            await process.kill()
            exit_ = await process.wait()
            assert [denial.target for denial in exit_.denials] == [f"{top}/.envrc"]
            assert await process.wait() == exit_
        with anyio.move_on_after(_BOUND_SECONDS) as scope:
            async with runner.start(launch_of(command, policy)) as process:
                await read_until(process, Stream.STDOUT, b"up")
                scope.cancel()
                await process.wait()
        assert scope.cancelled_caught
    assert all(QUARANTINED in name for name in tree(top))
    assert len(tree(top)) == 2


@pytest.mark.parametrize("launcher_too", [False, True])
async def test_a_killed_server_leaves_nothing_that_the_host_would_run(
    anyio_backend: str, base: Path, top: Path, launcher_too: bool
) -> None:
    arguments = [sys.executable, "-c", _SERVER, str(base), str(top)]
    async with await anyio.open_process(arguments, stdout=subprocess.PIPE, stderr=None) as server:
        assert server.stdout is not None
        with anyio.fail_after(_BOUND_SECONDS):
            launcher = os.pidfd_open(int(await server.stdout.receive()))
        assert (top / ".envrc").exists()
        if launcher_too:
            pause(server.pid)
            signal.pidfd_send_signal(launcher, signal.SIGKILL)
        server.kill()
        with anyio.fail_after(_BOUND_SECONDS):
            await server.wait()
            await anyio.wait_readable(launcher)
    os.close(launcher)
    if launcher_too:
        assert (top / ".envrc").exists()
        with anyio.fail_after(_BOUND_SECONDS):
            # The sandbox's processes hold the lock until the kernel has ended them; it tells nobody else.
            while os.listdir(base):
                sweep(str(base))
                await anyio.sleep(0.01)
    assert not (top / ".envrc").exists()
    assert not (top / "a/.vscode").exists()
    assert len([name for name in tree(top) if QUARANTINED in name]) == 2


async def test_two_at_once_share_a_directory(anyio_backend: str, top: Path) -> None:
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(top),)))
    waiting = Command(
        shell=f"echo up; read x; cd {top}; mv a b; mkdir -p a/.git/hooks; echo x > a/.git/config", interactive=True
    )
    async with BubblewrapRunner() as runner:
        async with runner.start(launch_of(waiting, policy)) as first:
            await read_until(first, Stream.STDOUT, b"up")
            repository(top / "a")
            async with runner.start(launch_of(waiting, policy)) as second:
                await read_until(second, Stream.STDOUT, b"up")
                await first.send_stdin(b"go\n")
                exit_ = await first.wait()
        assert f"{top}/a/.git" in {denial.target for denial in exit_.denials}
    assert not (top / "a/.git").exists()


@as_root
async def test_files_of_others_keep_their_owner_and_their_rights(anyio_backend: str, top: Path) -> None:
    put(top / "theirs").chmod(0o600)
    put(top / "open").chmod(0o666)
    put(top / "own").chmod(0o600)
    for path in (top, top / "own"):
        os.chown(path, 12345, 23456)
    script = f"cd {top}; cat theirs; echo x > theirs; echo x > open; cat open own; echo y > new; ln -f new own"
    async with BubblewrapRunner() as runner:
        found = await run(runner, script, allow_write=(top,))
        assert found.stdout == b"host\nhost\n", found
        assert owners(top / "new") == (12345, 23456)
        assert (top / "theirs").read_text() == (top / "open").read_text() == "host\n"
        hidden = top.parent / f"{top.name}/closed"
        hidden.mkdir(mode=0o700)
        inner = put(hidden / "granted/file").parent
        assert (await run(runner, f"cat {inner}/file", allow_read=(inner,))).stdout == b"host\n"


async def grant_around_a_mount(top: Path) -> None:
    """Have a file system in a directory and try to grant each; for a process whose mounts nobody else sees."""
    (top / "in/mounted").mkdir(parents=True)
    await anyio.run_process(["mount", "-t", "tmpfs", "-o", "size=64k", "none", top / "in/mounted"])
    async with BubblewrapRunner() as runner:
        assert "mount point" in await refusal(runner, allow_read=(top,))
        assert (await run(runner, f"ls -a {top}/in/mounted", allow_read=(top / "in/mounted",))).exit.exit_code == 0


@as_root
async def test_a_directory_with_a_mount_in_it_is_refused(anyio_backend: str, top: Path) -> None:
    argv = ["unshare", "--mount", sys.executable, "-c", _APART, anyio_backend, str(top)]
    with anyio.fail_after(100):
        done = await anyio.run_process(argv, check=False, **identity(root=True))
    assert done.returncode == 0, done.stderr.decode()


async def test_the_runtime_directory_is_never_granted(anyio_backend: str, base: Path) -> None:
    async with BubblewrapRunner(runtime_base=str(base)) as runner:
        (own,) = os.listdir(base)
        for path in (base, base / own, base / own / "etc"):
            with pytest.raises(PolicyRefused, match=r"in the way|only the operator"):
                await run(runner, "true", allow_write=(path,))


async def test_too_much_to_look_through_or_to_protect_is_refused(
    anyio_backend: str, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        put(top / f"{number}/.envrc")
    async with BubblewrapRunner() as runner:
        monkeypatch.setattr("sandbox_adapters.runners.grant_plan.MAX_MOUNTS", 18)
        assert "mounts" in await refusal(runner, allow_write=(top,))
        monkeypatch.setattr("sandbox_adapters.runners.grant_plan.MAX_MOUNTS", 19)
        assert (await run(runner, "true", allow_write=(top,))).exit.exit_code == 0
        monkeypatch.setattr("sandbox_adapters.runners.grant_plan.MAX_ENTRIES", 17)
        assert "entries" in await refusal(runner, allow_read=(top,))
        monkeypatch.setattr("sandbox_adapters.runners.grant_plan.MAX_ENTRIES", 18)
        monkeypatch.setattr("sandbox_adapters.runners.child.grant_check.MAX_ENTRIES", 18)
        found = await run(runner, f"cd {top}; touch a b c", allow_write=(top,))
        assert "unchecked" in found.exit.denials[0].message


async def test_the_directory_itself_is_looked_at_when_there_is_too_much_in_it(
    anyio_backend: str, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(top / ".npmrc")
    async with BubblewrapRunner() as runner:
        monkeypatch.setattr("sandbox_adapters.runners.child.grant_check.MAX_ENTRIES", 0)
        found = await run(runner, f"cd {top}; mkdir -p .git/hooks; echo x > .envrc; touch .other", allow_write=(top,))
    assert "unchecked" in found.exit.denials[0].message
    assert {denial.target for denial in found.exit.denials} == {str(top), f"{top}/.git", f"{top}/.envrc"}
    names = {path.partition(QUARANTINED)[0]: top / path for path in tree(top) if "/" not in path}
    assert set(names) == {".npmrc", ".git", ".envrc", ".other"}
    assert not (top / ".git").exists()
    assert not (top / ".envrc").exists()
    assert names[".git"].stat().st_mode & 0o777 == 0
    assert (top / ".npmrc").read_text() == "host\n"
