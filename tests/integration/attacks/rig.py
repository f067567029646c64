"""Runs attacks in sandboxes, as whatever user this process is: `python -m tests.integration.attacks.rig`.

Standard input is a JSON object with `batches`, each a Batch, and `roots`, see bait.set_out; standard output one with
the answers, batch name -> Answer.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_adapters.runners.network import Egress
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, NetworkPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import Finished, finish, launch_of
from tests.integration.attacks.bait import set_out

BARE = "bare"
_PACKAGE = "tests.integration.attacks.inside"
_MODULES = ("verdicts", "privilege", "files", "information", "network", "resources")
_LIMITED = frozenset({TerminationReason.MEMORY, TerminationReason.CPU_TIME, TerminationReason.PROCESSES})
_SECONDS = 150
_BOOT = """
import base64, json, sys, types, zlib
parts = {package!r}.split(".")
for end in range(1, len(parts) + 1):
    name = ".".join(parts[:end]); sys.modules[name] = types.ModuleType(name)
for name, text in json.loads(zlib.decompress(base64.b85decode({packed!r}))):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
sys.modules[{package!r} + ".verdicts"].run(*json.loads(sys.argv[1]))
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Attacks that share one sandbox, and what stands around it."""

    name: str
    attacks: Sequence[str]
    without: Sequence[str] = ()
    granted: bool = False
    spare: bool = False
    grants: bool = False
    """With a network that leads to one name, and a folder of the host to write to."""
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Attack -> whether it got through (None: the attack itself is broken) and what shows it; and the record."""

    verdicts: Mapping[str, tuple[bool | None, str]]
    layers: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    kernel_uid: int | None = None


def command(attacks: Sequence[str], bait: Mapping[str, Any], *, python: str = "python3") -> tuple[str, ...]:
    """Return the argv that tries attacks."""
    return (python, "-I", "-c", _program(), json.dumps([list(attacks), dict(bait)]))


def _program() -> str:
    folder = Path(__file__).with_name("inside")
    sources = [(f"{_PACKAGE}.{name}", (folder / f"{name}.py").read_text()) for name in _MODULES]
    packed = base64.b85encode(zlib.compress(json.dumps(sources).encode(), 9)).decode()
    return _BOOT.format(package=_PACKAGE, packed=packed)


async def run_batch(batch: Batch, bait: Mapping[str, Any]) -> Answer:
    """Run the attacks of one batch, in a runner of its own."""
    bait = {**bait, "gently": bool(batch.without)}
    argv = command(batch.attacks, bait)
    if BARE in batch.without:
        with anyio.fail_after(_SECONDS):
            done = await anyio.run_process(argv, check=False, **_nobody())
        return Answer(json.loads(done.stdout))
    controls = Controls(frozenset(Control(name) for name in batch.without))
    folders = bait["folders"] if batch.granted else ()
    policy = ExecutionPolicy(resource_limits=ResourceLimits(**batch.limits))
    may_write = FilesystemPolicy(allow_write=(bait["granted_folder"],))
    if batch.grants:
        policy = replace(policy, network=NetworkPolicy(allowed_domains=("example.com",)), filesystem=may_write)
    launch = launch_of(Command(argv=argv), policy)
    with anyio.fail_after(_SECONDS):
        async with BubblewrapRunner(
            controls=controls,
            read_only_paths=folders,
            spares=int(batch.spare),
            egress=Egress(),
            operator=may_write,
        ) as runner:
            if batch.spare:
                await _spare(runner, policy)
            async with runner.start(launch) as process:
                finished = await finish(process)
                isolation = process.isolation
    return Answer(_verdicts(batch, finished), isolation.layers, dict(isolation.facts), isolation.kernel_uid)


async def _spare(runner: BubblewrapRunner, policy: ExecutionPolicy) -> None:
    """Wait until the next command gets a sandbox that was built ahead."""
    for _ in range(2):
        async with runner.start(launch_of(Command(argv=("true",)), policy)) as process:
            await finish(process)
    assert runner._spares is not None
    # Nobody tells of a spare; the caller bounds the wait.
    while not runner._spares.waiting:  # noqa: ASYNC110
        await anyio.sleep(0.01)


def _verdicts(batch: Batch, finished: Finished) -> dict[str, tuple[bool | None, str]]:
    exit_ = finished.exit
    try:
        found: dict[str, tuple[bool | None, str]] = json.loads(finished.stdout.decode().splitlines()[-1])
    except (IndexError, ValueError):
        # A cgroup of version 2 ends the whole tree that passes its memory.
        limited = exit_.reason in _LIMITED
        text = f"{exit_.reason}, {exit_.message}, {finished.stderr[-500:]!r}"
        return dict.fromkeys(batch.attacks, (False if limited else None, text))
    return found


def _nobody() -> dict[str, Any]:
    return {"user": 65533, "group": 65533, "extra_groups": []} if os.geteuid() == 0 else {}


async def _run_all(batches: Sequence[Batch], roots: str | None) -> dict[str, Answer]:
    with set_out(roots) as bait:
        return {batch.name: await run_batch(batch, bait) for batch in batches}


def main() -> None:
    """Do what standard input says."""
    asked = json.load(sys.stdin)
    batches = [Batch(**batch) for batch in asked["batches"]]
    answers = anyio.run(_run_all, batches, asked["roots"], backend=asked["backend"])
    json.dump({name: asdict(answer) for name, answer in answers.items()}, sys.stdout)


if __name__ == "__main__":
    main()
