"""Run the official MCP conformance suite against a real `sandbox serve`, on both protocol eras.

    python scripts/conformance.py [--url URL]

The generic server scenarios are run: those that need no tools, prompts or resources of the suite's own. The suite and
Node 22 come from npm into .tools/conformance on first use. Exits 1 when a check fails, 2 when the suite cannot be had.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess  # noqa: TID251  # runs the suite and the server, no part of the product
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "conformance"
RELEASED = "@modelcontextprotocol/conformance@0.1.16"
MODERN = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
"""The first line of releases with scenarios for 2026-07-28."""

NODE = "node@22"
SCENARIO_SECONDS = 60
START_SECONDS = 60


@dataclass(frozen=True)
class Run:
    """One scenario. `untestable` names checks that need something of the suite's own, which this server has not."""

    package: str
    spec_version: str
    scenario: str
    untestable: frozenset[str] = frozenset()


OLDER, NEWEST = "2025-11-25", "2026-07-28"
GENERIC_OLDER = ("server-initialize", "ping", "tools-list", "server-sse-multiple-streams", "dns-rebinding-protection")
NEEDS_ITS_OWN_TOOLS = frozenset(
    {
        "sep-2575-server-rejects-undeclared-capability",
        "sep-2575-missing-capability-http-400",
        "sep-2575-http-server-no-independent-requests-on-stream",
        "sep-2575-server-no-log-without-loglevel",
    }
)
NEEDS_PROMPTS = frozenset({"sep-2549-prompts-list-caching-hints"})
RUNS = (
    *(Run("released", OLDER, name) for name in (*GENERIC_OLDER, "server-sse-polling")),
    *(Run("modern", "2025-06-18", name) for name in ("server-initialize", "ping", "tools-list")),
    *(Run("modern", OLDER, name) for name in (*GENERIC_OLDER, "server-session-lifecycle", "resources-list")),
    Run("modern", NEWEST, "server-stateless", NEEDS_ITS_OWN_TOOLS),
    Run("modern", NEWEST, "tools-list"),
    Run("modern", NEWEST, "server-sse-multiple-streams"),
    Run("modern", NEWEST, "dns-rebinding-protection"),
    Run("modern", NEWEST, "http-header-validation"),
    Run("modern", NEWEST, "resources-list"),
    Run("modern", NEWEST, "sep-2164-resource-not-found"),
    Run("modern", NEWEST, "caching", NEEDS_PROMPTS),
)
MAY_CHECK_NOTHING = frozenset({"server-sse-polling"})
"""Recommends resumable streams, which this server has no need of: executions outlive connections anyway."""


def main() -> int:
    """Run everything; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server's /mcp; default: start one")
    url = parser.parse_args().url
    try:
        node = install()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"conformance: the suite cannot be fetched from npm: {error}", file=sys.stderr)
        return 2
    if url is not None:
        return run_all(node, url)
    with serving() as own_url:
        return run_all(node, own_url)


def install() -> Path:
    """Fetch the suite and Node once; return the node program."""
    node = TOOLS / "node_modules" / ".bin" / "node"
    wanted = f"{RELEASED} {MODERN} {NODE}"
    stamp = TOOLS / "installed"
    if stamp.is_file() and stamp.read_text() == wanted and node.exists():
        return node
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    TOOLS.mkdir(parents=True, exist_ok=True)
    aliases = [f"released@npm:{RELEASED}", f"modern@npm:{MODERN}", NODE]
    options = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([npm, "install", *options, "--prefix", str(TOOLS), *aliases], check=True, timeout=300, cwd=TOOLS)
    subprocess.run([str(node), "--version"], check=True, timeout=30, stdout=subprocess.DEVNULL)
    stamp.write_text(wanted)
    return node


def run_all(node: Path, url: str) -> int:
    """Run every scenario, print a line for each; return 1 when a check failed."""
    failed = 0
    for run in RUNS:
        passed, problems = run_one(node, url, run)
        if not passed and not problems and run.scenario not in MAY_CHECK_NOTHING:
            problems = ["nothing was checked"]
        print(f"{'FAIL' if problems else 'ok  '} {run.spec_version} {run.scenario}: {passed} passed", flush=True)
        for problem in problems:
            print(f"       {problem}", flush=True)
        failed += bool(problems)
    print(f"conformance: {len(RUNS) - failed} of {len(RUNS)} scenarios passed")
    return 1 if failed else 0


def run_one(node: Path, url: str, run: Run) -> tuple[int, list[str]]:
    """Return how many checks passed, and a line for each that failed."""
    program = TOOLS / "node_modules" / run.package / "dist" / "index.js"
    with tempfile.TemporaryDirectory() as results:
        argv = [str(node), str(program), "server", "--url", url, "--scenario", run.scenario]
        argv += ["--output-dir", results]
        if run.package == "modern":  # the released one speaks its newest version only
            argv += ["--spec-version", run.spec_version]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SCENARIO_SECONDS, check=False)
        found = list(Path(results).rglob("checks.json"))
        if not found:
            return 0, [f"the suite wrote no result (exit {done.returncode}): {done.stderr.strip()[-300:]}"]
        checks = [check for path in found for check in json.loads(path.read_text())]
    passed = sum(check["status"] == "SUCCESS" for check in checks)
    problems = [
        f"{check['id']}: {check.get('errorMessage') or check.get('description')}"
        for check in checks
        if check["status"] == "FAILURE" and check["id"] not in run.untestable
    ]
    return passed, problems


@contextmanager
def serving() -> Iterator[str]:
    """Start `sandbox serve` on a free port and stop it again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
    environment["SANDBOX_LOG_FILE"] = ""
    with socket.socket() as held:
        # While it is bound here too, the kernel gives the port to no connection; the server may bind it all the same.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        argv = [str(Path(sys.executable).with_name("sandbox")), "serve", "--port", str(port)]
        server = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL)
        try:
            wait_healthy(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.terminate()
            try:
                server.wait(timeout=START_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers; raise when it ends before that."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"conformance: the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("conformance: the server did not answer")


if __name__ == "__main__":
    sys.exit(main())
