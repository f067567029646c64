"""Every attack of the table, tried once for each kind of server."""

from __future__ import annotations

import json
import os
import subprocess  # noqa: TID251 - a server of another user
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from sandbox_adapters.runners.runtime_directory import reachable_by_everyone
from tests.integration.attacks.bait import files_of_root
from tests.integration.attacks.plan import batches
from tests.integration.attacks.rig import Answer

NOBODY = 65533
_SECONDS = 540


@dataclass(frozen=True, slots=True)
class Server:
    """Who ran the attacks' sandboxes, and what became of them."""

    root: bool
    roots: bool
    """True when root prepared its files."""
    answers: Mapping[str, Answer]

    def verdict(self, batch: str, attack: str) -> tuple[bool, str]:
        """Return whether an attack got through in a batch, and what shows it."""
        through, evidence = self.answers[batch].verdicts[attack]
        assert through is not None, f"the attack itself is broken: {evidence}"
        return through, evidence


@dataclass(frozen=True, slots=True)
class _Round:
    process: subprocess.Popen[str]
    output: IO[str]
    errors: IO[str]


_KINDS = {"as root": True, "as a user": False}


@pytest.fixture(scope="session")
def rounds() -> Iterator[Mapping[str, _Round]]:
    """Both kinds of server, started at once, with where their output goes; without root there is only one."""
    with ExitStack() as stack:
        roots = stack.enter_context(files_of_root())
        running = {}
        for kind, root in _KINDS.items():
            if root and roots is None:
                continue
            asked = {
                "batches": [asdict(batch) for batch in batches(root=root)],
                "roots": roots,
                "backend": "trio" if root else "asyncio",
            }
            files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
            json.dump(asked, files[0])
            files[0].seek(0)
            process = subprocess.Popen(
                [python_for(root=root), "-m", "tests.integration.attacks.rig"],
                stdin=files[0], stdout=files[1], stderr=files[2], text=True,
                **identity(root=root),
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            running[kind] = _Round(process, files[1], files[2])
        yield running


@pytest.fixture(scope="session", params=_KINDS)
def server(request: pytest.FixtureRequest, rounds: Mapping[str, _Round]) -> Server:
    """What one kind of server answered."""
    if request.param not in rounds:
        pytest.skip("does not apply: only root has a server that is root")
    done = rounds[request.param]
    code = done.process.wait(_SECONDS)
    done.errors.seek(0)
    assert code == 0, done.errors.read()[-3000:]
    done.output.seek(0)
    answers = {name: Answer(**answer) for name, answer in json.load(done.output).items()}
    return Server(_KINDS[request.param], "as root" in rounds, answers)


def python_for(*, root: bool) -> str:
    """Return an interpreter that the server's user can execute; skip when there is none."""
    for path in (sys.executable, "/usr/bin/python3"):
        if root or os.geteuid() != 0 or all(reachable_by_everyone(each) for each in (Path(path), Path(path).resolve())):
            break
    else:
        pytest.skip("another uid reaches no interpreter")
    if not root and os.geteuid() == 0 and not reachable_by_everyone(Path(sys.prefix)):
        pytest.skip("another uid does not reach this checkout")
    return path


def identity(*, root: bool) -> dict[str, Any]:
    """Return what makes subprocess start a program as the server's user, able to import what this process can."""
    kept = {"PATH": os.environ.get("PATH", os.defpath)}
    folder = Path(__file__).parents[3]
    environment = {**kept, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    other: dict[str, Any] = {} if root or os.geteuid() != 0 else {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return {"env": environment, "cwd": "/", **other}
