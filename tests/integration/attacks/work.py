"""Runs ordinary work in sandboxes, as whatever user this process is.

Prints JSON: name -> [exit code, stdout, stderr].
"""

from __future__ import annotations

import json
import sys

import anyio

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import run_command
from tests.integration.hardening.test_ordinary_work import WORK

_LIMITS = ResourceLimits(
    max_memory_mb=1024, max_processes=128, max_open_files=512, max_file_size_mb=64, workspace_mb=128
)


async def _work() -> dict[str, list[object]]:
    done: dict[str, list[object]] = {}
    async with BubblewrapRunner(spares=0) as runner:
        for name, (_, argv) in WORK.items():
            # A sandbox has the system's interpreter, not the one of this checkout.
            command = Command(argv=tuple(word.replace(sys.executable, "python3") for word in argv))
            finished = await run_command(runner, command, ExecutionPolicy(resource_limits=_LIMITS))
            output, errors = finished.stdout.decode(errors="replace"), finished.stderr.decode(errors="replace")
            done[name] = [finished.exit.exit_code, output, errors + (finished.exit.message or "")]
    return done


if __name__ == "__main__":
    json.dump(anyio.run(_work), sys.stdout)
