"""What a command can do with granted host directories, and the tricks that it tries.

Each case gets a runner and an empty directory. `test_grants` runs them as the user of the tests, and all in one go as a
user without any rights, by `main`.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess  # noqa: TID251 - prepares and removes directories as a host would
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import anyio

from sandbox_adapters.runners import granted
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.child.tree_scan import MAX_DEPTH, QUARANTINED
from sandbox_adapters.runners.grant_plan import Plan, make_plan
from sandbox_adapters.runners.grants import Grants
from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import DenialKind
from sandbox_core.domain.errors import PolicyRefused
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, NetworkPolicy, ResourceLimits
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import Finished, launch_of, read_until, run_command

_ENGINE = re.compile(r" - (overlay|nsfs) | [^ ]*/(docker|containerd|containers|netns)/")

Case = Callable[[BubblewrapRunner, Path], Awaitable[None]]


def place() -> Path:
    """Return a new directory where something can be granted; /tmp is always the sandbox's own."""
    return Path(tempfile.mkdtemp(prefix="granted-", dir="/var/tmp"))


async def run(runner: BubblewrapRunner, script: str, **rules: tuple[Path | str, ...]) -> Finished:
    """Run a script with `filesystem` rules."""
    policy = FilesystemPolicy(**{name: tuple(map(str, paths)) for name, paths in rules.items()})
    return await run_command(runner, Command(shell=script), ExecutionPolicy(filesystem=policy))


async def refusal(runner: BubblewrapRunner, **rules: tuple[Path | str, ...]) -> str:
    """Return why a policy is refused."""
    try:
        await run(runner, "true", **rules)
    except PolicyRefused as refused:
        return str(refused)
    raise AssertionError(f"{rules} was not refused")


async def layers(runner: BubblewrapRunner, top: Path) -> tuple[str, ...]:
    """Return the layers of an execution with a grant."""
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_read=(str(top),)))
    async with runner.start(launch_of(Command(argv=("true",)), policy)) as process:
        return process.isolation.layers


def tree(top: Path) -> list[str]:
    """Return every path below a directory."""
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def put(path: Path, text: str = "host\n") -> Path:
    """Write a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def repository(path: Path) -> Path:
    """Make a git repository with one commit."""
    subprocess.run(["git", "init", "-q", "-b", "main", path], check=True, env={"PATH": os.environ["PATH"]})
    put(path / "file")
    return path


def owners(path: Path) -> tuple[int, int]:
    """Return the user and the group of a path."""
    found = path.lstat()
    return found.st_uid, found.st_gid


def mount_table() -> list[str]:
    """Return the mounts of this process, without those of containers that somebody else starts meanwhile."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if not _ENGINE.search(line)]


def mode(path: Path) -> int:
    """Return the permissions of a path with the set-id bits."""
    return path.lstat().st_mode & 0o7777


def denied(finished: Finished) -> set[str]:
    """Return the paths of an execution's denials that the check at its end made."""
    return {denial.target for denial in finished.exit.denials if "renamed to" in denial.message}


async def reads_what_is_granted_and_nothing_beside_it(runner: BubblewrapRunner, top: Path) -> None:
    put(top / "shown/file", "shown\n")
    put(top / "beside/file")
    found = await run(runner, f"cat {top}/shown/file; ls {top}; echo x > {top}/shown/new", allow_read=(top / "shown",))
    assert found.stdout == b"shown\nshown\n"
    assert b"Read-only file system" in found.stderr
    assert tree(top / "shown") == ["file"]


async def writes_where_it_is_granted_as_the_owner(runner: BubblewrapRunner, top: Path) -> None:
    script = f"cd {top}; echo made > new; mkdir folder; mv new folder/x; id -u; stat -c %u folder/x"
    found = await run(runner, script, allow_write=(top,))
    assert found.stdout == b"1000\n1000\n", found.stderr
    assert tree(top) == ["folder", "folder/x"]
    assert owners(top / "folder") == owners(top)


async def grants_single_files(runner: BubblewrapRunner, top: Path) -> None:
    put(top / "read")
    put(top / "written")
    put(top / "beside")
    script = f"cd {top}; cat read; echo more >> written; echo x > read; cat beside"
    found = await run(runner, script, allow_read=(top / "read",), allow_write=(top / "written",))
    assert found.stdout == b"host\n"
    assert (top / "written").read_text() == "host\nmore\n"
    assert (top / "read").read_text() == "host\n"


async def starts_in_a_granted_directory(runner: BubblewrapRunner, top: Path) -> None:
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(top),)))
    finished = await run_command(runner, Command(argv=("pwd",), working_directory=str(top)), policy)
    assert finished.stdout.decode() == f"{top}\n"
    assert finished.exit.denials == ()


async def the_most_specific_path_decides(runner: BubblewrapRunner, top: Path) -> None:
    deepest = top / "fixed/out/hidden/shown"
    put(deepest / "file", "deep\n")
    put(top / "fixed/out/hidden/secret")
    script = f"""cd {top}
    for d in . fixed fixed/out fixed/out/hidden fixed/out/hidden/shown; do echo x > $d/new 2>/dev/null && echo $d; done
    cat fixed/out/hidden/shown/file; cat fixed/out/hidden/secret || ls fixed/out/hidden || echo hidden"""
    found = await run(
        runner, script,
        allow_write=(top, top / "fixed/out"), deny_write=(top / "fixed",),
        deny_read=(top / "fixed/out/hidden",), allow_read=(deepest,),
    )  # fmt: skip
    assert found.stdout == b".\nfixed/out\ndeep\nhidden\n", found
    assert [path for path in tree(top) if path.endswith("new")] == ["fixed/out/new", "new"]


async def a_denial_wins_for_the_same_path(runner: BubblewrapRunner, top: Path) -> None:
    put(top / "a/file")
    put(top / "b/file")
    script = f"cat {top}/a/file; echo x > {top}/a/x; cat {top}/b/file; echo x > {top}/b/x"
    rules = {"allow_write": (top / "a", top / "b"), "deny_write": (top / "a",), "deny_read": (top / "b",)}
    found = await run(runner, script, **rules)
    assert found.stdout == b"host\n"
    assert tree(top) == ["a", "a/file", "b", "b/file"]


async def denied_files_and_directories_are_empty_and_stay(runner: BubblewrapRunner, top: Path) -> None:
    put(top / "x/secret")
    put(top / "x/folder/secret")
    put(top / "a.key")
    put(top / "x/y/b.key")
    script = f"""cd {top}; cat x/secret a.key x/y/b.key; ls x/folder; cat x/folder/secret
    rm -rf x; mv x y; mv x/secret z; echo y > a.key; chmod 777 a.key x/folder; ln x/secret w; mv x/y v
    cat x/secret y/secret z w v/b.key"""
    rules = {"deny_read": (top / "x/secret", top / "x/folder", f"{top}/**/*.key")}
    for grant in ("allow_read", "allow_write"):
        before = tree(top)
        found = await run(runner, script, **{grant: (top,)}, **rules)
        assert found.stdout == b"", found
        assert b"host" not in found.stderr
        assert set(before) <= set(tree(top)), found
        assert {(top / path).read_text() for path in before if path.endswith(("secret", "key"))} == {"host\n"}


async def links_lead_nowhere_else(runner: BubblewrapRunner, top: Path) -> None:
    put(top / "outside/secret")
    (top / "in").mkdir()
    (top / "in/link").symlink_to(top / "outside")
    script = (
        f"cd {top}/in; cat link/secret ../outside/secret; ln -s {top}/outside more; cat more/secret; echo x > more/x"
    )
    found = await run(runner, script, allow_write=(top / "in",))
    assert found.stdout == b""
    assert tree(top / "outside") == ["secret"]


async def a_grant_through_a_link_is_refused(runner: BubblewrapRunner, top: Path) -> None:
    (top / "real/inner").mkdir(parents=True)
    (top / "link").symlink_to("real")
    (top / "real/etc").symlink_to("/etc")
    for path in (top / "link", top / "link/inner", top / "real/etc"):
        for rule in ("allow_read", "allow_write"):
            assert "symbolic link" in await refusal(runner, **{rule: (path,)})
    assert "symbolic link" in await refusal(runner, allow_write=(top / "real",), deny_read=(top / "real/etc/x",))


async def what_is_not_there_is_refused(runner: BubblewrapRunner, top: Path) -> None:
    for rule in ("allow_read", "allow_write"):
        text = await refusal(runner, **{rule: (top / "missing",)})
        assert f"filesystem.{rule}" in text
        assert str(top / "missing") in text
        assert "does not exist" in text
    os.mkfifo(top / "pipe")
    assert "neither a directory nor a file" in await refusal(runner, allow_read=(top / "pipe",))
    assert os.listdir(top) == ["pipe"]


async def dots_and_slashes_mean_what_they_mean_to_the_ceiling(runner: BubblewrapRunner, top: Path) -> None:
    put(top / "a/file")
    put(top / "b/file")
    found = await run(runner, f"cat {top}/a/file; cat {top}/b/file", allow_read=(f"/{top}/a/../b//./",))
    assert found.stdout == b"host\n"
    assert f"{top}/a".encode() in found.stderr


async def a_directory_exchanged_after_the_look_is_not_mounted(runner: BubblewrapRunner, top: Path) -> None:
    put(top / "secret/file")

    def exchange(grants: Grants, *, by: Callable[[], None]) -> Plan:
        plan = make_plan(grants)
        by()
        return plan

    def link() -> None:
        (top / "a").rename(top / "moved")
        (top / "a").symlink_to(top / "secret")

    def deeper_link() -> None:
        (top / "b/c").rename(top / "b/moved")
        (top / "b/c").symlink_to(top / "secret")

    for by, grant in ((link, top / "a"), (deeper_link, top / "b")):
        put(top / "a/x")
        put(top / "b/c/.envrc")
        with mock.patch.object(granted, "make_plan", lambda grants, by=by: exchange(grants, by=by)):
            found = await run(runner, f"cat {grant}/file {grant}/c/file", allow_write=(grant,))
        assert found.stdout == b""
        assert found.exit.reason is TerminationReason.SETUP_FAILED
        assert "symbolic link" in (found.exit.message or ""), found.exit


async def ordinary_git_work_goes_on(runner: BubblewrapRunner, top: Path) -> None:
    repository(top)
    script = f"""cd {top}; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a
    git add -A && git commit -qm one && git checkout -qb side && echo more >> file && git commit -qam two &&
    git checkout -q main && git merge -q side && git log --oneline | wc -l; git status --short; git gc -q && echo gc"""
    found = await run(runner, script, allow_write=(top,))
    assert found.stdout == b"2\ngc\n", found
    assert denied(found) == set()


async def what_the_host_runs_is_read_only(runner: BubblewrapRunner, top: Path) -> None:
    repository(top)
    repository(top / "vendor/inner")
    put(top / ".envrc")
    put(top / "packages/x/.vscode/tasks.json")
    before = {path: (top / path).read_bytes() for path in tree(top) if (top / path).is_file()}
    script = f"""cd {top}
    for g in .git vendor/inner/.git; do
      echo x > $g/config; echo x > $g/hooks/pre-commit; rm -rf $g/hooks; mv $g/hooks $g/x; mv $g gone; rm $g/config
      echo y > new; mv new $g/config; ln -f file $g/config
    done
    git config core.fsmonitor ./x
    echo x > .envrc; rm .envrc; mv .envrc y; ln -s file z; mv z .envrc; ln .envrc second && echo x >> second
    echo x > packages/x/.vscode/tasks.json; echo x > packages/x/.vscode/new; rm -rf packages vendor; mv packages other
    mv vendor other; mv vendor/inner other; true"""
    found = await run(runner, script, allow_write=(top,))
    assert found.exit.exit_code == 0
    after = {path: (top / path).read_bytes() for path in before if (top / path).exists()}
    assert {path: text for path, text in after.items() if before[path] != text} == {}
    missing = before.keys() - after.keys()
    assert not any(".vscode" in path or "hooks" in path or path.endswith((".envrc", "config")) for path in missing)


async def names_that_the_host_would_run_are_put_aside(runner: BubblewrapRunner, top: Path) -> None:
    repository(top)
    (top / "sub").mkdir()
    script = f"""cd {top}; echo x > .bashrc; echo x > tmp; mv tmp sub/.envrc; ln -s file sub/.npmrc; ln file .zshrc
    mkdir -p sub/a/.vscode sub/.GIT/hooks other/.git/hooks .config/fish; echo x > .config/fish/config.fish
    ln -s other/.git sub/a/.git; mkdir bare bare/objects bare/refs; echo ref: refs/heads/x > bare/HEAD
    mkdir linked; echo ref: refs/heads/x > linked/HEAD; echo ../elsewhere > linked/commondir; echo x > opencode.json
    mkdir commondir; echo x > sub/commondir
    echo ../../x > .git/commondir; echo x > .git/config.worktree; mkfifo .profile
    printf x > "$(printf '.en\\342\\200\\213vrc')"; echo ok > ordinary"""
    found = await run(runner, script, allow_write=(top,))
    assert found.exit.exit_code == 0, found.stderr
    names = (
        ".bashrc", "sub/.envrc", "sub/.npmrc", ".zshrc", "sub/a/.vscode", "sub/.GIT", "other/.git", ".config/fish",
        "sub/a/.git", "bare/HEAD", ".git/commondir", ".git/config.worktree", ".profile", "linked/commondir",
        "opencode.json",
    )  # fmt: skip
    assert denied(found) >= {f"{top}/{name}" for name in names}
    assert len(denied(found)) == len(names) + 1
    assert {denial.kind for denial in found.exit.denials} == {DenialKind.FILESYSTEM}
    for name in names:
        assert name not in tree(top)
        aside = [path for path in (top / name).parent.iterdir() if path.name.startswith(Path(name).name + QUARANTINED)]
        assert len(aside) == 1
        assert aside[0].is_symlink() or not aside[0].is_dir() or mode(aside[0]) == 0
    assert (top / "ordinary").read_text() == "ok\n"
    assert (top / "file").read_text() == "host\n"
    again = await run(runner, f"cat {top}/file; ls -d {top}/.bashrc*", allow_write=(top,))
    assert again.stdout.startswith(b"host\n")
    assert denied(again) == set()


async def hiding_places_do_not_help(runner: BubblewrapRunner, top: Path) -> None:
    deep = "/".join(["d"] * (MAX_DEPTH + 6))
    script = f"""cd {top}; mkdir -p shut/.git ro/.git {deep}/.git
    mkdir {top}/many; cd {top}/many; seq 1000 | xargs touch; mkdir .git; cd ..; chmod 000 shut; chmod 555 ro many"""
    found = await run(runner, script, allow_write=(top,))
    assert found.exit.exit_code == 0, found.stderr
    aside = denied(found)
    assert {f"{top}/ro/.git", f"{top}/many/.git"} <= aside
    assert f"{top}/shut" in aside or f"{top}/shut/.git" in aside
    assert any(path.startswith(f"{top}/d/d/d/") for path in aside)
    assert len(aside) == 4, aside
    assert mode(top / "ro") == 0o555


async def denied_names_that_did_not_exist_are_put_aside(runner: BubblewrapRunner, top: Path) -> None:
    (top / "a").mkdir()
    script = f"cd {top}; mkdir -p dist/x; echo x > a/b; echo x > y.key; echo x > a/z.key; echo x > key"
    denials = (top / "dist", top / "a/b", f"{top}/**/*.key")
    found = await run(runner, script, allow_write=(top,), deny_write=denials)
    assert denied(found) == {f"{top}/{name}" for name in ("dist", "a/b", "y.key", "a/z.key")}
    assert {denial.rule for denial in found.exit.denials} == {"filesystem.deny_write"}
    assert (top / "key").exists()


async def no_set_user_id_program_is_left_behind(runner: BubblewrapRunner, top: Path) -> None:
    script = f"""cd {top}; cp /usr/bin/id id; chmod 4755 id; chmod u+s id; chmod 2755 id; chmod 755 id && echo plain
    mkdir d; chmod g+s d; python3 - <<'END'
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
for work in (
    lambda: os.open("made", os.O_CREAT | os.O_WRONLY, 0o4755),
    lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o4755),
    lambda: os.mknod("node", 0o104755),
    lambda: os.chmod("id", 0o4755),
    lambda: os.fchmod(os.open("id", os.O_RDONLY), 0o2755),
    lambda: libc.syscall(437, -100, b"how", struct.pack("QQQ", 65, 0o4755, 0), 24) >= 0 or 1 / 0,
    lambda: libc.syscall(452, -100, b"id", 0o4755, 0) >= 0 or 1 / 0,
):
    try:
        work()
        print("worked")
    except (OSError, ZeroDivisionError):
        pass
os.close(os.open("fine", os.O_CREAT | os.O_WRONLY, 0o755))
os.close(os.open("id", os.O_RDONLY))
END"""
    found = await run(runner, script, allow_write=(top,))
    assert found.stdout == b"plain\n", found
    assert {name for name in tree(top) if mode(top / name) & 0o6000} == set()
    assert (top / "fine").exists()


async def sockets_of_the_host_are_hidden(runner: BubblewrapRunner, top: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(top / "control"))
        os.chmod(top / "control", 0o777)
        listener.listen()
        connect = "python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print(1)'"
        for rule in ("allow_read", "allow_write"):
            found = await run(runner, f"{connect} {top}/control; rm -f {top}/control", **{rule: (top,)})
            assert found.stdout == b""
            assert b"refused" in found.stderr or b"Permission denied" in found.stderr
    assert (top / "control").is_socket()


async def pipes_of_the_host_are_hidden(runner: BubblewrapRunner, top: Path) -> None:
    os.mkfifo(top / "orders", 0o666)
    os.chmod(top / "orders", 0o666)
    reader = os.open(top / "orders", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for rule in ("allow_read", "allow_write"):
            await run(runner, f"echo order > {top}/orders; echo order 1<> {top}/orders", **{rule: (top,)})
            assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


async def hooks_that_a_configuration_names_are_read_only(runner: BubblewrapRunner, top: Path) -> None:
    repository(top)
    put(top / "tools/hooks/pre-commit")
    put(top / "tools/run")
    put(top / "shared.cfg", "[core]\n")
    (top / "tools/hooks/post-commit").symlink_to("../run")
    with (top / ".git/config").open("a") as file:
        file.write('[core] hooksPath = "tools/hooks" ; ours\n')
        file.write("[include]\n\tpath = ../shared.cfg\n\tpath = ../later.cfg\n")
    script = f"""cd {top}; echo x > tools/hooks/pre-commit; echo x > tools/hooks/post-merge; mv tools/hooks x
    mv tools x; echo x > tools/run; echo x > shared.cfg; echo x > later.cfg; echo x > tools/other"""
    found = await run(runner, script, allow_write=(top,))
    assert tree(top / "tools") == ["hooks", "hooks/post-commit", "hooks/pre-commit", "other", "run"]
    for name in ("tools/hooks/pre-commit", "tools/run"):
        assert (top / name).read_text() == "host\n"
    assert (top / "shared.cfg").read_text() == "[core]\n"
    assert denied(found) == {f"{top}/later.cfg"}


async def what_the_host_replaces_meanwhile_is_told(runner: BubblewrapRunner, top: Path) -> None:
    put(top / ".envrc")
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(top),)))
    command = Command(shell=f"echo up; read x; echo x >> {top}/.envrc", interactive=True)
    async with runner.start(launch_of(command, policy)) as process:
        await read_until(process, Stream.STDOUT, b"up")
        put(top / "new").rename(top / ".envrc")
        await process.send_stdin(b"go\n")
        exit_ = await process.wait()
    assert [(denial.target, "replaced" in denial.message) for denial in exit_.denials] == [(f"{top}/.envrc", True)]


async def second_names_of_protected_files_are_refused(runner: BubblewrapRunner, top: Path) -> None:
    put(top / ".envrc")
    (top / "second").hardlink_to(top / ".envrc")
    text = await refusal(runner, allow_write=(top,))
    assert ".envrc" in text
    assert "hard link" in text
    (top / "second").unlink()
    (top / ".envrc").rename(top / "real")
    (top / ".envrc").symlink_to("real")
    assert "symbolic link" in await refusal(runner, allow_write=(top,))


async def a_hook_that_lies_among_the_files_is_read_only(runner: BubblewrapRunner, top: Path) -> None:
    repository(top)
    hook = put(top / "scripts/check", "host\n")
    (top / ".git/hooks/pre-commit").symlink_to("../../scripts/check")
    script = (
        f"cd {top}; echo x > scripts/check; rm scripts/check; mv scripts other; mkdir scripts; echo ok > scripts/more"
    )
    await run(runner, script, allow_write=(top,))
    assert hook.read_text() == "host\n"
    assert (top / "scripts/more").read_text() == "ok\n"


async def odd_names_are_names(runner: BubblewrapRunner, top: Path) -> None:
    odd = top / "ü 'x' \"y\" \\ \n --bind"
    put(odd / ".envrc")
    os.close(os.open(os.fsencode(odd) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    script = """cd "$1" && cat .envrc && echo y > new; echo x > .envrc; touch "$(printf '\\377.d')" .npmrc"""
    command = Command(argv=("sh", "-c", script, "sh", str(odd)))
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(odd),)))
    found = await run_command(runner, command, policy)
    assert found.stdout == b"host\n", found
    assert (odd / ".envrc").read_text() == "host\n"
    assert (odd / "new").read_text() == "y\n"
    assert len(denied(found)) == 1


async def a_network_may_be_granted_too(runner: BubblewrapRunner, top: Path) -> None:
    policy = ExecutionPolicy(
        filesystem=FilesystemPolicy(allow_write=(str(top),)), network=NetworkPolicy(allowed_domains=("example.com",))
    )
    finished = await run_command(runner, Command(shell=f"echo ok > {top}/x; echo $HTTP_PROXY"), policy)
    assert finished.stdout.startswith(b"http://127.0.0.1:"), finished
    assert tree(top) == ["x"]


async def the_smallest_limits_are_enough(runner: BubblewrapRunner, top: Path) -> None:
    limits = ResourceLimits(max_processes=1, workspace_mb=1, max_cpu_seconds=1, max_open_files=16)
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(top),)), resource_limits=limits)
    finished = await run_command(runner, Command(argv=("touch", f"{top}/x")), policy)
    assert finished.exit.exit_code == 0, finished
    assert tree(top) == ["x"]


async def runtime_directories_cannot_be_forged(runner: BubblewrapRunner, top: Path) -> None:
    found = await run(runner, f"mkdir -p {top}/a/sandbox-runner-x/granted", allow_write=(top,))
    assert denied(found) == {f"{top}/a/sandbox-runner-x"}
    assert "servers keep directories" in await refusal(runner, allow_write=("/var/tmp",))


async def nothing_is_left_on_the_host(runner: BubblewrapRunner, top: Path) -> None:
    repository(top)
    put(top / "secret")
    before, mounts = tree(top), mount_table()
    rules = {"deny_read": (top / "secret", top / "missing"), "deny_write": (top / "missing", top / "file")}
    found = await run(runner, "true", allow_write=(top,), **rules)
    assert found.exit.exit_code == 0
    assert tree(top) == before
    assert mount_table() == mounts


async def what_is_granted_is_on_the_record(runner: BubblewrapRunner, top: Path) -> None:
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=(str(top),)))
    async with runner.start(launch_of(Command(argv=("true",)), policy)) as process:
        assert process.isolation.facts["filesystem_grants"] == f"{top} (write)"
    assert set(granted.GRANT_LAYERS) <= set(await layers(runner, top))


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        reads_what_is_granted_and_nothing_beside_it,
        writes_where_it_is_granted_as_the_owner,
        grants_single_files,
        starts_in_a_granted_directory,
        the_most_specific_path_decides,
        a_denial_wins_for_the_same_path,
        denied_files_and_directories_are_empty_and_stay,
        links_lead_nowhere_else,
        a_grant_through_a_link_is_refused,
        what_is_not_there_is_refused,
        dots_and_slashes_mean_what_they_mean_to_the_ceiling,
        a_directory_exchanged_after_the_look_is_not_mounted,
        ordinary_git_work_goes_on,
        what_the_host_runs_is_read_only,
        names_that_the_host_would_run_are_put_aside,
        hiding_places_do_not_help,
        denied_names_that_did_not_exist_are_put_aside,
        no_set_user_id_program_is_left_behind,
        sockets_of_the_host_are_hidden,
        pipes_of_the_host_are_hidden,
        hooks_that_a_configuration_names_are_read_only,
        what_the_host_replaces_meanwhile_is_told,
        second_names_of_protected_files_are_refused,
        a_hook_that_lies_among_the_files_is_read_only,
        odd_names_are_names,
        a_network_may_be_granted_too,
        the_smallest_limits_are_enough,
        runtime_directories_cannot_be_forged,
        nothing_is_left_on_the_host,
        what_is_granted_is_on_the_record,
    )
}


async def _all(bwrap: str | None) -> None:
    async with BubblewrapRunner(bwrap_path=bwrap) as runner:
        for name, case in CASES.items():
            top = place()
            try:
                await case(runner, top)
            except Exception:  # noqa: BLE001 - each failure is to be told
                sys.stdout.write(f"{name}\n{traceback.format_exc()}\n")
            finally:
                remove(top)


def remove(top: Path) -> None:
    """Remove a case's directory."""
    subprocess.run(["chmod", "-R", "u+rwX", str(top)], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", str(top)], check=True)


def main(backend: str, bwrap: str | None) -> None:
    """Run every case; what fails is printed."""
    anyio.run(_all, bwrap, backend=backend)
