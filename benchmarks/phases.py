"""Where the time of one `execute_code("true")` goes, from a spare and cold: the server's own record of each execution.

Prints a table for docs/performance.md; it has no target.
"""

from __future__ import annotations

import subprocess  # noqa: TID251  # a plain process is what the others are compared with
import sys
import time

import anyio
from mcp import Client

from benchmarks.report import call, median, time_bare_bwrap
from benchmarks.start_up import NO_SPARES, PAUSE_SECONDS, sdk_alone, time_constant
from examples.serving import serve

ROUNDS = 100
PHASES = (
    ("wait for its place: stored, queued, claimed", "queued"),
    ("set up: a spare is handed its command, or a sandbox is begun", "setup"),
    ("the command runs and its tree is gone", "run"),
    ("the rest: HTTP both ways, client, outcome stored, reply", "rest"),
    ("all of it, as the client sees it", "total"),
)


async def main() -> None:
    """Take both kinds in turn and print medians in milliseconds."""
    kinds: dict[str, dict[str, list[float]]] = {kind: {key: [] for _, key in PHASES} for kind in ("spare", "cold")}
    bare: list[float] = []
    shell: list[float] = []
    protocol: list[float] = []
    async with (
        serve() as usual,
        serve(environment=NO_SPARES) as without,
        sdk_alone() as floor,
        usual.client() as from_spare,
        without.client() as cold,
    ):
        clients = {"spare": from_spare, "cold": cold}
        for round_ in range(ROUNDS + 5):
            for kind, client in clients.items():
                found = await _phases(client)
                if round_ >= 5:
                    for key, value in found.items():
                        kinds[kind][key].append(value)
                await anyio.sleep(PAUSE_SECONDS)
            bare.append(time_bare_bwrap())
            shell.append(_time_plain_shell())
            protocol.append(await time_constant(floor))
            await anyio.sleep(PAUSE_SECONDS)
    print("| phase, p50 in ms | from a spare | cold |\n| --- | --- | --- |")
    for text, key in PHASES:
        print(f"| {text} | {median(kinds['spare'][key]):.2f} | {median(kinds['cold'][key]):.2f} |")
    print(
        f"\nBeside them, in the same run: a constant from the SDK's own server to its own client "
        f"{median(protocol) * 1000:.2f} ms, `bash -c true` without a sandbox {median(shell) * 1000:.2f} ms, "
        f"bare bwrap {median(bare) * 1000:.2f} ms."
    )


async def _phases(client: Client) -> dict[str, float]:
    begun = time.perf_counter()
    reply = await call(client, "execute_code", command="true")
    total = (time.perf_counter() - begun) * 1000
    usage = reply["usage"]
    queued, setup, wall = (usage[f"{name}_seconds"] * 1000 for name in ("queued", "setup", "wall"))
    return {"queued": queued, "setup": setup, "run": wall - setup, "rest": total - queued - wall, "total": total}


def _time_plain_shell() -> float:
    begun = time.perf_counter()
    subprocess.run(["bash", "-c", "true"], check=True, stdin=subprocess.DEVNULL, close_fds=False)
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(anyio.run(main))
